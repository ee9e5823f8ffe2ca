package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
)

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
