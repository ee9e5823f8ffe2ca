package source

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Times outside this range cannot be told to BuildKit, which counts nanoseconds in 64 bits.
var (
	minTime = time.Unix(0, math.MinInt64)
	maxTime = time.Unix(0, math.MaxInt64)
)

// Validate reports the first entry that is unsafe or out of order: an absolute path, a "..", a
// duplicate, an entry below something that is not a directory, a mode that a context cannot have.
func (t *Tree) Validate() error {
	if len(t.Entries) > MaxEntries {
		return fmt.Errorf("tree: %d entries, at most %d are allowed", len(t.Entries), MaxEntries)
	}
	var (
		dirs  []string // open directories, outermost first
		last  string
		total int64
	)
	for i := range t.Entries {
		e := &t.Entries[i]
		if err := validEntry(e); err != nil {
			return fmt.Errorf("tree: %q: %w", e.Path, err)
		}
		if total += e.Size; total < 0 {
			return errors.New("tree: sizes add up to more than a number can hold")
		}
		if i > 0 && comparePath(last, e.Path) >= 0 {
			return fmt.Errorf("tree: %q: listed twice or after %q", e.Path, last)
		}
		last = e.Path
		parent := parentOf(e.Path)
		for len(dirs) > 0 && dirs[len(dirs)-1] != parent {
			dirs = dirs[:len(dirs)-1]
		}
		if parent != "" && len(dirs) == 0 {
			return fmt.Errorf("tree: %q: %q is not a directory of the tree", e.Path, parent)
		}
		if e.Mode.IsDir() {
			dirs = append(dirs, e.Path)
		}
	}
	return nil
}

func validEntry(e *Entry) error {
	if err := validPath(e.Path); err != nil {
		return err
	}
	if e.Mode&^modeMask != 0 || e.Mode&fs.ModeDir != 0 && e.Mode&fs.ModeSymlink != 0 {
		return fmt.Errorf("mode %v is not one of a file, directory or symbolic link", e.Mode)
	}
	if e.ModTime.Before(minTime) || e.ModTime.After(maxTime) {
		return fmt.Errorf("modification time %v is out of range", e.ModTime)
	}
	regular, link := e.Mode.IsRegular(), e.Mode&fs.ModeSymlink != 0
	switch {
	case e.Size < 0 || !regular && e.Size != 0:
		return fmt.Errorf("size %d", e.Size)
	case regular && e.Size == 0 && e.Digest != emptySum:
		return errors.New("digest of an empty file is wrong")
	case !regular && e.Digest != Sum{}:
		return errors.New("only a file has a digest")
	case !link && e.Link != "":
		return errors.New("only a symbolic link has a target")
	case link && (e.Link == "" || len(e.Link) > maxLink):
		return fmt.Errorf("target of %d bytes, 1 to %d are allowed", len(e.Link), maxLink)
	case strings.ContainsRune(e.Link, 0) || !utf8.ValidString(e.Link):
		return errors.New("target is not valid UTF-8 or contains NUL")
	}
	return nil
}

// validPath refuses everything that is not a clean relative slash path inside the root.
func validPath(p string) error {
	switch {
	case p == "":
		return errors.New("empty path")
	case len(p) > maxPath:
		return fmt.Errorf("path of %d bytes, at most %d are allowed", len(p), maxPath)
	case p[0] == '/':
		return errors.New("absolute path")
	case !utf8.ValidString(p):
		return errors.New("name is not valid UTF-8, which BuildKit cannot transfer; rename it or list it in .dockerignore")
	case strings.IndexByte(p, 0) >= 0:
		return errors.New("name contains NUL")
	}
	for rest, name, more := p, "", true; more; {
		name, rest, more = strings.Cut(rest, "/")
		switch {
		case name == "" || name == "." || name == "..":
			return fmt.Errorf("path has an element %q", name)
		case len(name) > maxName:
			return fmt.Errorf("name of %d bytes, at most %d are allowed", len(name), maxName)
		}
	}
	return nil
}

// comparePath orders slash paths as a walk visits them: the separator is lower than every other
// byte, so "a/b" comes before "a-b".
func comparePath(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		switch {
		case a[i] == b[i]:
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		default:
			return 1
		}
	}
	return len(a) - len(b)
}

// parentOf returns the directory of p, "" when that is the root.
func parentOf(p string) string {
	i := strings.LastIndexByte(p, '/')
	return p[:max(i, 0)]
}
