// Package treefs shows a tree of files as a read-only file system of the kernel's. Mounting it copies
// nothing: the content of a file is read when somebody reads the file.
//
// A mount serves containers of the machine that it is on. The daemon and its client agree on it by the names
// in this package: the client mounts a tree in the directory that the daemon tells in the label Label, and
// has the daemon take it for the content of a layer by a source of the scheme Scheme.
//
// What a file consists of does not change as long as a mount lives: the kernel keeps what it has read. A
// content that cannot be read is an error of the read, never an empty file. Files beyond a size are copied to
// the mount's disk when they are first read; memory is bounded whatever the containers do.
//
// A mount whose process dies fails every access to it; it never blocks one.
package treefs

import (
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strings"

	"github.com/tonistiigi/fsutil/types"
	"golang.org/x/sys/unix"
)

const (
	// Scheme begins the identifier of a source that is a mounted tree; the mount's name follows.
	Scheme = "kiln-tree"
	// Label is the worker label in which a daemon tells the directory where it expects mounts.
	Label = "dev.kiln.trees"
	// Magic is how statfs tells that there is a mount.
	Magic = unix.FUSE_SUPER_MAGIC
)

const (
	maxNodes = 1_000_000
	maxNames = 256 << 20 // bytes of all paths
)

// A Tree is what a file system consists of but for the contents of its files. It is made by adding entries,
// which ends with Seal.
type Tree struct {
	names    []byte // the paths of the nodes, one after the other
	nodes    []node // the first is the root
	links    map[int]string
	children []int32 // of all directories, those of each together and by name
	within   []int   // the directories that the last entry is in
	err      error   // why this tree cannot be shown
}

// A node is a file, directory or symbolic link.
type node struct {
	end    uint32 // of its path in names
	mode   uint32 // as the kernel has it
	parent int32
	first  int32 // of its entries in children
	count  int32
	size   int64
	time   int64 // in nanoseconds
}

// New returns a tree of an empty directory.
func New() *Tree {
	return &Tree{nodes: []node{{mode: unix.S_IFDIR | 0o755}}, links: map[int]string{}, within: []int{0}}
}

// Add adds an entry, after the directory that it is in and in the order of a walk.
func (t *Tree) Add(st *types.Stat) {
	if t.err == nil {
		t.err = t.add(st)
	}
}

func (t *Tree) add(st *types.Stat) error {
	mode := fs.FileMode(st.Mode)
	n := node{size: st.Size, time: st.ModTime, mode: uint32(mode.Perm())}
	switch {
	case mode.IsDir():
		n.mode |= unix.S_IFDIR
		n.size = 0
	case mode&fs.ModeSymlink != 0:
		n.mode |= unix.S_IFLNK
		t.links[len(t.nodes)] = st.Linkname
		n.size = int64(len(st.Linkname))
	case mode.IsRegular() && st.Linkname == "":
		n.mode |= unix.S_IFREG
	default:
		return fmt.Errorf("%s: a file of the kind %s cannot be shown", st.Path, mode)
	}
	for bit, kernel := range map[fs.FileMode]uint32{fs.ModeSetuid: unix.S_ISUID, fs.ModeSetgid: unix.S_ISGID, fs.ModeSticky: unix.S_ISVTX} {
		if mode&bit != 0 {
			n.mode |= kernel
		}
	}
	if !fs.ValidPath(st.Path) || st.Path == "." {
		return fmt.Errorf("%q is no path of a file", st.Path)
	}
	if len(t.nodes) >= maxNodes || len(t.names)+len(st.Path) > maxNames {
		return fmt.Errorf("more than %d files, or %d bytes of paths, cannot be shown", maxNodes, maxNames)
	}
	dir := ""
	if i := strings.LastIndexByte(st.Path, '/'); i >= 0 {
		dir = st.Path[:i]
	}
	for len(t.within) > 1 && t.path(t.within[len(t.within)-1]) != dir {
		t.within = t.within[:len(t.within)-1]
	}
	parent := t.within[len(t.within)-1]
	if t.path(parent) != dir {
		return fmt.Errorf("%q comes without its directory", st.Path)
	}
	n.parent = int32(parent)
	t.nodes[parent].count++
	t.names = append(t.names, st.Path...)
	n.end = uint32(len(t.names))
	if n.mode&unix.S_IFMT == unix.S_IFDIR {
		t.within = append(t.within, len(t.nodes))
	}
	t.nodes = append(t.nodes, n)
	return nil
}

// Seal ends the adding of entries. It returns why the tree cannot be shown, if it cannot.
func (t *Tree) Seal() error {
	if t.err != nil {
		return t.err
	}
	t.within = nil
	t.children = make([]int32, len(t.nodes)-1)
	next := int32(0)
	for i := range t.nodes {
		t.nodes[i].first, next = next, next+t.nodes[i].count
		t.nodes[i].count = 0
	}
	for i := 1; i < len(t.nodes); i++ {
		p := &t.nodes[t.nodes[i].parent]
		t.children[p.first+p.count] = int32(i)
		p.count++
	}
	for i := range t.nodes {
		below := t.below(i)
		byName := func(a, b int32) int { return strings.Compare(t.name(int(a)), t.name(int(b))) }
		if !slices.IsSortedFunc(below, byName) {
			slices.SortFunc(below, byName)
		}
	}
	return nil
}

// path returns the path of a node from the root, whose own is empty.
func (t *Tree) path(i int) string {
	if i == 0 {
		return ""
	}
	return string(t.names[t.nodes[i-1].end:t.nodes[i].end])
}

func (t *Tree) name(i int) string {
	p := t.path(i)
	return p[strings.LastIndexByte(p, '/')+1:]
}

// below returns what is in a directory, by name.
func (t *Tree) below(i int) []int32 {
	n := &t.nodes[i]
	return t.children[n.first : n.first+n.count]
}

// find returns the node of that name in a directory.
func (t *Tree) find(dir int, name string) (int, bool) {
	below := t.below(dir)
	i, ok := sort.Find(len(below), func(i int) int { return strings.Compare(name, t.name(int(below[i]))) })
	if !ok {
		return 0, false
	}
	return int(below[i]), true
}
