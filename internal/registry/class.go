package registry

// RouteClass says what a path of the registry is about, in one of few words: names of repositories are not in it.
func RouteClass(path string) string {
	rt, ok := parsePath(path)
	if !ok {
		return "other"
	}
	return classes[rt.kind]
}

var classes = map[kind]string{
	kindBase: "base", kindCatalog: "catalog", kindTags: "tags", kindManifest: "manifests", kindBlob: "blobs",
	kindUploads: "uploads", kindUpload: "uploads", kindReferrers: "referrers", kindFences: "control", kindFence: "control", kindPublish: "control",
}
