package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sync/errgroup"

	"kiln/internal/gittest"
)

// loopback lets mirrors reach the servers of a test.
func loopback(t testing.TB) Config {
	return Config{Dir: filepath.Join(t.TempDir(), "mirrors"), Log: slog.New(slog.DiscardHandler),
		Allow:     func(_ string, addr netip.Addr) bool { return addr.IsLoopback() },
		PlainHTTP: func(string) bool { return true }}
}

func open(t testing.TB, cfg Config) *Mirrors {
	t.Helper()
	m, err := New(cfg)
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

// files returns what a source has, in the form of gittest's Archive, and checks that the walk is in
// order.
func files(t testing.TB, s fsutil.FS) map[string]string {
	t.Helper()
	out, last := map[string]string{}, ""
	err := s.Walk(t.Context(), "", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if last != "" && fsutil.ComparePath(last, p) >= 0 {
			t.Errorf("walk: %q comes after %q", p, last)
		}
		last = p
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch {
		case info.IsDir():
			out[p] = "d"
		case info.Mode()&fs.ModeSymlink != 0:
			out[p] = "l" + info.Sys().(*types.Stat).Linkname
		default:
			letter := "f"
			if info.Mode()&0o100 != 0 {
				letter = "x"
			}
			b, err := readAll(s, p)
			if err != nil {
				return err
			}
			if int64(len(b)) != info.Size() {
				t.Errorf("%s: size %d, read %d bytes", p, info.Size(), len(b))
			}
			out[p] = letter + string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func readAll(s fsutil.FS, p string) ([]byte, error) {
	f, err := s.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

func mustOpen(t testing.TB, m *Mirrors, ref Ref, cred Credential) *Source {
	t.Helper()
	s, err := m.Open(t.Context(), ref, cred)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSourceEqualsGitArchive(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	commit := repo.Sample()
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	s := mustOpen(t, m, Ref{URL: srv.URL + "/r.git"}, Credential{})
	if diff := cmp.Diff(repo.Archive(commit), files(t, s)); diff != "" {
		t.Errorf("tree differs from git archive (-want +got):\n%s", diff)
	}
	if s.Commit.ID != commit || s.Ref != "refs/heads/main" || s.Commit.Author != "Ada" || s.Commit.Email != "ada@example.com" ||
		s.Commit.Message != "first\n\nbody\n" || s.Commit.Time.Unix() != 1700000001 || s.Commit.Tree != repo.Bare("rev-parse", commit+"^{tree}") {
		t.Errorf("commit = %+v of %q", s.Commit, s.Ref)
	}
	if w := s.Warnings(); len(w) > 0 {
		t.Errorf("warnings %q", w)
	}
}

func TestSourceIsTransferredUnchanged(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	commit := repo.Sample()
	srv := gittest.Serve(t, root, "", "")
	s := mustOpen(t, open(t, loopback(t)), Ref{URL: srv.URL + "/r.git"}, Credential{})
	dest := t.TempDir()
	transfer(t, s, dest)
	got, err := fsutil.NewFS(dest)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(repo.Archive(commit), files(t, got)); diff != "" {
		t.Errorf("received tree differs from git archive (-want +got):\n%s", diff)
	}
	// A change of the same size must be seen by a receiver that compares what it has.
	repo.Write("a.txt", "Z\n", 0)
	next := repo.Commit("second")
	s = mustOpen(t, open(t, loopback(t)), Ref{URL: srv.URL + "/r.git"}, Credential{})
	transfer(t, s, dest)
	if diff := cmp.Diff(repo.Archive(next), files(t, got)); diff != "" {
		t.Errorf("received tree differs after a change (-want +got):\n%s", diff)
	}
}

// transfer sends a source as BuildKit's client does, and receives it as the daemon does.
func transfer(t testing.TB, f fsutil.FS, dest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
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
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
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

func TestWalkOfATarget(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	gittest.NewRepo(t, root, "r.git").Sample()
	srv := gittest.Serve(t, root, "", "")
	s := mustOpen(t, open(t, loopback(t)), Ref{URL: srv.URL + "/r.git"}, Credential{})
	var got []string
	collect := func(p string, _ fs.DirEntry, err error) error {
		got = append(got, p)
		return err
	}
	for _, tt := range []struct {
		target string
		want   []string
	}{
		{"a", []string{"a", "a/deep", "a/deep/er", "a/deep/er/file", "a/file", "a/up"}},
		{"/a/deep", []string{"a/deep", "a/deep/er", "a/deep/er/file"}},
		{"a/file", []string{"a/file"}},
		{"nope", []string{"nope"}},
		{"a/file/nope", []string{"a/file/nope"}},
		{"../../a/file", []string{"a/file"}},
	} {
		got = nil
		if err := s.Walk(t.Context(), tt.target, collect); err != nil {
			t.Errorf("Walk(%q): %v", tt.target, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("Walk(%q) (-want +got):\n%s", tt.target, diff)
		}
	}
	got = nil
	err := s.Walk(t.Context(), "", func(p string, e fs.DirEntry, _ error) error {
		got = append(got, p)
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil || strings.Contains(strings.Join(got, " "), "a/file") || len(got) != 11 {
		t.Errorf("walk that skips directories: %q, %v", got, err)
	}
}

func TestWhatCannotBeReadEndsTheBuild(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	gittest.NewRepo(t, root, "r.git").Sample()
	srv := gittest.Serve(t, root, "", "")
	s := mustOpen(t, open(t, loopback(t)), Ref{URL: srv.URL + "/r.git"}, Credential{})
	ctx, stop := s.Guard(t.Context())
	defer stop()
	if b, err := readAll(s, "nope"); err == nil || len(b) > 0 {
		t.Errorf("a file that is not there: %q, %v", b, err)
	}
	<-ctx.Done()
	if err := context.Cause(ctx); err == nil || !strings.Contains(err.Error(), "nope") {
		t.Errorf("cause = %v", err)
	}
	if _, err := s.ReadFile(t.Context(), "nope", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadFile = %v", err)
	}
	if b, err := s.ReadFile(t.Context(), "a/file", 10); err != nil || string(b) != "x\n" {
		t.Errorf("ReadFile = %q, %v", b, err)
	}
	if _, err := s.ReadFile(t.Context(), "big.bin", 10); !errors.Is(err, ErrTooLarge) {
		t.Errorf("ReadFile beyond the limit = %v", err)
	}
}

func TestSubdir(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Sample()
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	url := srv.URL + "/r.git"
	for _, dir := range []string{"a", "/a/", "dirlink", "./a/deep/.."} {
		s := mustOpen(t, m, Ref{URL: url, Subdir: dir}, Credential{})
		want := map[string]string{"deep": "d", "deep/er": "d", "deep/er/file": "fy\n", "file": "fx\n", "up": "l../../../../etc/passwd"}
		if diff := cmp.Diff(want, files(t, s)); diff != "" {
			t.Errorf("subdir %q (-want +got):\n%s", dir, diff)
		}
	}
	for dir, want := range map[string]error{"nope": ErrRefNotFound, "a/file": ErrRefNotFound, "../x": ErrBadTree,
		"a/up": ErrBadTree, "abs": ErrBadTree, "a/../../x": ErrBadTree} {
		_, err := m.Open(t.Context(), Ref{URL: url, Subdir: dir}, Credential{})
		if !errors.Is(err, want) {
			t.Errorf("subdir %q: %v, want %v", dir, err, want)
		}
	}
	key := func(ref Ref) string { return mustOpen(t, m, ref, Credential{}).Key() }
	base := key(Ref{URL: url})
	if key(Ref{URL: url + "/"}) != base || key(Ref{URL: url, Subdir: "a"}) == base || key(Ref{URL: url, Scope: "fork"}) == base {
		t.Error("keys must be equal per repository, subdirectory and scope")
	}
}

func TestHostileTreesAreRefused(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Write("x", "x", 0)
	repo.Commit("x")
	blob := repo.Input([]byte("evil"), "hash-object", "-w", "--stdin")
	tree := func(mode, name, id string) string {
		raw := append([]byte(mode+" "+name+"\x00"), hexBytes(id)...)
		return repo.Input(raw, "hash-object", "-t", "tree", "-w", "--stdin", "--literally")
	}
	commitOf := func(tree string) string {
		c := repo.Bare("commit-tree", tree, "-m", "evil")
		repo.Bare("update-ref", "refs/heads/evil-"+c[:8], c)
		return c
	}
	bomb := tree("100644", "leaf", blob)
	for range 10 {
		var raw []byte
		for i := range 16 {
			raw = append(append(raw, fmt.Sprintf("40000 d%02d\x00", i)...), hexBytes(bomb)...)
		}
		bomb = repo.Input(raw, "hash-object", "-t", "tree", "-w", "--stdin", "--literally")
	}
	srv := gittest.Serve(t, root, "", "")
	cfg := loopback(t)
	cfg.Limits.Entries = 5000
	m := open(t, cfg)
	for name, c := range map[string]struct {
		commit string
		want   error
	}{
		"dot dot":      {commitOf(tree("100644", "..", blob)), ErrBadTree},
		"dot":          {commitOf(tree("100644", ".", blob)), ErrBadTree},
		"dot git":      {commitOf(tree("40000", ".GiT", tree("100644", "x", blob))), ErrBadTree},
		"slash":        {commitOf(tree("100644", "a/b", blob)), ErrBadTree},
		"not UTF-8":    {commitOf(tree("100644", "\xff\xfe", blob)), ErrBadTree},
		"device":       {commitOf(tree("20644", "dev", blob)), ErrBadTree},
		"set-user-ID":  {commitOf(tree("104755", "su", blob)), ErrBadTree},
		"long name":    {commitOf(tree("100644", strings.Repeat("n", 256), blob)), ErrBadTree},
		"bomb of dirs": {commitOf(bomb), ErrTooLarge},
	} {
		s, err := m.Open(t.Context(), Ref{URL: srv.URL + "/r.git", Commit: c.commit}, Credential{})
		if err == nil {
			err = s.Walk(t.Context(), "", func(string, fs.DirEntry, error) error { return nil })
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func hexBytes(id string) []byte {
	b := make([]byte, 20)
	if _, err := fmt.Sscanf(id, "%x", &b); err != nil {
		panic(err)
	}
	return b
}
