package buildkit

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"strings"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// A listing is what a tree consists of, in the order of a walk, with the status of its files in place of
// their contents: two files of one path, size, mode and time are taken for the same, as BuildKit does it.
type listing struct {
	names   []byte // all paths, one after the other
	entries []listed
	size    int64  // bytes of all files
	sum     uint64 // of everything
	// linked says that there are hard links: what they are cannot be told from one of their names.
	linked bool
}

// A listed is an entry of a listing, in few bytes: listings are kept for large trees.
type listed struct {
	end uint32 // of its path in names
	dir bool
	sum uint64 // of its status
}

// maxNames bounds the paths of a listing, in bytes.
const maxNames = 1 << 30

// listingSeed makes the sums of one process differ from those of another: nobody can make two files equal.
var listingSeed = maphash.MakeSeed()

func (l *listing) name(i int) string {
	begin := uint32(0)
	if i > 0 {
		begin = l.entries[i-1].end
	}
	return string(l.names[begin:l.entries[i].end])
}

// small reports whether there are neither more bytes nor more entries than these.
func (l *listing) small(size int64, entries int) bool {
	return l.size <= size && len(l.entries) <= entries
}

func (l *listing) add(st *types.Stat) (listed, error) {
	if len(l.names)+len(st.Path) > maxNames {
		return listed{}, fmt.Errorf("source: the paths of its files have more than %d bytes", maxNames)
	}
	mode := fs.FileMode(st.Mode)
	l.names = append(l.names, st.Path...)
	e := listed{end: uint32(len(l.names)), dir: mode.IsDir(), sum: statusSum(st)}
	l.entries = append(l.entries, e)
	l.size += st.Size
	l.linked = l.linked || st.Linkname != "" && mode&fs.ModeSymlink == 0
	return e, nil
}

func statusSum(st *types.Stat) uint64 {
	var h maphash.Hash
	h.SetSeed(listingSeed)
	maphash.WriteComparable(&h, [3]int64{int64(st.Mode), st.Size, st.ModTime})
	_, _ = h.WriteString(st.Linkname)
	return h.Sum64()
}

// seal computes the sum of a listing to which nothing is added any more.
func (l *listing) seal() {
	var h maphash.Hash
	h.SetSeed(listingSeed)
	_, _ = h.Write(l.names)
	for _, e := range l.entries {
		maphash.WriteComparable(&h, e)
	}
	l.sum = h.Sum64()
}

// changes are what makes another tree of a base. It is itself a tree, of the entries that differ and the
// directories that they are in.
type changes struct {
	source  fsutil.FS
	entries []*types.Stat
	removed []string // a directory stands for all that is in it
	size    int64    // bytes of the files
	tooMany bool     // so that what is here is not all
}

// list reads what tree consists of and, if there is a base, what of that differs from it. Each entry is told
// to also, too, unless that is nil.
func list(ctx context.Context, tree fsutil.FS, base *listing, also func(*types.Stat)) (*listing, *changes, error) {
	c := comparison{base: base, now: &listing{}, diff: &changes{source: tree, tooMany: base == nil}}
	if base != nil {
		c.maxEntries, c.maxSize = max(smallEntries, len(base.entries)/changedPart), max(smallTree, base.size/changedPart)
	}
	err := tree.Walk(ctx, "", func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*types.Stat)
		if !ok {
			return fmt.Errorf("source: %s: no file status", info.Name())
		}
		if also != nil {
			also(st)
		}
		return c.entry(st)
	})
	if err != nil {
		return nil, nil, err
	}
	c.end()
	return c.now, c.diff, nil
}

// A comparison walks through a tree and its base side by side.
type comparison struct {
	base       *listing // nil if there is none
	next       int      // in base
	now        *listing
	diff       *changes
	maxEntries int
	maxSize    int64
	parents    []*types.Stat // the directories that the present entry is in
	told       int           // how many of them diff has
	gone       string        // the directory that was removed last, with a slash
}

func (c *comparison) entry(st *types.Stat) error {
	e, err := c.now.add(st)
	if err != nil || c.diff.tooMany {
		return err
	}
	for n := len(c.parents); n > 0 && !strings.HasPrefix(st.Path, c.parents[n-1].Path+"/"); n = len(c.parents) {
		c.parents = c.parents[:n-1]
		c.told = min(c.told, n-1)
	}
	known := false
	for ; c.next < len(c.base.entries); c.next++ {
		order := comparePaths(c.base.name(c.next), st.Path)
		if order < 0 {
			c.remove(c.next)
			continue
		}
		if order == 0 {
			known = c.base.entries[c.next].sum == e.sum
			c.next++
		}
		break
	}
	if e.dir {
		c.parents = append(c.parents, st.Clone())
	}
	if !known {
		c.change(st, e.dir)
	}
	return nil
}

// change notes an entry that is new or another one, after the directories that it is in.
func (c *comparison) change(st *types.Stat, dir bool) {
	for ; c.told < len(c.parents); c.told++ {
		c.diff.entries = append(c.diff.entries, c.parents[c.told])
	}
	if !dir {
		c.diff.entries = append(c.diff.entries, st.Clone())
		c.diff.size += st.Size
	}
	c.bound()
}

func (c *comparison) remove(i int) {
	name := c.base.name(i)
	if c.gone != "" && strings.HasPrefix(name, c.gone) {
		return
	}
	c.gone = ""
	if c.base.entries[i].dir {
		c.gone = name + "/"
	}
	c.diff.removed = append(c.diff.removed, name)
	c.bound()
}

func (c *comparison) bound() {
	if len(c.diff.entries) > c.maxEntries || len(c.diff.removed) > maxRemoved || c.diff.size > c.maxSize {
		*c.diff = changes{tooMany: true}
	}
}

func (c *comparison) end() {
	for ; !c.diff.tooMany && c.next < len(c.base.entries); c.next++ {
		c.remove(c.next)
	}
	c.now.seal()
	if c.now.linked || c.base != nil && c.base.linked {
		*c.diff = changes{tooMany: true}
	}
}

// comparePaths orders paths as a walk does: what is in a directory comes before its next sibling.
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		switch x, y := a[i], b[i]; {
		case x == y:
		case x == '/':
			return -1
		case y == '/':
			return 1
		default:
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

// Walk calls fn for the entries, as fsutil.FS requires. They are only ever walked from the root.
func (c *changes) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	if cleanTarget(target) != "" {
		return fmt.Errorf("source: %s: only the root can be walked", target)
	}
	skip := ""
	for _, st := range c.entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if skip != "" && strings.HasPrefix(st.Path, skip) {
			continue
		}
		switch err := fn(st.Path, &fsutil.DirEntryInfo{Stat: st.Clone()}, nil); {
		case errors.Is(err, fs.SkipAll):
			return nil
		case errors.Is(err, fs.SkipDir):
			dir := st.Path
			if !fs.FileMode(st.Mode).IsDir() {
				dir = parent(dir)
			}
			if dir == "" {
				return nil
			}
			skip = dir + "/"
		case err != nil:
			return err
		}
	}
	return nil
}

// Open opens a file of the tree that has changed.
func (c *changes) Open(p string) (io.ReadCloser, error) { return c.source.Open(p) }
