package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registrytest"
)

// packsIn stores blobs in a registry and returns them with a reader over HTTP.
func packsIn(t *testing.T, contents ...string) ([]pack, *countingReader) {
	t.Helper()
	reg := registrytest.Start(t)
	var out []pack
	for _, c := range contents {
		d, n, err := reg.Store.PutBlob(t.Context(), Repository, strings.NewReader(c))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, pack{digest.Digest(d), n})
	}
	return out, &countingReader{Reader: Remote{BaseURL: reg.URL, Token: reg.Token}}
}

func readPack(ctx context.Context, c *Cache, r Reader, p pack) (string, error) {
	at, release, err := c.acquire(ctx, r, p)
	if err != nil {
		return "", err
	}
	defer release()
	b, err := io.ReadAll(io.NewSectionReader(at, 0, p.size))
	return string(b), err
}

func TestCacheStaysWithinItsSize(t *testing.T) {
	t.Parallel()
	contents := make([]string, 5)
	for i := range contents {
		contents[i] = randomText(uint64(i), 2<<20)
	}
	packs, r := packsIn(t, contents...)
	dir := t.TempDir()
	c := newCache(t, dir, 5<<20)
	for i, p := range packs {
		if got, err := readPack(t.Context(), c, r, p); err != nil || got != contents[i] {
			t.Fatalf("pack %d: %d bytes, %v", i, len(got), err)
		}
		if n := diskUse(t, dir); n > 5<<20 {
			t.Errorf("%d bytes on disk after pack %d", n, i)
		}
	}
	before := r.blobs.Load()
	for _, i := range []int{4, 3} {
		if _, err := readPack(t.Context(), c, r, packs[i]); err != nil {
			t.Error(err)
		}
	}
	if n := r.blobs.Load() - before; n != 0 {
		t.Errorf("recent packs were fetched again, %d times", n)
	}

	// The next process finds what this one left, but nothing unfinished.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tempPrefix + "x", "unrelated"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, packs[3].digest.Encoded()), 10); err != nil {
		t.Fatal(err)
	}
	next := newCache(t, dir, 5<<20)
	for _, i := range []int{4, 3} {
		if got, err := readPack(t.Context(), next, r, packs[i]); err != nil || got != contents[i] {
			t.Errorf("pack %d: %d bytes, %v", i, len(got), err)
		}
	}
	if n := r.blobs.Load() - before; n != 1 {
		t.Errorf("%d fetches after the restart, want 1: the one that was cut off", n)
	}
	if _, err := os.Stat(filepath.Join(dir, tempPrefix+"x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unfinished file is still there: %v", err)
	}
}

func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += fi.Size()
	}
	return n
}

func TestCacheUnderConcurrentUse(t *testing.T) {
	t.Parallel()
	contents := make([]string, 6)
	for i := range contents {
		contents[i] = randomText(uint64(i), (i%2)*(1<<20)+100<<10)
	}
	packs, r := packsIn(t, contents...)
	dir := t.TempDir()
	c := newCache(t, dir, 1<<20) // room for one: everything is evicted all the time
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 12 {
				n := (i*7 + w) % len(packs)
				if got, err := readPack(t.Context(), c, r, packs[n]); err != nil || got != contents[n] {
					t.Errorf("pack %d: %d bytes, %v", n, len(got), err)
				}
			}
		})
	}
	wg.Wait()
	if n := diskUse(t, dir); n > 2<<20 {
		t.Errorf("%d bytes on disk", n)
	}
}

// A failing reader breaks off the first transfers.
type failing struct {
	Reader
	left atomic.Int64
}

func (f *failing) BlobReader(ctx context.Context, repo string, d digest.Digest) (io.ReadCloser, int64, error) {
	rc, n, err := f.Reader.BlobReader(ctx, repo, d)
	if err == nil && f.left.Add(-1) >= 0 {
		return struct {
			io.Reader
			io.Closer
		}{io.LimitReader(rc, 1000), rc}, n, nil
	}
	return rc, n, err
}

func TestCacheFetchesAgainAfterABrokenTransfer(t *testing.T) {
	t.Parallel()
	packs, r := packsIn(t, randomText(1, 2<<20), randomText(2, 2<<20))
	dir := t.TempDir()
	c := newCache(t, dir, 0)
	f := &failing{Reader: r}
	f.left.Store(1)
	if got, err := readPack(t.Context(), c, f, packs[0]); err != nil || got != randomText(1, 2<<20) {
		t.Errorf("broken once: %d bytes, %v", len(got), err)
	}
	f.left.Store(1000)
	if _, err := readPack(t.Context(), c, f, packs[1]); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("always broken: %v", err)
	}
	if n := diskUse(t, dir); n != 2<<20 {
		t.Errorf("%d bytes on disk, want those of the good pack", n)
	}
}

func TestCacheWaiterSurvivesTheFetchersEnd(t *testing.T) {
	t.Parallel()
	packs, r := packsIn(t, randomText(1, 2<<20))
	c := newCache(t, t.TempDir(), 0)
	ctx, cancel := context.WithCancel(t.Context())
	blocked := &blocking{Reader: r, entered: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := readPack(ctx, c, blocked, packs[0]); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
	<-blocked.entered
	wg.Go(func() {
		got, err := readPack(t.Context(), c, r, packs[0])
		if err != nil || !bytes.Equal([]byte(got), []byte(randomText(1, 2<<20))) {
			t.Errorf("waiter: %d bytes, %v", len(got), err)
		}
	})
	cancel()
	wg.Wait()
}

// A blocking reader answers when its context ends.
type blocking struct {
	Reader
	entered chan struct{}
}

func (b *blocking) BlobReader(ctx context.Context, _ string, d digest.Digest) (io.ReadCloser, int64, error) {
	close(b.entered)
	<-ctx.Done()
	return nil, 0, fmt.Errorf("%s: %w", d, context.Cause(ctx))
}
