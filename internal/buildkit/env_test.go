package buildkit_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/buildkit"
	"kiln/internal/buildkit/cni"
	"kiln/internal/event"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
)

func TestMain(m *testing.M) {
	if cni.Called(os.Args[0], os.Getenv("CNI_COMMAND")) {
		os.Exit(cni.Main(os.Args[0]))
	}
	// The daemon is another process with the same race detector, and BuildKit's frontend races with
	// itself over a flag that is always set to true. This process is not affected.
	if err := os.Setenv("GORACE", "exitcode=0"); err != nil {
		panic(err)
	}
	solvertest.Main(m)
}

// TestSession has the tests that can share a daemon.
func TestSession(t *testing.T) {
	e := newEnv(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"build", testBuild}, {"build options", testBuildOptions}, {"run", testRun}, {"containers", testContainers},
		{"close while running", testCloseStops}, {"credentials", testCredentials},
		{"allowed images", testAllowedImages}, {"docker", testDocker}, {"workspaces of a changing source", testSeeds},
		{"workspace of a large source", testShown},
		{"services", testServices}, {"isolation", testIsolation}, {"close", testClose}, {"host", testHost},
		{"link-local addresses", testLinkLocal}, {"unprepared for SIGTERM", testUnprepared},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, e) })
	}
}

// An env is a daemon, a registry with a base image and a client of the daemon.
type env struct {
	client   *buildkit.Client
	address  string
	registry string // host
	base     string // reference of an image with busybox
	digest   string // of base
}

func newEnv(t testing.TB) *env {
	t.Helper()
	return newEnvAt(t, solvertest.StartDaemon(t))
}

func newEnvAt(t testing.TB, address string) *env {
	t.Helper()
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	e := &env{address: address, registry: strings.TrimPrefix(srv.URL, "http://")}
	e.base = e.registry + "/base/busybox:1"
	e.digest = pushImage(t, e.base, busybox(t))

	var err error
	e.client, err = buildkit.New(buildkit.Config{Address: address, DialTimeout: 3 * time.Second, StopGrace: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.client.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// open returns a session on source that is closed when t ends.
func (e *env) open(t testing.TB, cfg solve.SessionConfig) solve.Session {
	t.Helper()
	cfg.Run, cfg.Attempt, cfg.Registry, cfg.Insecure = "r1", 1, e.registry, true
	s := e.client.Open(cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// staging returns a repository to push to.
func (e *env) staging() string { return e.registry + "/staging/x" }

// busybox returns an image with a static busybox and its usual names.
func busybox(t testing.TB) v1.Image {
	t.Helper()
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"bin/busybox": string(data), "etc/passwd": "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n", "etc/group": "root:x:0:\nbob:x:1000:\n"}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, d := range []string{"bin/", "etc/", "tmp/", "root/"} {
		writeTar(t, w, &tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	for n, c := range files {
		writeTar(t, w, &tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(c))}, c)
	}
	for _, n := range strings.Fields("sh cat ls echo true false sleep id pwd env mkdir rm ln chmod touch stat dd head seq yes hostname wc cp mv test find sort date trap kill grep readlink") {
		writeTar(t, w, &tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, "")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	return withConfig(t, img, v1.Config{Cmd: []string{"sh"}})
}

func writeTar(t testing.TB, w *tar.Writer, h *tar.Header, data string) {
	t.Helper()
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, data); err != nil {
		t.Fatal(err)
	}
}

func withConfig(t testing.TB, img v1.Image, c v1.Config) v1.Image {
	t.Helper()
	f, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	f = f.DeepCopy()
	f.OS, f.Architecture, f.Config = "linux", "amd64", c
	if img, err = mutate.ConfigFile(img, f); err != nil {
		t.Fatal(err)
	}
	return img
}

func pushImage(t testing.TB, ref string, img v1.Image) (digest string) {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// pull returns the image at ref.
func pull(t testing.TB, ref string) v1.Image {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// listing returns "path mode content-or-link" of everything in img's layers from below dir.
func listing(t testing.TB, img v1.Image, dir string) []string {
	t.Helper()
	rc := mutate.Extract(img)
	defer rc.Close()
	var out []string
	r := tar.NewReader(rc)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		p, below := strings.CutPrefix(strings.TrimPrefix(h.Name, "/"), dir+"/")
		if !below || p == "" || h.Typeflag == tar.TypeDir {
			continue
		}
		content := "-> " + h.Linkname
		if h.Typeflag == tar.TypeReg {
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			content = string(data)
		}
		out = append(out, fmt.Sprintf("%s %v %s", p, fs.FileMode(h.Mode).Perm(), strings.TrimSpace(content)))
	}
	slices.Sort(out)
	return out
}

// source writes files into a directory and returns it as a source tree.
func source(t testing.TB, files map[string]string) fsutil.FS {
	t.Helper()
	dir := t.TempDir()
	for n, c := range files {
		p := filepath.Join(dir, n)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(c), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// A journal collects log entries.
type journal struct {
	mu      sync.Mutex
	entries []event.LogEntry
	wake    chan struct{}
}

func newJournal() *journal { return &journal{wake: make(chan struct{}, 1)} }

func (j *journal) log(e ...event.LogEntry) {
	j.mu.Lock()
	j.entries = append(j.entries, e...)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// text returns the output of one stream.
func (j *journal) text(stream int) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for _, e := range j.entries {
		if e.Data != nil && e.Stream == stream {
			b.Write(e.Data)
		}
	}
	return b.String()
}

func (j *journal) all() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for _, e := range j.entries {
		switch {
		case e.Vertex != nil:
			fmt.Fprintf(&b, "vertex %s cached=%v err=%q\n", e.Vertex.Name, e.Vertex.Cached, e.Vertex.Error)
		case e.Data != nil:
			fmt.Fprintf(&b, "%d: %s\n", e.Stream, e.Data)
		}
	}
	return b.String()
}

// await blocks until stdout contains want.
func (j *journal) await(t testing.TB, want string) {
	t.Helper()
	timeout := time.After(time.Minute)
	for !strings.Contains(j.text(event.StreamStdout), want) {
		select {
		case <-j.wake:
		case <-timeout:
			t.Fatalf("no %q in the output: %s", want, j.all())
		}
	}
}
