package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registrytest"
)

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
)

// call sends one request and returns the answer and its body.
func call(t testing.TB, r *registrytest.Registry, method, path string, body []byte, header ...string) (*http.Response, []byte) {
	t.Helper()
	if path == "" || path[0] == '/' {
		path = r.URL + path
	}
	req, err := http.NewRequestWithContext(t.Context(), method, path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("test", r.Token)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return res, b
}

// want is call, which must answer with status.
func want(t testing.TB, r *registrytest.Registry, status int, method, path string, body []byte, header ...string) (*http.Response, []byte) {
	t.Helper()
	res, b := call(t, r, method, path, body, header...)
	if res.StatusCode != status {
		t.Fatalf("%s %s: status %d, want %d: %s", method, path, res.StatusCode, status, b)
	}
	return res, b
}

func putBlob(t testing.TB, r *registrytest.Registry, repo string, content []byte) string {
	t.Helper()
	d := digest.FromBytes(content).String()
	res, _ := want(t, r, http.StatusAccepted, "POST", "/v2/"+repo+"/blobs/uploads/", nil)
	want(t, r, http.StatusCreated, "PUT", res.Header.Get("Location")+"?digest="+d, content)
	return d
}

func manifestOf(config string, configSize int, layer string, layerSize int) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		ociManifest, config, configSize, layer, layerSize)
}

// fetch gets an image as it was pushed, checks every byte of it, and returns its digest.
func fetch(t testing.TB, r *registrytest.Registry, repo, tag string) string {
	t.Helper()
	_, body := want(t, r, http.StatusOK, "GET", "/v2/"+repo+"/manifests/"+tag, nil)
	for _, d := range descriptors(t, body) {
		_, b := want(t, r, http.StatusOK, "GET", "/v2/"+repo+"/blobs/"+d.String(), nil)
		if got := d.Algorithm().FromBytes(b); got != d {
			t.Fatalf("blob %s of %s:%s is %s", d, repo, tag, got)
		}
	}
	return digest.FromBytes(body).String()
}

// descriptors returns the digests of a manifest's config and layers.
func descriptors(t testing.TB, manifest []byte) (out []digest.Digest) {
	t.Helper()
	var m struct {
		Config struct{ Digest digest.Digest }
		Layers []struct{ Digest digest.Digest }
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	for _, l := range append(m.Layers, m.Config) {
		out = append(out, l.Digest)
	}
	return out
}
