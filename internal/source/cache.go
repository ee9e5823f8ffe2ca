package source

import (
	"bytes"
	"cmp"
	"container/list"
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
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	smallPack    = 1 << 20  // packs up to this size stay in memory
	memoryBudget = 64 << 20 // bytes of packs in memory
	maxOpenBlobs = 64       // blobs that are read in place
	tempPrefix   = "tmp-"

	fetchTries = 3
	fetchPause = 200 * time.Millisecond // before the second try, twice as long before the third
)

// DefaultCacheSize is the size of a Cache, in bytes, if none is given.
const DefaultCacheSize = 2 << 30

// A Cache holds the packs that sources were read from: on disk, in memory when small, or where they
// are when the registry lets them be read in place. A pack is fetched once, however many sources
// need it at the same time. Packs in use do not count as evictable, so the limit can be exceeded by
// them.
//
// One process uses a directory; what it left behind is found again.
type Cache struct {
	dir string

	mu     sync.Mutex
	packs  map[digest.Digest]*cached
	disk   lru
	memory lru
	direct lru
}

// An lru is a list of packs, least recently used last, and what they cost together.
type lru struct {
	list      list.List // of *cached
	cost, max int64
}

// A cached pack is being fetched until ready is closed. Then err, or its bytes, are set. The cache's
// lock guards all but ready and err.
type cached struct {
	digest digest.Digest
	ready  chan struct{}
	err    error
	fetched

	refs int
	elem *list.Element // in home
	dead bool          // no longer in the cache; goes with its last use
}

// fetched is where the bytes of a pack are.
type fetched struct {
	path string      // of a spooled pack
	at   io.ReaderAt // nil for a spooled pack that nobody uses
	open io.Closer   // closed with the pack or, when spooled, after the last use
	home *lru
	cost int64 // in home
}

// NewCache returns the cache in dir, which it creates. max bounds the bytes on disk; 0 means
// DefaultCacheSize. Close it.
func NewCache(dir string, max int64) (*Cache, error) {
	if max <= 0 {
		max = DefaultCacheSize
	}
	c := &Cache{dir: dir, packs: map[digest.Digest]*cached{}}
	c.disk.max, c.memory.max, c.direct.max = max, memoryBudget, maxOpenBlobs
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("context cache: %w", err)
	}
	if err := c.adopt(); err != nil {
		return nil, fmt.Errorf("context cache: %w", err)
	}
	return c, nil
}

// adopt takes over the packs of an earlier process and removes what it had not finished.
func (c *Cache) adopt() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	var found []fs.FileInfo
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		if strings.HasPrefix(fi.Name(), tempPrefix) {
			if err := os.Remove(filepath.Join(c.dir, fi.Name())); err != nil {
				return err
			}
			continue
		}
		if validID(fi.Name()) {
			found = append(found, fi)
		}
	}
	slices.SortFunc(found, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, fi := range found {
		e := &cached{digest: digest.NewDigestFromEncoded(digest.SHA256, fi.Name()), ready: make(chan struct{})}
		e.path, e.home, e.cost = filepath.Join(c.dir, fi.Name()), &c.disk, fi.Size()
		close(e.ready)
		c.packs[e.digest] = e
		c.insert(e)
	}
	return nil
}

// Close closes what nobody uses. Files stay for the next process.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for d, e := range c.packs {
		if e.refs == 0 && e.open != nil {
			errs = append(errs, e.open.Close())
		}
		e.dead = e.path == ""
		delete(c.packs, d)
	}
	return errors.Join(errs...)
}

// acquire returns a reader of the pack, which is fetched from r if need be, and a function that must
// be called when it is no longer used.
func (c *Cache) acquire(ctx context.Context, r Reader, p pack) (io.ReaderAt, func(), error) {
	for {
		e, mine := c.lookup(p)
		if mine {
			c.fill(ctx, r, p, e)
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
		if e.err != nil {
			if mine {
				return nil, nil, e.err
			}
			continue // the other's context may have ended: try again with ours
		}
		at, err := c.use(e)
		switch {
		case err == nil:
			return at, sync.OnceFunc(func() { c.release(e) }), nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, nil, fmt.Errorf("context cache: %w", err)
		}
		c.drop(e) // evicted before it was used, or somebody removed the file
	}
}

// lookup returns the pack's entry and whether the caller has to fill it.
func (c *Cache) lookup(p pack) (*cached, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.packs[p.digest]; e != nil {
		if e.path == "" || e.cost == p.size {
			return e, false
		}
		c.forget(e) // a file that was cut off by a crash
	}
	e := &cached{digest: p.digest, ready: make(chan struct{})}
	c.packs[p.digest] = e
	return e, true
}

// fill fetches the pack into e and makes it known.
func (c *Cache) fill(ctx context.Context, r Reader, p pack, e *cached) {
	f, err := c.fetch(ctx, r, p)
	for try := 1; try < fetchTries && transient(ctx, err); try++ {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try) * fetchPause):
			f, err = c.fetch(ctx, r, p)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.fetched, e.err = f, err
	known := c.packs[p.digest] == e
	switch {
	case err == nil && known:
		c.insert(e)
	case err == nil:
		e.dead = true
	case known:
		delete(c.packs, p.digest)
	}
	close(e.ready)
}

func transient(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errRefused) && !errors.Is(err, syscall.ENOSPC)
}

// fetch opens the pack in place or copies it.
func (c *Cache) fetch(ctx context.Context, r Reader, p pack) (fetched, error) {
	rc, _, err := r.BlobReader(ctx, Repository, p.digest)
	if err != nil {
		return fetched{}, fmt.Errorf("blob %s: %w", p.digest, err)
	}
	if at, ok := rc.(io.ReaderAt); ok {
		return fetched{at: at, open: rc, home: &c.direct, cost: 1}, nil
	}
	defer rc.Close()
	if p.size <= smallPack {
		var buf bytes.Buffer
		if err := copyVerified(&buf, rc, p); err != nil {
			return fetched{}, err
		}
		return fetched{at: bytes.NewReader(buf.Bytes()), home: &c.memory, cost: p.size}, nil
	}
	path := filepath.Join(c.dir, p.digest.Encoded())
	return fetched{path: path, home: &c.disk, cost: p.size}, c.spool(rc, p, path)
}

// spool copies the pack into a file that has its name only when it is complete.
func (c *Cache) spool(r io.Reader, p pack, path string) (err error) {
	f, err := os.CreateTemp(c.dir, tempPrefix)
	if err != nil {
		return fmt.Errorf("context cache: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	return copyVerified(f, r, p)
}

func copyVerified(w io.Writer, r io.Reader, p pack) error {
	v := p.digest.Verifier()
	n, err := io.Copy(io.MultiWriter(w, v), io.LimitReader(r, p.size+1))
	switch {
	case err != nil:
		return fmt.Errorf("blob %s: %w", p.digest, err)
	case n < p.size:
		return fmt.Errorf("blob %s: ends after %d of %d bytes: %w", p.digest, n, p.size, io.ErrUnexpectedEOF)
	case n > p.size || !v.Verified():
		return fmt.Errorf("blob %s: content does not have this digest; the registry's storage is damaged", p.digest)
	}
	return nil
}
