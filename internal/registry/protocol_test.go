package registry_test

import (
	"bytes"
	_ "crypto/sha512" // digests
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// code returns the error code of an answer.
func code(t testing.TB, body []byte) string {
	t.Helper()
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(body, &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Message == "" {
		t.Fatalf("not an error body: %s", body)
	}
	return e.Errors[0].Code
}

func beginUpload(t testing.TB, r *registrytest.Registry, repo string) string {
	t.Helper()
	res, _ := want(t, r, http.StatusAccepted, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
	return res.Header.Get("Location")
}

func TestChunkedUploadResumesWhereItStopped(t *testing.T) {
	t.Parallel()
	for _, size := range []int{10, 200_000} { // in memory, in a file
		r := registrytest.Start(t)
		content := bytes.Repeat([]byte("abcdefghij"), size/5)
		d := digest.FromBytes(content).String()
		loc := beginUpload(t, r, "a/b")
		chunk := func(status, from, to int) *http.Response {
			t.Helper()
			res, _ := want(t, r, status, "PATCH", loc, content[from:to], "Content-Range", fmt.Sprintf("%d-%d", from, to-1))
			return res
		}
		half := len(content) / 2
		chunk(http.StatusRequestedRangeNotSatisfiable, half, len(content)) // begins too late
		res := chunk(http.StatusAccepted, 0, half)
		if got, want := res.Header.Get("Range"), fmt.Sprintf("0-%d", half-1); got != want {
			t.Errorf("Range = %q, want %q", got, want)
		}
		if got := chunk(http.StatusRequestedRangeNotSatisfiable, 0, half).Header.Get("Range"); got != fmt.Sprintf("0-%d", half-1) {
			t.Errorf("Range of a refused chunk = %q", got)
		}
		res, _ = want(t, r, http.StatusNoContent, "GET", loc, nil)
		if got, want := res.Header.Get("Range"), fmt.Sprintf("0-%d", half-1); got != want || res.Header.Get("Location") != loc {
			t.Errorf("status: Range = %q, want %q; Location %q", got, want, res.Header.Get("Location"))
		}
		res, _ = want(t, r, http.StatusCreated, "PUT", loc+"?digest="+d, content[half:], "Content-Range", fmt.Sprintf("%d-%d", half, len(content)-1))
		if res.Header.Get("Docker-Content-Digest") != d || res.Header.Get("Location") != "/v2/a/b/blobs/"+d {
			t.Errorf("header of the blob: %v", res.Header)
		}
		want(t, r, http.StatusNotFound, "GET", loc, nil)
		if _, b := want(t, r, http.StatusOK, "GET", "/v2/a/b/blobs/"+d, nil); !bytes.Equal(b, content) {
			t.Errorf("got other content back")
		}
	}
}

func TestUploadForms(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	for _, content := range [][]byte{{}, []byte("small"), big} {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			repo := fmt.Sprintf("forms/%s%d", alg, len(content))
			d := alg.FromBytes(content).String()
			path := "/v2/" + repo + "/blobs/" + d
			check := func(form string) {
				t.Helper()
				res, b := want(t, r, http.StatusOK, "GET", path, nil)
				if !bytes.Equal(b, content) || res.Header.Get("Docker-Content-Digest") != d {
					t.Errorf("%s of %d bytes by %s: got %d bytes, %v", form, len(content), alg, len(b), res.Header)
				}
				res, _ = want(t, r, http.StatusOK, "HEAD", path, nil)
				if res.ContentLength != int64(len(content)) {
					t.Errorf("%s of %d bytes by %s: HEAD says %d", form, len(content), alg, res.ContentLength)
				}
				want(t, r, http.StatusAccepted, "DELETE", path, nil)
				want(t, r, http.StatusNotFound, "HEAD", path, nil)
			}
			want(t, r, http.StatusCreated, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, content)
			check("POST")
			want(t, r, http.StatusCreated, "PUT", beginUpload(t, r, repo)+"?digest="+d, content)
			check("POST, PUT")
			loc := beginUpload(t, r, repo)
			want(t, r, http.StatusAccepted, "PATCH", loc, content)
			want(t, r, http.StatusCreated, "PUT", loc+"?digest="+d, nil)
			check("POST, PATCH, PUT")
		}
	}
}

func TestUploadsThatAreRefused(t *testing.T) {
	t.Parallel()
	r := registrytest.StartWith(t, registry.Options{Reserve: -1, MaxUploads: 2, MaxBlob: 100_000})
	d := digest.FromString("x").String()
	for _, c := range []struct {
		name   string
		status int
		code   string
		url    string // what follows the upload's location
		body   []byte
	}{
		{"no digest", 400, "DIGEST_INVALID", "", []byte("x")},
		{"malformed digest", 400, "DIGEST_INVALID", "?digest=sha256:12", []byte("x")},
		{"unknown algorithm", 400, "DIGEST_INVALID", "?digest=md5:d41d8cd98f00b204e9800998ecf8427e", []byte("x")},
		{"other content", 400, "DIGEST_INVALID", "?digest=" + d, []byte("y")},
		{"too large", 413, "SIZE_INVALID", "?digest=" + d, make([]byte, 100_001)},
	} {
		loc := beginUpload(t, r, "a")
		if _, b := want(t, r, c.status, "PUT", loc+c.url, c.body); code(t, b) != c.code {
			t.Errorf("%s: %s, want %s", c.name, b, c.code)
		}
		call(t, r, "DELETE", loc, nil)
	}
	loc := beginUpload(t, r, "a")
	if _, b := want(t, r, 400, "PATCH", loc, []byte("x"), "Content-Range", "0-5"); code(t, b) != "BLOB_UPLOAD_INVALID" {
		t.Errorf("short chunk: %s", b)
	}
	if _, b := want(t, r, 404, "PATCH", strings.Replace(loc, "/v2/a/", "/v2/b/", 1), []byte("x")); code(t, b) != "BLOB_UPLOAD_UNKNOWN" {
		t.Errorf("upload of another repository: %s", b)
	}
	beginUpload(t, r, "a")
	if _, b := want(t, r, 429, "POST", "/v2/a/blobs/uploads/", nil); code(t, b) != "TOOMANYREQUESTS" {
		t.Errorf("third upload: %s", b)
	}
	want(t, r, http.StatusNoContent, "DELETE", loc, nil)
	want(t, r, http.StatusNotFound, "GET", loc, nil)
	want(t, r, http.StatusNotFound, "DELETE", loc, nil)
	beginUpload(t, r, "a")
}

func TestBlobRanges(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	for _, content := range [][]byte{[]byte("0123456789"), bytes.Repeat([]byte("0123456789"), 10_000)} {
		path := "/v2/a/blobs/" + putBlob(t, r, "a", content)
		n := len(content)
		for _, c := range []struct {
			spec     string
			status   int
			from, to int
		}{
			{"bytes=0-4", 206, 0, 5},
			{"bytes=3-", 206, 3, n},
			{"bytes=-2", 206, n - 2, n},
			{fmt.Sprintf("bytes=5-%d", 10*n), 206, 5, n},
			{fmt.Sprintf("bytes=%d-", n), 416, 0, 0},
			{"bytes=5-0", 416, 0, 0},
			{"bytes=-0", 416, 0, 0},
			{"bytes=x", 200, 0, n}, // not a range: ignored
		} {
			res, b := want(t, r, c.status, "GET", path, nil, "Range", c.spec)
			if c.status != 416 && !bytes.Equal(b, content[c.from:c.to]) {
				t.Errorf("%s of %d bytes: got %d bytes", c.spec, n, len(b))
			}
			if got, want := res.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", c.from, c.to-1, n); c.status == 206 && got != want {
				t.Errorf("%s: Content-Range = %q, want %q", c.spec, got, want)
			}
			if c.status == 416 && code(t, b) == "" {
				t.Errorf("%s: no error body", c.spec)
			}
		}
	}
}

func TestMounts(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	d := putBlob(t, r, "src", []byte("mounted"))
	want(t, r, http.StatusCreated, "POST", "/v2/dst/blobs/uploads/?mount="+d+"&from=src", nil)
	want(t, r, http.StatusOK, "HEAD", "/v2/dst/blobs/"+d, nil)
	want(t, r, http.StatusCreated, "POST", "/v2/dst2/blobs/uploads/?mount="+d, nil)
	want(t, r, http.StatusOK, "HEAD", "/v2/dst2/blobs/"+d, nil)
	absent := digest.FromString("absent").String()
	for _, q := range []string{"mount=" + d + "&from=nowhere", "mount=" + absent + "&from=src", "mount=" + absent, "mount=" + d + "&from=../x"} {
		res, _ := want(t, r, http.StatusAccepted, "POST", "/v2/dst3/blobs/uploads/?"+q, nil)
		if res.Header.Get("Location") == "" {
			t.Errorf("%s: no Location to upload to", q)
		}
	}
	want(t, r, http.StatusBadRequest, "POST", "/v2/dst3/blobs/uploads/?mount=nonsense", nil)
}

// image pushes the blobs of a small image and returns its manifest.
func image(t testing.TB, r *registrytest.Registry, repo, content string) []byte {
	t.Helper()
	c := putBlob(t, r, repo, []byte("{}"))
	l := putBlob(t, r, repo, []byte(content))
	return manifestOf(c, 2, l, len(content))
}

func TestManifests(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	m := image(t, r, "a", "layer")
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := alg.FromBytes(m).String()
		res, _ := want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/"+d, m, "Content-Type", ociManifest)
		if res.Header.Get("Docker-Content-Digest") != d || res.Header.Get("Location") != "/v2/a/manifests/"+d {
			t.Errorf("PUT by %s: %v", alg, res.Header)
		}
		for _, method := range []string{"GET", "HEAD"} {
			res, b := want(t, r, http.StatusOK, method, "/v2/a/manifests/"+d, nil)
			if res.Header.Get("Content-Type") != ociManifest || res.ContentLength != int64(len(m)) || res.Header.Get("Docker-Content-Digest") != d {
				t.Errorf("%s: %v", method, res.Header)
			}
			if method == "GET" && !bytes.Equal(b, m) {
				t.Errorf("GET: other bytes came back")
			}
		}
		want(t, r, http.StatusNotModified, "GET", "/v2/a/manifests/"+d, nil, "If-None-Match", `"`+d+`"`)
	}
	res, _ := want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/"+digest.FromBytes(m).String()+"?tag=x&tag=y", m, "Content-Type", ociManifest)
	if got := res.Header.Values("OCI-Tag"); !slices.Equal(got, []string{"x", "y"}) {
		t.Errorf("OCI-Tag = %q", got)
	}
	want(t, r, http.StatusOK, "HEAD", "/v2/a/manifests/y", nil)
	layer := digest.FromString("layer").String()
	if _, b := want(t, r, http.StatusMethodNotAllowed, "DELETE", "/v2/a/blobs/"+layer, nil); code(t, b) != "UNSUPPORTED" {
		t.Errorf("delete of a blob in use: %s", b)
	}
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/x", nil)
	want(t, r, http.StatusNotFound, "HEAD", "/v2/a/manifests/x", nil)
	want(t, r, http.StatusOK, "HEAD", "/v2/a/manifests/y", nil)
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+alg.FromBytes(m).String(), nil)
	}
	want(t, r, http.StatusNotFound, "HEAD", "/v2/a/manifests/y", nil)
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/blobs/"+layer, nil)
}

func TestManifestsThatAreRefused(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	good := string(image(t, r, "a", "layer"))
	absent := digest.FromString("absent").String()
	layer := digest.FromString("layer").String()
	index := func(children string) string {
		return `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[` + children + `]}`
	}
	for _, c := range []struct {
		name, ref, mediaType, body string
		status                     int
		code                       string
	}{
		{"empty", "t", ociManifest, "", 400, "MANIFEST_INVALID"},
		{"not JSON", "t", ociManifest, "{", 400, "MANIFEST_INVALID"},
		{"unknown type", "t", "text/plain", `{"schemaVersion":2}`, 400, "MANIFEST_INVALID"},
		{"schema 1", "t", ociManifest, `{"schemaVersion":1}`, 400, "MANIFEST_INVALID"},
		{"types disagree", "t", ociIndex, good, 400, "MANIFEST_INVALID"},
		{"both kinds", "t", ociManifest, strings.Replace(good, `"layers"`, `"manifests":[],"layers"`, 1), 400, "MANIFEST_INVALID"},
		{"missing layer", "t", ociManifest, strings.Replace(good, layer, absent, 1), 400, "MANIFEST_BLOB_UNKNOWN"},
		{"malformed layer", "t", ociManifest, strings.Replace(good, layer, "sha256:1", 1), 400, "MANIFEST_INVALID"},
		{"missing child", "t", ociIndex, index(`{"mediaType":"` + ociManifest + `","digest":"` + absent + `","size":1}`), 400, "MANIFEST_BLOB_UNKNOWN"},
		{"other digest", absent, ociManifest, good, 400, "DIGEST_INVALID"},
		{"malformed digest", "sha256:1", ociManifest, good, 400, "DIGEST_INVALID"},
		{"malformed tag", "-x", ociManifest, good, 400, "TAG_INVALID"},
		{"too large", "t", ociManifest, good + strings.Repeat(" ", 4<<20), 413, "MANIFEST_INVALID"},
	} {
		if _, b := want(t, r, c.status, "PUT", "/v2/a/manifests/"+c.ref, []byte(c.body), "Content-Type", c.mediaType); code(t, b) != c.code {
			t.Errorf("%s: %s, want %s", c.name, b, c.code)
		}
	}
	for path, c := range map[string]string{
		"/v2/a/manifests/none":                 "MANIFEST_UNKNOWN",
		"/v2/a/manifests/" + absent:            "MANIFEST_UNKNOWN",
		"/v2/a/blobs/" + absent:                "BLOB_UNKNOWN",
		"/v2/none/tags/list":                   "NAME_UNKNOWN",
		"/v2/a/manifests/..bad":                "MANIFEST_UNKNOWN",
		"/v2/a/blobs/uploads/0123":             "BLOB_UPLOAD_UNKNOWN",
		"/v2/a/blobs/uploads/0123/more/or/not": "UNSUPPORTED",
	} {
		if _, b := want(t, r, http.StatusNotFound, "GET", path, nil); code(t, b) != c {
			t.Errorf("GET %s: %s, want %s", path, b, c)
		}
	}
	for _, name := range []string{"", "/", "UPPER", "a//b", "-a", "a/../b", "a:b", strings.Repeat("a", 256)} {
		if _, b := want(t, r, http.StatusBadRequest, "GET", "/v2/"+name+"/tags/list", nil); code(t, b) != "NAME_INVALID" {
			t.Errorf("name %q: %s", name, b)
		}
	}
	want(t, r, http.StatusBadRequest, "POST", "/v2//blobs/uploads/", nil)
	want(t, r, http.StatusMethodNotAllowed, "POST", "/v2/a/tags/list", nil)
}

func TestSpecialManifestsAreAccepted(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	img := image(t, r, "a", "layer")
	want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/child", img, "Content-Type", ociManifest)
	layer := digest.FromString("layer").String()
	child := digest.FromBytes(img).String()
	for name, body := range map[string]string{
		"foreign layer": strings.Replace(strings.Replace(string(img), layer, digest.FromString("elsewhere").String(), 1),
			`"mediaType":"application/vnd.oci.image.layer.v1.tar"`, `"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"`, 1),
		"no media type":   strings.Replace(string(img), `"mediaType":"`+ociManifest+`",`, "", 1),
		"any config":      strings.Replace(string(img), "application/vnd.oci.image.config.v1+json", "application/vnd.cncf.helm.config.v1+json", 1),
		"index of layers": `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + layer + `","size":5}]}`,
		"index":           `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[{"mediaType":"` + ociManifest + `","digest":"` + child + `","size":5}]}`,
		"empty index":     `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[]}`,
		"docker":          strings.Replace(string(img), ociManifest, "application/vnd.docker.distribution.manifest.v2+json", 1),
	} {
		t.Run(name, func(t *testing.T) {
			mediaType := ociManifest
			switch {
			case strings.Contains(body, ociIndex):
				mediaType = ociIndex
			case name == "docker":
				mediaType = "application/vnd.docker.distribution.manifest.v2+json"
			}
			want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/t", []byte(body), "Content-Type", mediaType+"; charset=utf-8")
			res, b := want(t, r, http.StatusOK, "GET", "/v2/a/manifests/t", nil)
			if string(b) != body || res.Header.Get("Content-Type") != mediaType {
				t.Errorf("got %s back: %s", res.Header.Get("Content-Type"), b)
			}
		})
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	img := image(t, r, "a", "layer")
	subject := digest.FromBytes(img).String()
	list := func(query string) (types []string, res *http.Response) {
		t.Helper()
		res, b := want(t, r, http.StatusOK, "GET", "/v2/a/referrers/"+subject+query, nil)
		var idx struct {
			MediaType string
			Manifests []struct {
				ArtifactType, Digest, MediaType string
				Size                            int64
				Annotations                     map[string]string
			}
		}
		if err := json.Unmarshal(b, &idx); err != nil || idx.MediaType != ociIndex || idx.Manifests == nil || res.Header.Get("Content-Type") != ociIndex {
			t.Fatalf("referrers: %v: %s", err, b)
		}
		for _, m := range idx.Manifests {
			types = append(types, m.ArtifactType+" "+m.Annotations["k"])
		}
		return types, res
	}
	if got, _ := list(""); len(got) != 0 {
		t.Errorf("referrers of nothing: %v", got)
	}
	refer := func(artifactType, annotation string) string {
		body := fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":%d},"annotations":{"k":%q}`, ociManifest, subject, len(img), annotation)
		if artifactType != "" {
			body += fmt.Sprintf(`,"artifactType":%q`, artifactType)
		}
		m := append(bytes.TrimSuffix(img, []byte("}")), body+"}"...)
		res, _ := want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/"+digest.FromBytes(m).String(), m, "Content-Type", ociManifest)
		if res.Header.Get("OCI-Subject") != subject {
			t.Errorf("OCI-Subject = %q", res.Header.Get("OCI-Subject"))
		}
		return digest.FromBytes(m).String()
	}
	refer("application/x.sbom", "one") // before its subject exists
	want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/t", img, "Content-Type", ociManifest)
	gone := refer("application/x.sig", "two")
	refer("", "three")
	if got, _ := list(""); !slices.Equal(got, []string{"application/x.sbom one", "application/x.sig two", "application/vnd.oci.image.config.v1+json three"}) {
		t.Errorf("referrers: %q", got)
	}
	got, res := list("?artifactType=application/x.sig")
	if !slices.Equal(got, []string{"application/x.sig two"}) || res.Header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("filtered referrers: %q, %v", got, res.Header)
	}
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+gone, nil)
	if got, _ := list("?artifactType=application/x.sig"); len(got) != 0 {
		t.Errorf("referrers after deletion: %q", got)
	}
	want(t, r, http.StatusBadRequest, "GET", "/v2/a/referrers/nonsense", nil)
	// Large annotations: the list comes in pages.
	for i := range 2 {
		refer("application/x.large", strings.Repeat(fmt.Sprint(i), 2_200_000))
	}
	got, res = list("?artifactType=application/x.large")
	if next, _, ok := strings.Cut(strings.TrimPrefix(res.Header.Get("Link"), "<"), ">"); !ok || len(got) != 1 {
		t.Errorf("%d referrers and Link %q", len(got), res.Header.Get("Link"))
	} else if got, _ := list(strings.TrimPrefix(next, "/v2/a/referrers/"+subject)); len(got) != 1 {
		t.Errorf("%d referrers on the second page", len(got))
	}
}

func TestChildOfAnIndexCannotBeDeleted(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	img := image(t, r, "a", "layer")
	child := digest.FromBytes(img).String()
	want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/"+child, img, "Content-Type", ociManifest)
	index := []byte(`{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[{"mediaType":"` + ociManifest + `","digest":"` + child + `","size":5}]}`)
	want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/t", index, "Content-Type", ociIndex)
	if _, b := want(t, r, http.StatusMethodNotAllowed, "DELETE", "/v2/a/manifests/"+child, nil); code(t, b) != "UNSUPPORTED" {
		t.Errorf("delete of a child: %s", b)
	}
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+digest.FromBytes(index).String(), nil)
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+child, nil)
}

func TestListsArePaged(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	m := image(t, r, "a", "layer")
	for _, tag := range []string{"b", "A", "c", "a"} {
		want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/"+tag, m, "Content-Type", ociManifest)
	}
	for _, repo := range []string{"c", "b/x", "kiln/staging/r1"} {
		want(t, r, http.StatusCreated, "PUT", "/v2/"+repo+"/manifests/t", image(t, r, repo, "layer"), "Content-Type", ociManifest)
	}
	for path, want := range map[string][]string{
		"/v2/a/tags/list":            {"A a b c"},
		"/v2/a/tags/list?n=3":        {"A a b", "c"},
		"/v2/a/tags/list?n=2":        {"A a", "b c"},
		"/v2/a/tags/list?n=4&last=a": {"b c"},
		"/v2/a/tags/list?n=0":        {""},
		"/v2/a/tags/list?last=z":     {""},
		"/v2/_catalog":               {"a b/x c"},
		"/v2/_catalog?n=1":           {"a", "b/x", "c"},
	} {
		if got := pages(t, r, path); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	want(t, r, http.StatusBadRequest, "GET", "/v2/a/tags/list?n=x", nil)
	want(t, r, http.StatusBadRequest, "GET", "/v2/a/tags/list?n=-1", nil)
}

// pages follows the links of a list.
func pages(t *testing.T, r *registrytest.Registry, path string) (out []string) {
	t.Helper()
	for path != "" {
		res, b := want(t, r, http.StatusOK, "GET", path, nil)
		var list struct{ Tags, Repositories []string }
		if err := json.Unmarshal(b, &list); err != nil || list.Tags == nil && list.Repositories == nil {
			t.Fatalf("%s: %v: %s", path, err, b)
		}
		out = append(out, strings.Join(append(list.Tags, list.Repositories...), " "))
		path, _, _ = strings.Cut(strings.TrimPrefix(res.Header.Get("Link"), "<"), ">")
	}
	return out
}
