package registry_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"kiln/internal/registrytest"
)

func auth(r *registrytest.Registry) remote.Option {
	return remote.WithAuth(&authn.Basic{Username: "test", Password: r.Token})
}

func ref(t testing.TB, r *registrytest.Registry, s string) name.Reference {
	t.Helper()
	n, err := name.ParseReference(r.Host + "/" + s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func randomImage(t testing.TB, layerSize int64, layers int64) v1.Image {
	t.Helper()
	img, err := random.Image(layerSize, layers)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t testing.TB, r *registrytest.Registry, s string, img v1.Image) string {
	t.Helper()
	if err := remote.Write(ref(t, r, s), img, auth(r)); err != nil {
		t.Fatalf("push %s: %v", s, err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// pull fetches an image of which validate knows everything.
func pull(t testing.TB, r *registrytest.Registry, s string) string {
	t.Helper()
	img, err := remote.Image(ref(t, r, s), auth(r))
	if err != nil {
		t.Fatalf("pull %s: %v", s, err)
	}
	if err := validate.Image(img); err != nil {
		t.Fatalf("pull %s: %v", s, err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestGoContainerRegistryPushesAndPulls(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	for _, size := range []int64{10, 1000, 200_000} {
		img := randomImage(t, size, 3)
		want := push(t, r, "team/app:1", img)
		if got := pull(t, r, "team/app:1"); got != want {
			t.Errorf("layers of %d bytes: pulled %s, want %s", size, got, want)
		}
	}
	// The same blobs again: mounted, not sent.
	want := push(t, r, "team/app:2", randomImage(t, 100_000, 2))
	img, err := remote.Image(ref(t, r, "team/app:2"), auth(r))
	if err != nil {
		t.Fatal(err)
	}
	push(t, r, "other/app:2", img)
	if got := pull(t, r, "other/app@"+want); got != want {
		t.Errorf("pulled %s, want %s", got, want)
	}
}

func TestGoContainerRegistryPushesAnIndexAndDeletes(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	idx, err := random.Index(1000, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: randomImage(t, 100_000, 1)})
	tag := ref(t, r, "team/multi:1")
	if err := remote.WriteIndex(tag, idx, auth(r)); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(tag, auth(r))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Fatal(err)
	}
	repo := tag.Context()
	if err := remote.Tag(repo.Tag("2"), got, auth(r)); err != nil {
		t.Fatal(err)
	}
	tags, err := remote.List(repo, auth(r))
	if err != nil || !slices.Equal(tags, []string{"1", "2"}) {
		t.Fatalf("tags %v, %v", tags, err)
	}
	if err := remote.Delete(tag, auth(r)); err != nil {
		t.Fatal(err)
	}
	if tags, err := remote.List(repo, auth(r)); err != nil || !slices.Equal(tags, []string{"2"}) {
		t.Fatalf("after untagging: tags %v, %v", tags, err)
	}
	d, err := got.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(repo.Digest(d.String()), auth(r)); err != nil {
		t.Fatal(err)
	}
	if tags, err := remote.List(repo, auth(r)); err != nil || len(tags) != 0 {
		t.Fatalf("after deleting: tags %v, %v", tags, err)
	}
	if _, err := remote.Get(repo.Tag("2"), auth(r)); err == nil {
		t.Fatal("a deleted manifest can be pulled by its tag")
	}
	names, err := remote.Catalog(t.Context(), repo.Registry, auth(r))
	if err != nil || !slices.Equal(names, []string{"team/multi"}) {
		t.Fatalf("catalog %v, %v", names, err)
	}
}

// skopeo runs skopeo with credentials for r, which it has from logging in.
func skopeo(t *testing.T, r *registrytest.Registry) func(args ...string) []byte {
	authFile := filepath.Join(t.TempDir(), "auth.json")
	run := func(args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "skopeo", args...)
		cmd.Env = append(os.Environ(), "REGISTRY_AUTH_FILE="+authFile)
		cmd.Stdin = strings.NewReader(r.Token)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("skopeo %q: %v\n%s", args, err, out)
		}
		return out
	}
	run("login", "--tls-verify=false", "--username", "test", "--password-stdin", r.Host)
	return run
}

func TestSkopeoCopiesInspectsAndDeletes(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	want := push(t, r, "team/app:1", randomImage(t, 150_000, 2))
	run := skopeo(t, r)
	layout := "oci:" + filepath.Join(t.TempDir(), "layout") + ":x"
	src, dst := "docker://"+r.Host+"/team/app:1", "docker://"+r.Host+"/copy/app:2"
	run("--insecure-policy", "copy", "--src-tls-verify=false", src, layout)
	run("--insecure-policy", "copy", "--dest-tls-verify=false", layout, dst)
	run("--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", src, dst+"b")
	if out := run("inspect", "--tls-verify=false", dst+"b"); !bytes.Contains(out, []byte(want)) {
		t.Errorf("skopeo inspect: no %s in\n%s", want, out)
	}
	if out := run("list-tags", "--tls-verify=false", "docker://"+r.Host+"/copy/app"); !bytes.Contains(out, []byte(`"2b"`)) {
		t.Errorf("skopeo list-tags:\n%s", out)
	}
	run("delete", "--tls-verify=false", dst+"b")
	if _, err := r.Store.Resolve(t.Context(), "copy/app", "2b"); err == nil {
		t.Error("the deleted tag still resolves")
	}
}

// TestSkopeoCopiesAllPlatforms copies an index with everything in it, to another repository, to a directory and back.
func TestSkopeoCopiesAllPlatforms(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	idx := mutate.IndexMediaType(empty.Index, types.DockerManifestList) // of Docker images
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}, {OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.2700"}} {
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: randomImage(t, 1000, 2), Descriptor: v1.Descriptor{Platform: &p}})
	}
	if err := remote.WriteIndex(ref(t, r, "team/multi:1"), idx, auth(r)); err != nil {
		t.Fatal(err)
	}
	d, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	run := skopeo(t, r)
	copyAll := func(from, to string) {
		t.Helper()
		run("--insecure-policy", "copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false", from, to)
	}
	at, dir := "docker://"+r.Host+"/", "dir:"+filepath.Join(t.TempDir(), "all")
	copyAll(at+"team/multi:1", at+"copy/multi:2")
	copyAll(at+"copy/multi:2", dir)
	copyAll(dir, at+"back/multi:3")
	m, err := r.Store.Manifest(t.Context(), "back/multi", "3")
	if err != nil || m.Digest != d.String() {
		t.Fatalf("came back as %s, %v, was %s", m.Digest, err, d)
	}
	for _, child := range children(t, m.Body) {
		readImage(t, r.Store, "back/multi", child)
	}
	// The one of this platform, as OCI has it, which is another manifest.
	run("--insecure-policy", "copy", "--format", "oci", "--src-tls-verify=false", "--dest-tls-verify=false", at+"team/multi:1", at+"oci/app:1")
	if m, err = r.Store.Manifest(t.Context(), "oci/app", "1"); err != nil || m.MediaType != ociManifest {
		t.Errorf("%s, %v", m.MediaType, err)
	}
	pull(t, r, "oci/app:1")
}

func TestAnonymousIsAskedForCredentials(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	for _, path := range []string{"/v2/", "/v2/a/tags/list", "/v2/_catalog", "/v2/nothing", "/v2/UP/tags/list", "/v2/.kiln/fence/r1"} {
		res, err := http.Get(r.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := res.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusUnauthorized || res.Header.Get("WWW-Authenticate") != `Basic realm="kiln"` || !bytes.Contains(body, []byte(`"UNAUTHORIZED"`)) {
			t.Errorf("GET %s: %d %s %s", path, res.StatusCode, res.Header, body)
		}
	}
}
