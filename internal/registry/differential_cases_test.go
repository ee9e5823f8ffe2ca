package registry_test

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

const (
	diffConfig = `{"architecture":"amd64","os":"linux"}`
	diffLayer  = "0123456789"
)

var (
	configDigest = digest.FromString(diffConfig).String()
	layerDigest  = digest.FromString(diffLayer).String()
	absentDigest = digest.FromString("absent").String()
	emptyDigest  = digest.FromString("").String()
	sha512Layer  = digest.SHA512.FromString(diffLayer).String()

	// names are what digests are called in differences.
	names = strings.NewReplacer(configDigest, "{config}", layerDigest, "{layer}", absentDigest, "{absent}", emptyDigest, "{empty}", sha512Layer, "{layer512}",
		digest.FromString(diffImage()).String(), "{image}", digest.SHA512.FromString(diffImage()).String(), "{image512}",
		digest.FromString(diffDocker()).String(), "{docker}", digest.FromString(diffIndex(dockerList, dockerManifest, diffDocker())).String(), "{list}",
		diffDocker(), "{docker manifest}", diffIndex(dockerList, dockerManifest, diffDocker()), "{list manifest}", diffImage(), "{image manifest}")
)

func diffManifest(mediaType, config, layer string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, mediaType, config, layer)
}

func diffImage() string {
	return diffManifest(ociManifest, link(ociConfig, configDigest, len(diffConfig)), link(ociLayer, layerDigest, len(diffLayer)))
}

func diffDocker() string {
	return diffManifest(dockerManifest, link("application/vnd.docker.container.image.v1+json", configDigest, len(diffConfig)),
		link("application/vnd.docker.image.rootfs.diff.tar.gzip", layerDigest, len(diffLayer)))
}

func diffIndex(mediaType, child, of string) string {
	platform := strings.Replace(link(child, digest.FromString(of).String(), len(of)), "}", `,"platform":{"architecture":"amd64","os":"linux"}}`, 1)
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, mediaType, platform)
}

func get(path string, header ...string) exchange {
	return exchange{method: "GET", path: path, header: header}
}

func head(path string) exchange { return exchange{method: "HEAD", path: path} }

func del(path string) exchange { return exchange{method: "DELETE", path: path} }

func post(path, body string) exchange { return exchange{method: "POST", path: path, body: body} }

func putUp(query, body string, header ...string) exchange {
	return exchange{method: "PUT", path: "{upload}" + query, body: body, header: header}
}

func patch(body, contentRange string) exchange {
	x := exchange{method: "PATCH", path: "{upload}", body: body, header: []string{"Content-Type", "application/octet-stream"}}
	if contentRange != "" {
		x.header = append(x.header, "Content-Range", contentRange)
	}
	return x
}

func putAs(mediaType, path, body string) exchange {
	return exchange{method: "PUT", path: path, body: body, header: []string{"Content-Type", mediaType}}
}

func blobExchanges() []exchange {
	return []exchange{
		get("/v2/"),
		head("/v2/"),
		get("/v2/_catalog"),
		get("/v2/a/tags/list"),
		get("/v2/a/manifests/latest"),
		head("/v2/a/manifests/latest"),
		get("/v2/a/manifests/" + absentDigest),
		get("/v2/a/blobs/" + absentDigest),
		head("/v2/a/blobs/" + absentDigest),
		get("/v2/a/blobs/sha256:12"),
		post("/v2/a/blobs/uploads/?digest="+configDigest, diffConfig).but("the specification lets a blob come with the first request",
			"Docker-Content-Digest:  -> {config}", "Location: /v2/a/blobs/uploads/{id} -> /v2/a/blobs/{config}", "Range: 0-0 -> ", "status: 202 -> 201"),
		post("/v2/a/blobs/uploads/", ""),
		putUp("?digest="+configDigest, diffConfig),
		post("/v2/a/blobs/uploads/", ""),
		putUp("?digest="+emptyDigest, ""),
		get("/v2/a/blobs/" + configDigest),
		head("/v2/a/blobs/" + configDigest),
		get("/v2/a/blobs/" + emptyDigest),
		head("/v2/a/blobs/" + emptyDigest),
		get("/v2/a/blobs/"+configDigest, "Range", "bytes=0-3"),
		get("/v2/a/blobs/"+configDigest, "Range", "bytes=5-"),
		get("/v2/a/blobs/"+configDigest, "Range", "bytes=-3"),
		get("/v2/a/blobs/"+configDigest, "Range", "bytes=4-100000"),
		get("/v2/a/blobs/"+configDigest, "Range", "bytes=100000-").but("an error names no content, and says what it is",
			"Docker-Content-Digest: {config} -> ", "code:  -> SIZE_INVALID"),
		get("/v2/a/blobs/"+configDigest, "Range", "bytes=x").but("a range that is none is ignored, as HTTP has it",
			"Content-Type:  -> application/octet-stream", `ETag:  -> "{config}"`, `body:  -> {"architecture":"amd64","os":"linux"}`, "size:  -> 37", "status: 416 -> 200"),
		get("/v2/a/blobs/"+configDigest, "If-None-Match", `"`+configDigest+`"`),
		get("/v2/other/blobs/" + configDigest),
	}
}

func uploadExchanges() []exchange {
	return []exchange{
		post("/v2/a/blobs/uploads/", ""),
		get("{upload}"),
		patch(diffLayer[:4], "0-3"),
		get("{upload}"),
		patch(diffLayer[4:6], "0-1").but("the client learns where to go on, and the code is one that the specification has",
			"Location:  -> /v2/a/blobs/uploads/{id}", "Range:  -> 0-3", "code: RANGE_INVALID -> BLOB_UPLOAD_INVALID"),
		patch(diffLayer[4:6], "6-7").but("the client learns where to go on, and the code is one that the specification has",
			"Location:  -> /v2/a/blobs/uploads/{id}", "Range:  -> 0-3", "code: RANGE_INVALID -> BLOB_UPLOAD_INVALID"),
		patch(diffLayer[4:6], "x").but("it is the client's mistake",
			"code: UNKNOWN -> BLOB_UPLOAD_INVALID", "status: 500 -> 400"),
		patch(diffLayer[4:], "4-9"),
		putUp("?digest="+layerDigest, ""),
		get("{upload}"),
		post("/v2/a/blobs/uploads/", ""),
		patch(diffLayer, ""),
		putUp("", ""),
		putUp("?digest=nonsense", ""),
		putUp("?digest="+absentDigest, ""),
		post("/v2/a/blobs/uploads/", ""),
		patch(diffLayer[:4], ""),
		putUp("?digest="+layerDigest, diffLayer[4:], "Content-Range", "4-9"),
		post("/v2/a/blobs/uploads/", ""),
		del("{upload}"),
		get("{upload}"),
		patch("x", ""),
		del("{upload}"),
		post("/v2/b/blobs/uploads/?mount="+layerDigest+"&from=a", ""),
		head("/v2/b/blobs/" + layerDigest),
		post("/v2/b/blobs/uploads/?mount="+absentDigest+"&from=a", ""),
		post("/v2/b/blobs/uploads/?mount="+configDigest+"&from=nowhere", ""),
		post("/v2/b/blobs/uploads/?mount=nonsense&from=a", "").but("an upload under that digest could not end either",
			"Location: /v2/b/blobs/uploads/{id} -> ", "Range: 0-0 -> ", "code:  -> DIGEST_INVALID", "status: 202 -> 400"),
		post("/v2/c/blobs/uploads/?mount="+layerDigest, "").but("a mount need not name its source",
			"Docker-Content-Digest:  -> {layer}", "Location: /v2/c/blobs/uploads/{id} -> /v2/c/blobs/{layer}", "Range: 0-0 -> ", "status: 202 -> 201"),
		post("/v2/a/blobs/uploads/", ""),
		putUp("?digest="+sha512Layer, diffLayer).but("content keeps the digest that it was pushed by",
			"Docker-Content-Digest: {layer} -> {layer512}", "Location: /v2/a/blobs/{layer} -> /v2/a/blobs/{layer512}"),
		head("/v2/a/blobs/"+sha512Layer).but("content keeps the digest that it was pushed by",
			"Docker-Content-Digest: {layer} -> {layer512}", `ETag: "{layer}" -> "{layer512}"`),
		get("/v2/a/blobs/"+sha512Layer).but("content keeps the digest that it was pushed by",
			"Docker-Content-Digest: {layer} -> {layer512}", `ETag: "{layer}" -> "{layer512}"`),
	}
}

func manifestExchanges() []exchange {
	img, d := diffImage(), digest.FromString(diffImage()).String()
	missing := strings.ReplaceAll(img, layerDigest, absentDigest)
	foreign := diffManifest(ociManifest, link(ociConfig, configDigest, len(diffConfig)),
		strings.Replace(link("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", absentDigest, 7), "}", `,"urls":["https://example.com/x"]}`, 1))
	return []exchange{
		putAs(ociManifest, "/v2/a/manifests/1", img),
		putAs(ociManifest, "/v2/a/manifests/1", img),
		putAs(ociManifest, "/v2/a/manifests/"+d, img),
		get("/v2/a/manifests/1", "Accept", ociManifest),
		get("/v2/a/manifests/1").but("what is stored is what is answered, whatever the client accepts",
			"Content-Type:  -> application/vnd.oci.image.manifest.v1+json", "Docker-Content-Digest:  -> {image}", `ETag:  -> "{image}"`, "body:  -> {image manifest}", "code: MANIFEST_UNKNOWN -> ", "size:  -> 394", "status: 404 -> 200"),
		head("/v2/a/manifests/1").but("what is stored is what is answered, whatever the client accepts",
			"Content-Type:  -> application/vnd.oci.image.manifest.v1+json", "Docker-Content-Digest:  -> {image}", `ETag:  -> "{image}"`, "size:  -> 394", "status: 404 -> 200"),
		get("/v2/a/manifests/"+d, "Accept", ociManifest),
		head("/v2/a/manifests/"+d).but("what is stored is what is answered, whatever the client accepts",
			"Content-Type:  -> application/vnd.oci.image.manifest.v1+json", "Docker-Content-Digest:  -> {image}", `ETag:  -> "{image}"`, "size:  -> 394", "status: 404 -> 200"),
		get("/v2/a/manifests/"+d, "Accept", ociManifest, "If-None-Match", `"`+d+`"`).but("HTTP wants the tag in an answer without content too",
			"Docker-Content-Digest:  -> {image}", `ETag:  -> "{image}"`),
		get("/v2/b/manifests/" + d),
		putAs(ociManifest, "/v2/a/manifests/2", missing),
		putAs(ociManifest, "/v2/a/manifests/"+absentDigest, img),
		putAs(ociManifest, "/v2/a/manifests/sha256:12", img),
		putAs(ociManifest, "/v2/a/manifests/-bad", img).but("the client learns what is wrong",
			"code:  -> TAG_INVALID", "status: 404 -> 400"),
		putAs(ociManifest, "/v2/a/manifests/2", ""),
		putAs(ociManifest, "/v2/a/manifests/2", "{"),
		putAs("text/plain", "/v2/a/manifests/2", `{}`),
		putAs(ociManifest, "/v2/a/manifests/2", strings.Replace(img, `"schemaVersion":2`, `"schemaVersion":1`, 1)).but("it is the client's mistake",
			"code: UNKNOWN -> MANIFEST_INVALID", "status: 500 -> 400"),
		putAs(dockerManifest, "/v2/a/manifests/2", img),
		putAs("", "/v2/a/manifests/1", img).but("the manifest itself says what it is",
			"Docker-Content-Digest:  -> {image}", "Location:  -> /v2/a/manifests/{image}", "code: MANIFEST_INVALID -> ", "status: 400 -> 201"),
		putAs(ociManifest, "/v2/a/manifests/"+digest.SHA512.FromString(img).String(), img).but("the specification has sha512",
			"Docker-Content-Digest:  -> {image512}", "Location:  -> /v2/a/manifests/{image512}", "code: DIGEST_INVALID -> ", "status: 400 -> 201"),
		putAs(ociManifest, "/v2/a/manifests/foreign", foreign),
		putAs(dockerManifest, "/v2/a/manifests/docker", diffDocker()),
		get("/v2/a/manifests/docker", "Accept", dockerManifest),
		putAs(dockerList, "/v2/a/manifests/list", diffIndex(dockerList, dockerManifest, diffDocker())),
		get("/v2/a/manifests/list", "Accept", dockerList),
		get("/v2/a/manifests/list", "Accept", dockerManifest).but("no image is picked for the client",
			"Content-Type: application/vnd.docker.distribution.manifest.v2+json -> application/vnd.docker.distribution.manifest.list.v2+json", "Docker-Content-Digest: {docker} -> {list}", `ETag: "{docker}" -> "{list}"`, "body: {docker manifest} -> {list manifest}", "size: 421 -> 317"),
		putAs(ociIndex, "/v2/a/manifests/index", diffIndex(ociIndex, ociManifest, img)),
		get("/v2/a/manifests/index", "Accept", ociIndex),
		head("/v2/a/manifests/index"),
		putAs(ociIndex, "/v2/a/manifests/broken", diffIndex(ociIndex, ociManifest, missing)),
		putAs(ociManifest, "/v2/b/manifests/1", diffManifest(ociManifest, link(ociConfig, layerDigest, len(diffLayer)), "")),
	}
}

func listExchanges() []exchange {
	return []exchange{
		get("/v2/a/tags/list"),
		get("/v2/a/tags/list?n=2"),
		get("/v2/a/tags/list?n=2&last=docker"),
		get("/v2/a/tags/list?n=100&last=foreign"),
		get("/v2/a/tags/list?last=zzz"),
		get("/v2/a/tags/list?last=between"),
		get("/v2/a/tags/list?n=0"),
		get("/v2/a/tags/list?n=-1"),
		get("/v2/a/tags/list?n=x"),
		get("/v2/_catalog"),
		get("/v2/_catalog?n=1"),
		get("/v2/_catalog?n=1&last=a").but("nothing follows",
			`Link: </v2/_catalog?last=b&n=1>; rel="next" -> `),
		get("/v2/_catalog?n=5&last=a"),
		get("/v2/_catalog?last=zzz"),
		get("/v2/_catalog?n=0"),
		get("/v2/_catalog?n=-1"),
		get("/v2/_catalog?n=x"),
	}
}

func deleteExchanges() []exchange {
	d := digest.FromString(diffImage()).String()
	return []exchange{
		del("/v2/a/manifests/none"),
		del("/v2/a/manifests/" + absentDigest),
		del("/v2/a/manifests/sha256:12"),
		del("/v2/nowhere/manifests/" + absentDigest),
		del("/v2/a/blobs/" + absentDigest),
		del("/v2/a/blobs/sha256:12"),
		del("/v2/a/blobs/" + emptyDigest),
		get("/v2/a/blobs/" + emptyDigest),
		del("/v2/a/blobs/"+layerDigest).but("images that can be pulled stay so",
			"Allow:  -> GET, HEAD", "code:  -> UNSUPPORTED", "status: 202 -> 405"),
		del("/v2/a/manifests/foreign"),
		get("/v2/a/manifests/foreign"),
		del("/v2/a/manifests/"+d).but("images that can be pulled stay so",
			"Allow:  -> GET, HEAD, PUT", "code:  -> UNSUPPORTED", "status: 202 -> 405"),
		del("/v2/a/manifests/" + digest.FromString(diffIndex(ociIndex, ociManifest, diffImage())).String()),
		get("/v2/a/manifests/index"),
		del("/v2/a/manifests/"+d).but("it was not deleted before",
			"code: MANIFEST_UNKNOWN -> ", "status: 404 -> 202"),
		get("/v2/a/manifests/1"),
		get("/v2/a/tags/list"),
	}
}

func oddExchanges() []exchange {
	return []exchange{
		get("/v2/UPPER/tags/list").but("the client learns what is wrong",
			"code:  -> NAME_INVALID", "status: 404 -> 400"),
		get("/v2/a/tags/nothing").but("every error says what it is",
			"code:  -> UNSUPPORTED"),
		post("/v2/a/manifests/1", "").but("every error says what it is",
			"code:  -> UNSUPPORTED"),
		post("/v2/a/tags/list", "").but("every error says what it is",
			"code:  -> UNSUPPORTED"),
		exchange{method: "PATCH", path: "/v2/a/blobs/" + layerDigest}.but("every error says what it is",
			"code:  -> UNSUPPORTED"),
		get("/v2/a/blobs/uploads/").but("only POST is served there",
			"Allow:  -> POST", "code: BLOB_UPLOAD_UNKNOWN -> UNSUPPORTED", "status: 404 -> 405"),
		get("/v2/a/blobs/uploads/nonsense"),
		get("/v2/a/referrers/"+absentDigest).but("distribution has no referrers",
			"Content-Type:  -> application/vnd.oci.image.index.v1+json", `body:  -> {"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`, "size:  -> 88", "status: 404 -> 200"),
		get("/v2/a/manifests/"+strings.Repeat("x", 129)).but("every error says what it is",
			"code:  -> MANIFEST_UNKNOWN"),
	}
}
