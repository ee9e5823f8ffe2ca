package git

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"
)

// Bounds of names, in bytes. They are those of Linux.
const (
	maxPath = 4096
	maxName = 255
	maxLink = 4096
)

// An entry is one name in a directory of a commit.
type entry struct {
	name string
	mode fs.FileMode // type and permissions; a submodule is a directory
	id   plumbing.Hash
	link bool // id is a commit of a submodule
}

// decodeTree reads a tree object. It refuses names that could lead anywhere but one level down, and
// sorts as a walk of a file system does: git sorts directories as if their names ended with a slash.
func decodeTree(b []byte) ([]entry, error) {
	var entries []entry
	for len(b) > 0 {
		mode, rest, ok := bytes.Cut(b, []byte{' '})
		name, rest, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 || len(rest) < 20 {
			return nil, fmt.Errorf("%w: malformed directory", ErrBadTree)
		}
		e := entry{name: string(name)}
		copy(e.id[:], rest)
		b = rest[20:]
		if err := e.setMode(string(mode)); err != nil {
			return nil, err
		}
		if err := checkName(e.name); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	for i := 1; i < len(entries); i++ {
		if entries[i].name == entries[i-1].name {
			return nil, fmt.Errorf("%w: the name %q is there twice", ErrBadTree, entries[i].name)
		}
	}
	return entries, nil
}

func (e *entry) setMode(mode string) error {
	switch mode {
	case "100644", "100664", "100600":
		e.mode = 0o644
	case "100755":
		e.mode = 0o755
	case "120000":
		e.mode = fs.ModeSymlink | 0o777
	case "40000", "040000":
		e.mode = fs.ModeDir | 0o755
	case "160000":
		e.mode, e.link = fs.ModeDir|0o755, true
	default:
		return fmt.Errorf("%w: %q has the mode %q", ErrBadTree, clip(e.name, maxName), clip(mode, 10))
	}
	return nil
}

func checkName(name string) error {
	switch {
	case !utf8.ValidString(name):
		return fmt.Errorf("%w: the name %q is not UTF-8, as build contexts must be; rename the file", ErrBadTree, clip(name, maxName))
	case name == "" || name == "." || name == ".." || strings.Contains(name, "/") || strings.EqualFold(name, ".git"):
		return fmt.Errorf("%w: the name %q is not allowed in a repository", ErrBadTree, clip(name, maxName))
	case len(name) > maxName:
		return fmt.Errorf("%w: the name %q has more than %d bytes", ErrBadTree, clip(name, 40), maxName)
	}
	return nil
}

// find returns the entry with the name.
func find(entries []entry, name string) (entry, bool) {
	i, ok := slices.BinarySearchFunc(entries, name, func(e entry, name string) int { return cmp.Compare(e.name, name) })
	if !ok {
		return entry{}, false
	}
	return entries[i], true
}

// cleanTarget returns the slash path below the root that p names, "" for the root.
func cleanTarget(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }
