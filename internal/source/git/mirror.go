package git

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

const (
	stateFile   = "complete" // of a generation: the commits that are here with all their files
	maxComplete = 1000       // fetches after which a mirror is made anew, smaller
	maxLoose    = 20_000     // single objects after which it is
	maxSizes    = 1 << 20    // objects per mirror whose size is remembered
)

// A mirror is what is here of one repository. Its fields but fetching are guarded by Mirrors.mu.
type mirror struct {
	dir      string
	fetching chan struct{} // holds a token while somebody fetches
	gen      *generation   // nil before the first fetch
	pins     int           // opens under way; the mirror is not removed
	used     time.Time
}

// A generation is a bare repository on disk. It only grows. A damaged or overgrown one is replaced by
// the next, and removed when nobody reads it any more.
type generation struct {
	dir      string
	number   int
	complete map[plumbing.Hash]bool // value: with its whole history
	order    []plumbing.Hash        // oldest first
	loose    int                    // objects in files of their own
	size     int64                  // bytes on disk, about
	pins     int                    // sources that read it
	dead     bool                   // to be removed
	readers  *readers
}

// mirror returns the mirror of a repository, pinned.
func (m *Mirrors) mirror(r remote) (*mirror, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errors.New("the mirrors are closed")
	}
	mi := m.mirrors[r.id()]
	if mi == nil {
		mi = newMirror(filepath.Join(m.cfg.Dir, r.id()))
		m.mirrors[r.id()] = mi
	}
	mi.pins++
	mi.used = time.Now()
	return mi, nil
}

func newMirror(dir string) *mirror { return &mirror{dir: dir, fetching: make(chan struct{}, 1)} }

func (m *Mirrors) unpinMirror(mi *mirror) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mi.pins--
	mi.used = time.Now()
	if mi.gen == nil && mi.pins == 0 { // nothing could be fetched
		for id, other := range m.mirrors {
			if other == mi {
				delete(m.mirrors, id)
			}
		}
		_ = os.Remove(mi.dir)
		return
	}
	if mi.gen != nil {
		_ = os.Chtimes(mi.gen.dir, mi.used, mi.used) // the order of removal survives a restart
	}
}

// pin keeps the newest generation from being removed, if it has the commit.
func (m *Mirrors) pin(mi *mirror, commit plumbing.Hash, not *generation) (*generation, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := mi.gen
	if g == nil || g == not || g.dead {
		return nil, false
	}
	if _, ok := g.complete[commit]; !ok {
		return nil, false
	}
	g.pins++
	return g, true
}

func (m *Mirrors) unpin(g *generation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g.pins--
	m.collect(g)
}

// collect removes a generation that is dead and not read. m.mu is held.
func (m *Mirrors) collect(g *generation) {
	if !g.dead || g.pins > 0 {
		return
	}
	g.readers.close()
	if err := os.RemoveAll(g.dir); err != nil {
		m.log.Warn("git mirror not removed", "dir", g.dir, "err", err)
	}
}

// replace makes g the newest generation of a mirror.
func (m *Mirrors) replace(mi *mirror, g *generation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := mi.gen
	mi.gen = g
	if old != nil && old != g {
		old.dead = true
		m.collect(old)
	}
}

// haves returns the newest commits of g that a fetch may build on.
func (m *Mirrors) haves(g *generation, full bool, n int) []plumbing.Hash {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []plumbing.Hash
	for _, h := range slices.Backward(g.order) {
		if len(out) < n && (!full || g.complete[h]) {
			out = append(out, h)
		}
	}
	return out
}

// has reports whether all of a commit is in a generation.
func (m *Mirrors) has(g *generation, commit plumbing.Hash) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := g.complete[commit]
	return ok
}

// overgrown reports whether it is cheaper to fetch a generation anew than to go on with it.
func (g *generation) overgrown() bool { return len(g.order) >= maxComplete || g.loose >= maxLoose }

// record notes, on disk first, that all of a commit is here.
func (m *Mirrors) record(g *generation, commit plumbing.Hash, full bool, got received) error {
	f, err := os.OpenFile(filepath.Join(g.dir, stateFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s %t %d\n", commit, full, got.loose)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g.note(commit, full, got.loose)
	g.size += got.bytes
	return nil
}

func (g *generation) note(commit plumbing.Hash, full bool, loose int) {
	if _, again := g.complete[commit]; !again {
		g.order = append(g.order, commit)
	}
	g.complete[commit] = g.complete[commit] || full
	g.loose += loose
}

// load finds the mirrors of an earlier process.
func (m *Mirrors) load() error {
	entries, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || len(e.Name()) != 32 {
			continue
		}
		mi := newMirror(filepath.Join(m.cfg.Dir, e.Name()))
		mi.gen = newestGeneration(mi.dir)
		if mi.gen == nil {
			if err := os.RemoveAll(mi.dir); err != nil {
				return err
			}
			continue
		}
		if info, err := os.Stat(mi.gen.dir); err == nil {
			mi.used = info.ModTime()
		}
		m.mirrors[e.Name()] = mi
	}
	return nil
}

// newestGeneration returns the newest usable generation and removes the others.
func newestGeneration(dir string) *generation {
	entries, _ := os.ReadDir(dir)
	var best *generation
	for _, e := range entries {
		g := loadGeneration(filepath.Join(dir, e.Name()))
		if g == nil || best != nil && g.number < best.number {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
			continue
		}
		if best != nil {
			_ = os.RemoveAll(best.dir)
		}
		best = g
	}
	return best
}

func loadGeneration(dir string) *generation {
	n, err := strconv.Atoi(filepath.Base(dir))
	if err != nil {
		return nil
	}
	state, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil
	}
	g := newGeneration(dir, n)
	for line := range strings.Lines(string(state)) {
		var id string
		var full bool
		var loose int
		if n, _ := fmt.Sscanf(line, "%s %t %d\n", &id, &full, &loose); n == 3 && isCommit(id) {
			g.note(plumbing.NewHash(id), full, loose)
		}
	}
	if len(g.order) == 0 {
		return nil
	}
	sweep(dir)
	g.size = diskSize(dir)
	return g
}

func newGeneration(dir string, n int) *generation {
	return &generation{dir: dir, number: n, complete: map[plumbing.Hash]bool{}, readers: newReaders(dir)}
}

// sweep removes what interrupted fetches left.
func sweep(dir string) {
	for _, pattern := range []string{"objects/pack/tmp_*", "objects/tmp_*", "objects/pack/tmp_objdir*"} {
		left, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, name := range left {
			_ = os.Remove(name)
		}
	}
}

func diskSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return nil
	})
	return n
}

func (m *Mirrors) sizeLocked() (n int64) {
	for _, mi := range m.mirrors {
		if mi.gen != nil {
			n += mi.gen.size
		}
	}
	return n
}

// evict removes the least recently used mirrors, as long as they take too much and are not in use.
func (m *Mirrors) evict() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for total := m.sizeLocked(); total > m.cfg.MaxBytes; total = m.sizeLocked() {
		oldest := ""
		for id, mi := range m.mirrors {
			idle := mi.gen != nil && mi.pins == 0 && mi.gen.pins == 0
			if idle && (oldest == "" || mi.used.Before(m.mirrors[oldest].used)) {
				oldest = id
			}
		}
		if oldest == "" {
			return
		}
		mi := m.mirrors[oldest]
		delete(m.mirrors, oldest)
		mi.gen.dead = true
		m.collect(mi.gen)
		_ = os.Remove(mi.dir)
	}
}
