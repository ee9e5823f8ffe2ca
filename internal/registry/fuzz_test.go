package registry

import (
	"strings"
	"testing"
)

func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/manifests/x", "/v2/a/blobs/uploads/", "/v2/a/tags/list", "/v2/.kiln/fence/r1", "/v2//blobs/", "/v2/blobs/uploads"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		rt, ok := parsePath(path)
		if !ok {
			return
		}
		if _, known := endpoints[rt.kind]; !known {
			t.Errorf("parsePath(%q): kind %d has no endpoints", path, rt.kind)
		}
		if rt.repository != "" && !rt.inRepository() {
			t.Errorf("parsePath(%q) names a repository that nobody checks", path)
		}
		if !strings.Contains(path, rt.repository) || !strings.HasSuffix(path, rt.ref) {
			t.Errorf("parsePath(%q) = %+v", path, rt)
		}
	})
}

func FuzzParseManifest(f *testing.F) {
	f.Add(typeOCIManifest, `{"schemaVersion":2,"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`)
	f.Add(typeOCIIndex, `{"schemaVersion":2,"manifests":[]}`)
	f.Add("", `{"schemaVersion":2,"mediaType":"`+typeDockerList+`"}`)
	f.Fuzz(func(t *testing.T, mediaType, body string) {
		doc, err := parseManifest(mediaType, []byte(body))
		if err != nil {
			return
		}
		for _, l := range append(doc.blobs(), doc.Manifests...) {
			if _, err := parseDigest(l.Digest); err != nil || l.Size < 0 {
				t.Errorf("accepted descriptor %+v", l)
			}
		}
		switch doc.MediaType {
		case typeDockerList, typeDockerManifest, typeOCIIndex, typeOCIManifest:
		default:
			t.Errorf("accepted media type %q", doc.MediaType)
		}
	})
}
