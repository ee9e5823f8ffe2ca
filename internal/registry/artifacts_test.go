package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registrytest"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
	emptyType      = "application/vnd.oci.empty.v1+json"
)

// putManifest pushes a manifest and reads it back, which must give the same bytes. It returns its digest.
func putManifest(t testing.TB, r *registrytest.Registry, repo, ref, mediaType, body string) string {
	t.Helper()
	path := "/v2/" + repo + "/manifests/" + ref
	res, _ := want(t, r, http.StatusCreated, "PUT", path, []byte(body), "Content-Type", mediaType)
	d := res.Header.Get("Docker-Content-Digest")
	for _, path := range []string{path, "/v2/" + repo + "/manifests/" + d} {
		res, b := want(t, r, http.StatusOK, "GET", path, nil, "Accept", mediaType)
		if string(b) != body || res.Header.Get("Content-Type") != mediaType || res.Header.Get("Docker-Content-Digest") != d {
			t.Fatalf("%s: %d bytes, want %d: %v", path, len(b), len(body), res.Header)
		}
	}
	return d
}

// descriptor pushes content and describes it.
func descriptor(t testing.TB, r *registrytest.Registry, repo, mediaType, content string) string {
	t.Helper()
	return link(mediaType, putBlob(t, r, repo, []byte(content)), len(content))
}

// listReferrers returns what the registry says about a subject.
func listReferrers(t testing.TB, r *registrytest.Registry, repo, subject, artifactType string) (out []string) {
	t.Helper()
	_, b := want(t, r, http.StatusOK, "GET", "/v2/"+repo+"/referrers/"+subject+"?artifactType="+artifactType, nil)
	var list struct {
		Manifests []struct {
			MediaType, ArtifactType, Digest string
			Size                            int64
			Annotations                     map[string]string
		}
	}
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Manifests {
		out = append(out, fmt.Sprint(m.MediaType, " ", m.ArtifactType, " ", m.Digest, " ", m.Size, " ", m.Annotations))
	}
	return out
}

func TestHelmCharts(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	config := descriptor(t, r, "charts/web", "application/vnd.cncf.helm.config.v1+json", `{"name":"web","version":"1.2.3+build.4","apiVersion":"v2"}`)
	chart := descriptor(t, r, "charts/web", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", strings.Repeat("chart", 20_000))
	provenance := descriptor(t, r, "charts/web", "application/vnd.cncf.helm.chart.provenance.v1.prov", "-----BEGIN PGP SIGNED MESSAGE-----")
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s,%s],"annotations":{"org.opencontainers.image.version":"1.2.3+build.4"}}`,
		ociManifest, config, chart, provenance)
	putManifest(t, r, "charts/web", "1.2.3_build.4", ociManifest, body) // no tag has a plus
	fetch(t, r, "charts/web", "1.2.3_build.4")
	// helm pull asks for versions by listing tags.
	if got := pages(t, r, "/v2/charts/web/tags/list"); !slices.Equal(got, []string{"1.2.3_build.4"}) {
		t.Errorf("versions: %q", got)
	}
}

// TestArtifactsOfAnyType pushes what oras does: files with titles, and a manifest that is all there is.
func TestArtifactsOfAnyType(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	empty := strings.Replace(descriptor(t, r, "a", emptyType, "{}"), "}", `,"data":"e30="}`, 1)
	file := strings.Replace(descriptor(t, r, "a", "text/plain", "hello"), "}", `,"annotations":{"org.opencontainers.image.title":"hello.txt"},"x-own":{"field":[1]}}`, 1)
	m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/x.notes","config":%s,"layers":[%s],"x-own":"field"}`, ociManifest, empty, file)
	putManifest(t, r, "a", "notes", ociManifest, m)
	fetch(t, r, "a", "notes")
	for name, layers := range map[string]string{"no-layers": `,"layers":[]`, "none-named": "", "empty-layer": `,"layers":[` + empty + `]`} {
		putManifest(t, r, "a", name, ociManifest, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/x.bare","config":%s%s}`, ociManifest, empty, layers))
	}
	zero := descriptor(t, r, "a", ociLayer, "")
	putManifest(t, r, "a", "zero", ociManifest, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s,%[3]s]}`, ociManifest, empty, zero))
	fetch(t, r, "a", "zero")
	// The largest manifest that is accepted.
	frame := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[],"annotations":{"x":"%%s"}}`, ociManifest, empty)
	putManifest(t, r, "a", "large", ociManifest, fmt.Sprintf(frame, strings.Repeat("x", 4<<20-len(frame)+len("%s"))))
	sound(t, r.Store)
}

// TestSignatures pushes signatures in the ways that cosign and notation have.
func TestSignatures(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	body := string(image(t, r, "a", "layer"))
	subject := putManifest(t, r, "a", "1", ociManifest, body)
	fallback := strings.Replace(subject, ":", "-", 1)
	// By a tag made of the digest.
	payload := strings.Replace(descriptor(t, r, "a", "application/vnd.dev.cosign.simplesigning.v1+json", `{"critical":{}}`), "}", `,"annotations":{"dev.cosignproject.cosign/signature":"MEU="}}`, 1)
	config := descriptor(t, r, "a", ociConfig, `{"architecture":"","os":""}`)
	putManifest(t, r, "a", fallback+".sig", ociManifest, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, ociManifest, config, payload))
	fetch(t, r, "a", fallback+".sig")
	// By a subject.
	bundle := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json","config":%s,"layers":[%s],"subject":%s,"annotations":{"k":"v"}}`,
		ociManifest, descriptor(t, r, "a", emptyType, "{}"), payload, link(ociManifest, subject, len(body)))
	signature := putManifest(t, r, "a", digest.FromString(bundle).String(), ociManifest, bundle)
	one := fmt.Sprintf("%s application/vnd.dev.sigstore.bundle.v0.3+json %s %d map[k:v]", ociManifest, signature, len(bundle))
	if got := listReferrers(t, r, "a", subject, "application/vnd.dev.sigstore.bundle.v0.3%2Bjson"); !slices.Equal(got, []string{one}) {
		t.Errorf("referrers: %q, want %q", got, one)
	}
	// By the list that clients keep for registries without referrers. It is a tag as any other.
	list := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, link(ociManifest, signature, len(bundle)))
	putManifest(t, r, "a", fallback, ociIndex, list)
	if got := listReferrers(t, r, "a", subject, ""); !slices.Equal(got, []string{one}) {
		t.Errorf("referrers: %q, want %q", got, one)
	}
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+fallback, nil)
	want(t, r, http.StatusNotFound, "GET", "/v2/a/manifests/"+fallback, nil)
}

func TestReferrersOfAndByIndexes(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	absent := digest.SHA512.FromString("absent").String()
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"artifactType":"application/x.set","manifests":[],"subject":%s,"annotations":{"n":"1"}}`,
		ociIndex, link(ociManifest, absent, 7))
	d := digest.SHA512.FromString(index).String()
	res, _ := want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/"+d, []byte(index), "Content-Type", ociIndex)
	if got := res.Header.Get("OCI-Subject"); got != absent {
		t.Errorf("OCI-Subject = %q", got)
	}
	one := fmt.Sprintf("%s application/x.set %s %d map[n:1]", ociIndex, d, len(index))
	if got := listReferrers(t, r, "a", absent, ""); !slices.Equal(got, []string{one}) {
		t.Errorf("referrers: %q, want %q", got, one)
	}
	// An index without a type has none: it has no config to take one from.
	plain := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[],"subject":%s}`, ociIndex, link(ociIndex, d, len(index)))
	p := putManifest(t, r, "a", "plain", ociIndex, plain)
	if got, one := listReferrers(t, r, "a", d, ""), fmt.Sprintf("%s  %s %d map[]", ociIndex, p, len(plain)); !slices.Equal(got, []string{one}) {
		t.Errorf("referrers: %q, want %q", got, one)
	}
	for _, repo := range []string{"b", "never/pushed"} {
		if got := listReferrers(t, r, repo, d, ""); len(got) != 0 {
			t.Errorf("referrers in %s: %q", repo, got)
		}
	}
}

// TestWindowsImages pushes images whose layers must not be distributed: their owner keeps them.
func TestWindowsImages(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	const repo = "win/app"
	base := strings.Repeat("windows", 15_000)
	var list []string
	for _, c := range []struct{ manifest, config, foreign, layer string }{
		{dockerManifest, "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"},
		{ociManifest, ociConfig, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+gzip"},
	} {
		config := descriptor(t, r, repo, c.config, fmt.Sprintf(`{"os":"windows","os.version":"10.0.20348.2700","architecture":"amd64","n":%d}`, len(list)))
		foreign := strings.Replace(link(c.foreign, digest.FromString(base).String(), len(base)), "}", `,"urls":["https://mcr.invalid/v2/blobs/x"]}`, 1)
		m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s,%s]}`, c.manifest, config, foreign, descriptor(t, r, repo, c.layer, "app"))
		d := putManifest(t, r, repo, "ltsc"+fmt.Sprint(len(list)), c.manifest, m)
		list = append(list, strings.Replace(link(c.manifest, d, len(m)), "}", `,"platform":{"os":"windows","architecture":"amd64","os.version":"10.0.20348.2700","os.features":["win32k"]}}`, 1))
	}
	want(t, r, http.StatusNotFound, "HEAD", "/v2/"+repo+"/blobs/"+digest.FromString(base).String(), nil)
	putManifest(t, r, repo, "latest", dockerList, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, dockerList, strings.Join(list, ",")))
	putManifest(t, r, repo, "oci", ociIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, strings.Join(list, ",")))
	// Who has the right to may push them nevertheless.
	putBlob(t, r, repo, []byte(base))
	fetch(t, r, repo, "ltsc0")
	sound(t, r.Store)
}

func TestNestedIndexes(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	body := string(image(t, r, "a", "layer"))
	inner := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, link(ociManifest, putManifest(t, r, "a", "image", ociManifest, body), len(body)))
	absent := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, ociIndex, link(ociIndex, digest.FromString(inner).String(), len(inner)))
	if _, b := want(t, r, http.StatusBadRequest, "PUT", "/v2/a/manifests/outer", []byte(absent), "Content-Type", ociIndex); code(t, b) != "MANIFEST_BLOB_UNKNOWN" {
		t.Errorf("index of an index that is not there: %s", b)
	}
	d := putManifest(t, r, "a", digest.SHA512.FromString(inner).String(), ociIndex, inner)
	outer := putManifest(t, r, "a", "outer", ociIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`, ociIndex, link(ociIndex, d, len(inner)), link(ociManifest, digest.FromString(body).String(), len(body))))
	want(t, r, http.StatusMethodNotAllowed, "DELETE", "/v2/a/manifests/"+d, nil)
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+outer, nil)
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+d, nil)
	fetch(t, r, "a", "image")
	sound(t, r.Store)
}

// TestChunkWithoutALength streams: neither the chunks nor the blob say how long they are.
func TestChunkWithoutALength(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	content := bytes.Repeat([]byte("stream"), 50_000)
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		loc := beginUpload(t, r, "a")
		for _, part := range [][]byte{content[:1], content[1:200_000], content[200_000:]} {
			req, err := http.NewRequestWithContext(t.Context(), "PATCH", r.URL+loc, struct{ *bytes.Reader }{bytes.NewReader(part)})
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("test", r.Token)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusAccepted {
				t.Fatalf("chunk: %s, %v", res.Status, err)
			}
		}
		d := alg.FromBytes(content).String()
		want(t, r, http.StatusCreated, "PUT", loc+"?digest="+d, nil)
		if _, b := want(t, r, http.StatusOK, "GET", "/v2/a/blobs/"+d, nil); !bytes.Equal(b, content) {
			t.Errorf("%s: other content", alg)
		}
		want(t, r, http.StatusCreated, "POST", "/v2/b/blobs/uploads/?from=a&mount="+d, nil)
	}
}
