package source

import (
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
)

// use counts a use of a ready pack and opens its file at the first.
func (c *Cache) use(e *cached) (io.ReaderAt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.at == nil && e.path == "" {
		return nil, fs.ErrNotExist
	}
	if e.at == nil {
		f, err := os.Open(e.path)
		if err != nil {
			return nil, err
		}
		e.at, e.open = f, f
	}
	e.refs++
	if e.elem != nil {
		e.home.list.MoveToFront(e.elem)
	}
	return e.at, nil
}

func (c *Cache) release(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.refs == 0 && e.open != nil && (e.dead || e.path != "") {
		_ = e.open.Close() // only read from
		e.at, e.open = nil, nil
	}
	if !e.dead {
		c.evict(e.home)
	}
}

// drop removes a pack whose content turned out to be damaged or gone.
func (c *Cache) drop(e *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !e.dead {
		c.forget(e)
	}
}

// dropDigest is drop by digest.
func (c *Cache) dropDigest(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.packs[d]; e != nil && e.elem != nil {
		c.forget(e)
	}
}

// insert puts a ready pack into its list. The caller holds the lock, as for all below.
func (c *Cache) insert(e *cached) {
	e.elem = e.home.list.PushFront(e)
	e.home.cost += e.cost
	c.evict(e.home)
}

// evict removes packs that nobody uses until l is within its limit. The newest stays: it was
// inserted to be used.
func (c *Cache) evict(l *lru) {
	for el := l.list.Back(); el != nil && el != l.list.Front() && l.cost > l.max; {
		e := el.Value.(*cached)
		el = el.Prev()
		if e.refs == 0 {
			c.forget(e)
		}
	}
}

func (c *Cache) forget(e *cached) {
	e.dead = true
	if c.packs[e.digest] == e {
		delete(c.packs, e.digest)
	}
	if e.elem != nil {
		e.home.list.Remove(e.elem)
		e.home.cost -= e.cost
		e.elem = nil
	}
	if e.path != "" {
		_ = os.Remove(e.path) // a file that stays is adopted, and evicted, by the next process
	}
	if e.refs == 0 && e.open != nil {
		_ = e.open.Close()
		e.at, e.open = nil, nil
	}
}
