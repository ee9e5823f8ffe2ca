package source

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
	_, _ = rand.NewChaCha8([32]byte(sumOf(strconv.FormatUint(seed, 10)))).Read(b) // cannot fail
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
