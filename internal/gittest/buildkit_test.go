package gittest_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/buildkit"
	"kiln/internal/event"
	"kiln/internal/gittest"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
	"kiln/internal/source/git"
)

func TestMain(m *testing.M) {
	// The daemon is another process with the same race detector, and BuildKit's frontend races with
	// itself over a flag that is always set to true. This process is not affected.
	if err := os.Setenv("GORACE", "exitcode=0"); err != nil {
		panic(err)
	}
	solvertest.Main(m)
}

// A builder is a real daemon, with a registry to push to.
type builder struct {
	client   *buildkit.Client
	registry string
}

func newBuilder(t *testing.T) *builder {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	c, err := buildkit.New(buildkit.Config{Address: solvertest.StartDaemon(t), DialTimeout: 10 * time.Second, StopGrace: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return &builder{client: c, registry: strings.TrimPrefix(srv.URL, "http://")}
}

func mirrors(t *testing.T, dir string) *git.Mirrors {
	t.Helper()
	m, err := git.New(git.Config{Dir: dir, Allow: func(_ string, addr netip.Addr) bool { return addr.IsLoopback() },
		PlainHTTP: func(string) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func open(t *testing.T, m *git.Mirrors, ref git.Ref) *git.Source {
	t.Helper()
	s, err := m.Open(t.Context(), ref, git.Credential{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// build builds a Dockerfile of a source, as a run of its own does. It returns which files were sent.
func (b *builder) build(ctx context.Context, t *testing.T, s *git.Source, dockerfile string) (built solve.Built, sent []string, err error) {
	t.Helper()
	tree := &openings{FS: s, names: map[string]bool{}}
	ctx, stop := s.Guard(ctx)
	defer stop()
	session := b.client.Open(solve.SessionConfig{Run: s.Commit.ID[:12], Attempt: 1, Source: tree, SourceKey: s.Key(), Registry: b.registry, Insecure: true})
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := session.Close(ctx); err != nil {
			t.Errorf("session: %v", err)
		}
	}()
	built, err = session.Build(ctx, solve.Build{Step: "b", Dockerfile: dockerfile, Context: ".", Staging: b.registry + "/staging/x"},
		func(...event.LogEntry) {})
	if err != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return built, tree.sorted(), err
}

// openings notes which files of a tree are opened: BuildKit does so when it sends their content.
type openings struct {
	fsutil.FS
	mu    sync.Mutex
	names map[string]bool
}

func (o *openings) Open(p string) (io.ReadCloser, error) {
	o.mu.Lock()
	o.names[p] = true
	o.mu.Unlock()
	return o.FS.Open(p)
}

func (o *openings) sorted() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []string
	for name := range o.names {
		if name != "Dockerfile" && name != "one.Dockerfile" && name != ".dockerignore" { // always sent
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// image returns what an image of one layer has below dir, in the form of gittest's Archive.
func image(t *testing.T, ref, dir string) map[string]string {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(r)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%s: %d layers, %v", ref, len(layers), err)
	}
	rc, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	found := map[string]string{}
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		p, ok := strings.CutPrefix(strings.Trim(h.Name, "/"), dir+"/")
		switch {
		case !ok:
		case h.Typeflag == tar.TypeDir:
			found[p] = "d"
		case h.Typeflag == tar.TypeSymlink:
			found[p] = "l" + h.Linkname
		case h.Mode&0o100 != 0:
			found[p] = "x" + string(content)
		default:
			found[p] = "f" + string(content)
		}
	}
}

// TestBuildKitBuildsCommits has what can share a daemon. Its parts come one after the other.
func TestBuildKitBuildsCommits(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Write(".dockerignore", "odd/*\n!odd/-dash\n", 0)
	repo.Write("one.Dockerfile", "FROM scratch\nCOPY a/file /src/\n", 0)
	repo.Sample()
	repo.Write("Dockerfile", "FROM scratch\nCOPY . /src/\n", 0)
	first := repo.Commit("first")
	srv := gittest.Serve(t, root, "", "")
	m := mirrors(t, t.TempDir())
	ref := git.Ref{URL: srv.URL + "/r.git"}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	b := newBuilder(t)
	step := func(what, dockerfile string, want map[string]string, wantSent []string) solve.Built {
		t.Helper()
		built, sent, err := b.build(ctx, t, open(t, m, ref), dockerfile)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(want, image(t, built.Ref, "src")); diff != "" {
			t.Errorf("%s: image (-want +got):\n%s", what, diff)
		}
		if diff := cmp.Diff(wantSent, sent); diff != "" {
			t.Errorf("%s: files that were sent (-want +got):\n%s", what, diff)
		}
		return built
	}
	step("one file of many", "one.Dockerfile", map[string]string{"file": "fx\n"}, []string{"a/file"})
	was := visible(repo.Archive(first))
	built := step("all files", "", was, regular(was))
	repo.Write("a/file", "X\n", 0) // as long as before
	repo.Write("a.txt", "z\n", 0o755)
	repo.Git("rm", "-q", "empty")
	second := repo.Commit("second")
	step("three changes", "", visible(repo.Archive(second)), []string{"a.txt", "a/file"})
	repo.Commit("nothing changed")
	step("no change", "", visible(repo.Archive(second)), nil)
	repo.Git("reset", "-q", "--hard", first)
	repo.Commit("back")
	if back := step("back to the first", "", was, []string{"a.txt", "a/file", "empty"}); back.Digest != built.Digest {
		t.Errorf("the same files gave %s, then %s", built.Digest, back.Digest)
	}
	step("the changed file alone", "one.Dockerfile", map[string]string{"file": "fx\n"}, nil)
	unreadable(ctx, t, b, repo, srv)
}

// visible leaves out what .dockerignore does.
func visible(files map[string]string) map[string]string {
	for name := range files {
		if strings.HasPrefix(name, "odd/") && name != "odd/-dash" {
			delete(files, name)
		}
	}
	return files
}

func regular(files map[string]string) (names []string) {
	for name, content := range files {
		always := name == "Dockerfile" || name == "one.Dockerfile" || name == ".dockerignore"
		if (content[0] == 'f' || content[0] == 'x') && !always {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// unreadable builds from a mirror that is damaged, of a repository that is gone: the build must fail,
// not wait for the rest of a file.
func unreadable(ctx context.Context, t *testing.T, b *builder, repo *gittest.Repo, srv *gittest.Server) {
	t.Helper()
	repo.Write("big.bin", gittest.Noise(7, 3<<20), 0)
	repo.Commit("big")
	dir := t.TempDir()
	m := mirrors(t, dir)
	s := open(t, m, git.Ref{URL: srv.URL + "/r.git", Scope: "broken"})
	packs, _ := filepath.Glob(filepath.Join(dir, "*/*/objects/pack/*.pack"))
	if len(packs) != 1 {
		t.Fatalf("packs = %q", packs)
	}
	info, err := os.Stat(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(os.Chmod(packs[0], 0o600), os.Truncate(packs[0], info.Size()/2), os.Rename(repo.Dir, repo.Dir+".gone"))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = b.build(ctx, t, s, "")
	if ctx.Err() != nil || err == nil || !strings.Contains(err.Error(), "damaged") || !errors.Is(err, git.ErrRepositoryNotFound) {
		t.Errorf("build from a damaged mirror: %v, want why it cannot be read", err)
	}
}
