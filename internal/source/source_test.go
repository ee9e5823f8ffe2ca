package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sync/errgroup"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// A server is a registry and the upload API over it.
type server struct {
	url      string
	reg      *registrytest.Registry
	contexts *Contexts
	received atomic.Int64 // bytes of request bodies
	requests atomic.Int64
}

func startServer(t testing.TB) *server {
	t.Helper()
	s := &server{reg: registrytest.Start(t)}
	s.contexts = &Contexts{Blobs: In(s.reg.Store, func(m registry.Manifest) []byte { return m.Body },
		registry.ErrRepositoryUnknown, registry.ErrManifestUnknown, registry.ErrBlobUnknown)}
	h := &Handler{Contexts: s.contexts}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		r.Body = countingBody{r.Body, &s.received}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

type countingBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (c countingBody) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func (s *server) upload(t testing.TB, dir string) *Tree {
	t.Helper()
	tree := scan(t, dir, ScanOptions{})
	if err := Upload(t.Context(), http.DefaultClient, s.url, "", "key of "+dir, tree, dir, nil); err != nil {
		t.Fatal(err)
	}
	return tree
}

// local opens a context beside the registry, remote over HTTP as a worker elsewhere does.
func (s *server) local(t testing.TB) *Opener {
	t.Helper()
	return &Opener{Blobs: s.contexts.Blobs, Cache: newCache(t, t.TempDir(), 0)}
}

func (s *server) remote(t testing.TB) *Opener {
	t.Helper()
	return &Opener{Blobs: Remote{BaseURL: s.reg.URL, Token: s.reg.Token}, Cache: newCache(t, t.TempDir(), 0)}
}

func newCache(t testing.TB, dir string, max int64) *Cache {
	t.Helper()
	c, err := NewCache(dir, max)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func scan(t testing.TB, dir string, opt ScanOptions) *Tree {
	t.Helper()
	tree, err := Scan(t.Context(), dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func open(t testing.TB, o *Opener, id string) *Source {
	t.Helper()
	src, err := o.Open(t.Context(), Ref(id))
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// write creates files below dir; a name that ends in a slash is a directory.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		parent := filepath.Dir(p)
		if strings.HasSuffix(name, "/") {
			parent = p
		}
		if err := os.MkdirAll(parent, 0o755); err != nil {
			t.Fatal(err)
		}
		if parent == p {
			continue
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// randomText is n bytes that do not compress and differ by seed.
func randomText(seed uint64, n int) string {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// oddTree fills dir with everything that a context can hold.
func oddTree(t testing.TB, dir string) {
	t.Helper()
	write(t, dir, map[string]string{
		"Dockerfile": "FROM scratch\nCOPY . /\n", "a/b": "1", "a-b": "2", "a.b": "3", "a/c/d": "4", "aa": "5",
		"empty": "", "empty-dir/": "", "dir/nested/": "", "big": randomText(1, 3<<20), "same": "1",
		"spa ce": "x", "new\nline": "x", "ünï/日本": "x", `back\slash`: "x", "star*": "x", "-dash": "x", "a/b-": "x", "quote\"'": "x",
	})
	for name, mode := range map[string]fs.FileMode{
		"a/b": 0o755, "aa": 0o600, "a-b": 0o444, "same": 0o755 | fs.ModeSetuid, "empty-dir": 0o777 | fs.ModeSticky, "a/c": 0o700,
	} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"link": "a/b", "a/up": "../aa", "dangling": "nowhere", "outside": "/etc/passwd", "a/escape": "../../../etc", "dirlink": "a",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "aa"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	old := time.Date(1999, 12, 31, 23, 59, 59, 123456789, time.UTC)
	if err := os.Chtimes(filepath.Join(dir, "aa"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(dir, "empty-dir"), old, old); err != nil {
		t.Fatal(err)
	}
}

// snapshot describes what is in a directory.
func snapshot(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%q %v", strings.TrimPrefix(p, dir), fi.Mode())
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %v %s", fi.ModTime().UnixNano(), digest.FromBytes(b))
		default:
			line += fmt.Sprintf(" %v", fi.ModTime().UnixNano())
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A pipe is one end of fsutil's protocol.
type pipe struct {
	ctx context.Context
	in  <-chan []byte
	out chan<- []byte
}

func (p pipe) Context() context.Context { return p.ctx }

func (p pipe) SendMsg(m any) error {
	b, err := m.(*types.Packet).Marshal()
	if err != nil {
		return err
	}
	select {
	case p.out <- b:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p pipe) RecvMsg(m any) error {
	select {
	case b, ok := <-p.in:
		if !ok {
			return io.EOF
		}
		*m.(*types.Packet) = types.Packet{}
		return m.(*types.Packet).Unmarshal(b)
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// transfer sends f to dest as a build does.
func transfer(ctx context.Context, f fsutil.FS, dest string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	there, back := make(chan []byte, 64), make(chan []byte, 64)
	g.Go(func() error {
		defer close(there)
		return fsutil.Send(ctx, pipe{ctx: ctx, in: back, out: there}, f, nil)
	})
	g.Go(func() error {
		return fsutil.Receive(ctx, pipe{ctx: ctx, in: there, out: back}, dest, fsutil.ReceiveOpt{})
	})
	return g.Wait()
}

func TestRoundTripEqualsTheDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	oddTree(t, dir)
	s := startServer(t)
	id := s.upload(t, dir).ID()
	for name, opener := range map[string]*Opener{"local": s.local(t), "remote": s.remote(t)} {
		dest := t.TempDir()
		src := open(t, opener, id)
		if err := transfer(t.Context(), src, dest); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(snapshot(t, dir), snapshot(t, dest)); diff != "" {
			t.Errorf("%s: directory and copy differ:\n%s", name, diff)
		}
		if again := scan(t, dest, ScanOptions{}); again.ID() != id {
			t.Errorf("%s: the copy's ID differs", name)
		}
	}
}

func TestWalkIsFsutilsWalk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	oddTree(t, dir)
	s := startServer(t)
	src := open(t, s.local(t), s.upload(t, dir).ID())
	real, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	walked := func(f fsutil.FS, target string, skip ...string) (out []string) {
		var v fsutil.Validator
		err := f.Walk(t.Context(), target, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				out = append(out, fmt.Sprintf("%s: not there: %v", p, errors.Is(err, fs.ErrNotExist)))
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			if target == "/" {
				if err := v.HandleChange(fsutil.ChangeKindAdd, p, fi, nil); err != nil {
					t.Error(err)
				}
			}
			out = append(out, fmt.Sprintf("%s %s %v %v", p, d.Name(), fi.Mode(), d.IsDir()))
			if slices.Contains(skip, p) {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			t.Errorf("walk %q: %v", target, err)
		}
		return out
	}
	for _, target := range []string{"/", "", ".", "a", "/a", "a/b", "a/c/d", "absent", "a/absent", "empty-dir", "big/below"} {
		if target == "big/below" { // a real directory says ENOTDIR here, which means the same
			if got := walked(src, target); len(got) != 1 {
				t.Errorf("walk %q = %q, want one call", target, got)
			}
			continue
		}
		if diff := cmp.Diff(walked(real, target), walked(src, target)); diff != "" {
			t.Errorf("walk %q differs:\n%s", target, diff)
		}
	}
	for _, skip := range []string{"a", "a/c", "a/b", "a-b", "star*", "dir"} {
		if diff := cmp.Diff(walked(real, "/", skip), walked(src, "/", skip)); diff != "" {
			t.Errorf("walk without %q differs:\n%s", skip, diff)
		}
	}
	for _, paths := range [][]string{{"link"}, {"a/up"}, {"dirlink/c"}, {"a*"}, {"absent"}, {"a/escape/x"}} {
		want, err1 := fsutil.FollowLinks(real, paths)
		got, err2 := fsutil.FollowLinks(src, paths)
		if err1 != nil || err2 != nil || !slices.Equal(want, got) {
			t.Errorf("FollowLinks(%q) = %q, %v, want %q, %v", paths, got, err2, want, err1)
		}
	}
}

func TestOnlyWhatIsReadIsFetched(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "FROM x", "big": randomText(2, 2<<20)})
	s := startServer(t)
	s.upload(t, dir)
	write(t, dir, map[string]string{"Dockerfile": "FROM y"}) // lives in a pack of its own
	tree := s.upload(t, dir)

	counted := &countingReader{Reader: Remote{BaseURL: s.reg.URL, Token: s.reg.Token}}
	src := open(t, &Opener{Blobs: counted, Cache: newCache(t, t.TempDir(), 0)}, tree.ID())
	after := counted.blobs.Load()
	if err := src.Walk(t.Context(), "/", func(string, fs.DirEntry, error) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if n := counted.blobs.Load() - after; n != 0 {
		t.Errorf("a walk fetched %d packs", n)
	}
	b, err := src.ReadFile(t.Context(), "Dockerfile", 100)
	if err != nil || string(b) != "FROM y" {
		t.Fatalf("ReadFile = %q, %v", b, err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if b, err := src.ReadFile(t.Context(), "big", 4<<20); err != nil || string(b) != randomText(2, 2<<20) {
				t.Errorf("ReadFile of big: %d bytes, %v", len(b), err)
			}
		})
	}
	wg.Wait()
	if n := counted.blobs.Load() - after; n != 2 {
		t.Errorf("%d packs were fetched, want 2", n)
	}
}

type countingReader struct {
	Reader
	blobs atomic.Int64
}

func (c *countingReader) BlobReader(ctx context.Context, repo string, d digest.Digest) (io.ReadCloser, int64, error) {
	c.blobs.Add(1)
	return c.Reader.BlobReader(ctx, repo, d)
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	oddTree(t, dir)
	s := startServer(t)
	src := open(t, s.local(t), s.upload(t, dir).ID())
	for p, want := range map[string]string{"a/c/d": "4", "/aa": "5", "empty": "", "./a/../aa": "5", "../../aa": "5"} {
		if b, err := src.ReadFile(t.Context(), p, 10); err != nil || string(b) != want {
			t.Errorf("ReadFile(%q) = %q, %v, want %q", p, b, err, want)
		}
	}
	if _, err := src.ReadFile(t.Context(), "absent", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadFile of an absent file: %v", err)
	}
	if _, err := src.ReadFile(t.Context(), "big", 10); !isTooLarge(err) {
		t.Errorf("ReadFile of a large file: %v", err)
	}
	for _, p := range []string{"a", "link", "outside", "/"} {
		if b, err := src.ReadFile(t.Context(), p, 1<<20); err == nil {
			t.Errorf("ReadFile(%q) = %q, want an error", p, b)
		}
	}
}

func TestUnreadableContentFailsTheTransfer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"file": randomText(3, 2<<20)})
	s := startServer(t)
	id := s.upload(t, dir).ID()
	ctx, cancel := context.WithCancel(t.Context())
	src, err := s.remote(t).Open(ctx, Ref(id))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	guarded, stop := src.Guard(t.Context())
	defer stop()
	if err := transfer(guarded, src, t.TempDir()); err == nil {
		t.Error("a build got an empty file")
	}
	if err := context.Cause(guarded); err == nil || !strings.Contains(err.Error(), "file: ") {
		t.Errorf("cause of the guarded context is %v, want one that names the file", err)
	}
}

func TestDamagedContentIsRefusedAndFetchedAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := randomText(4, 2<<20)
	write(t, dir, map[string]string{"file": want})
	s := startServer(t)
	id := s.upload(t, dir).ID()
	cacheDir := t.TempDir()
	o := &Opener{Blobs: Remote{BaseURL: s.reg.URL, Token: s.reg.Token}, Cache: newCache(t, cacheDir, 0)}
	src := open(t, o, id)
	if _, err := src.ReadFile(t.Context(), "file", 4<<20); err != nil {
		t.Fatal(err)
	}
	spooled, err := filepath.Glob(filepath.Join(cacheDir, "*"))
	if err != nil || len(spooled) != 1 {
		t.Fatalf("cache holds %q, %v", spooled, err)
	}
	if err := os.WriteFile(spooled[0], bytes.Repeat([]byte{0}, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := src.ReadFile(t.Context(), "file", 4<<20); err == nil || !strings.Contains(err.Error(), "file: stored content is damaged") {
		t.Errorf("damaged content: %v", err)
	}
	if b, err := src.ReadFile(t.Context(), "file", 4<<20); err != nil || string(b) != want {
		t.Errorf("afterwards: %d bytes, %v", len(b), err)
	}
}

func TestUnknownSource(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for name, o := range map[string]*Opener{"local": s.local(t), "remote": s.remote(t)} {
		if _, err := o.Open(t.Context(), Ref(strings.Repeat("0", 64))); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want fs.ErrNotExist", name, err)
		}
	}
	for _, ref := range []string{"", "context://", "context://../x", "https://example.com/x.git", "context://" + strings.Repeat("g", 64)} {
		if _, err := s.local(t).Open(t.Context(), ref); err == nil {
			t.Errorf("Open(%q) succeeded", ref)
		}
	}
	bad := &Opener{Blobs: Remote{BaseURL: s.reg.URL, Token: "wrong"}, Cache: newCache(t, t.TempDir(), 0)}
	if _, err := bad.Open(t.Context(), Ref(strings.Repeat("0", 64))); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("wrong token: %v", err)
	}
}

func TestSpecialFilesAreLeftOut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{"file": "x"})
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	tree := scan(t, dir, ScanOptions{})
	if len(tree.Entries) != 1 || !slices.Equal(tree.Warnings, []string{"fifo: left out: named pipe"}) {
		t.Errorf("entries %v, warnings %q", tree.Entries, tree.Warnings)
	}
}
