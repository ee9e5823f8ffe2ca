package git

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/tonistiigi/fsutil"
)

// Walk calls fn for target and all below it in fsutil's order, as filepath.WalkDir would. Target ""
// or "/" is the root, for which fn is not called.
func (s *Source) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = cleanTarget(target)
	w := &walk{s: s, fn: fn, left: s.entries}
	var err error
	if target == "" {
		err = w.dir(ctx, s.root, "", 0)
	} else {
		err = w.target(ctx, target)
	}
	if errors.Is(err, fs.SkipAll) || errors.Is(err, fs.SkipDir) {
		return nil
	}
	return err
}

// A walk is one walk of a source.
type walk struct {
	s    *Source
	fn   fs.WalkDirFunc
	left int // entries that may still come
}

func (w *walk) target(ctx context.Context, target string) error {
	n, e, err := w.s.lookup(ctx, target)
	if errors.Is(err, fs.ErrNotExist) {
		err := w.fn(target, nil, &fs.PathError{Op: "walk", Path: target, Err: fs.ErrNotExist})
		if errors.Is(err, fs.ErrNotExist) {
			return nil // as fsutil's own walk: what is not there is left out
		}
		return err
	}
	if err != nil {
		return w.s.fail(ctx, n, target, err)
	}
	return w.entry(ctx, n, e, target, 0)
}

// dir walks what is in a directory. name is its path from the source's root.
func (w *walk) dir(ctx context.Context, n node, name string, depth int) error {
	if depth > maxDepth {
		return w.s.fail(ctx, n, name, fmt.Errorf("%w: more than %d directories in each other", ErrBadTree, maxDepth))
	}
	entries, err := w.s.list(ctx, n)
	if err != nil {
		return w.s.fail(ctx, n, name, err)
	}
	for _, e := range entries {
		err := w.entry(ctx, n, e, join(name, e.name), depth)
		if errors.Is(err, fs.SkipDir) {
			return nil // fn said so of a file: the rest of its directory
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) entry(ctx context.Context, n node, e entry, name string, depth int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if w.left--; w.left < 0 {
		return w.s.fail(ctx, n, name, fmt.Errorf("the commit has more than %d files: %w", w.s.entries, ErrTooLarge))
	}
	if len(name) > maxPath {
		return w.s.fail(ctx, n, clip(name, 80), fmt.Errorf("%w: path of more than %d bytes", ErrBadTree, maxPath))
	}
	err := w.fn(name, &dirEntry{s: w.s, ctx: func() context.Context { return ctx }, node: n, entry: e, path: name}, nil)
	if !e.mode.IsDir() {
		return err
	}
	if errors.Is(err, fs.SkipDir) {
		return nil
	}
	if err != nil {
		return err
	}
	if c, ok := w.s.child(n, e); ok {
		return w.dir(ctx, c, name, depth+1)
	}
	return nil // a submodule that is not there is an empty directory, as in a clone
}

// A dirEntry is an entry whose size is looked up when somebody asks.
type dirEntry struct {
	s     *Source
	ctx   func() context.Context // of the walk
	node  node
	entry entry
	path  string
}

func (d *dirEntry) Name() string      { return d.entry.name }
func (d *dirEntry) IsDir() bool       { return d.entry.mode.IsDir() }
func (d *dirEntry) Type() fs.FileMode { return d.entry.mode.Type() }

func (d *dirEntry) Info() (fs.FileInfo, error) {
	st, err := d.s.stat(d.ctx(), d.node, d.entry, d.path)
	if err != nil {
		return nil, d.s.fail(d.ctx(), d.node, d.path, err)
	}
	return &fsutil.StatInfo{Stat: st}, nil
}

// cutPath splits off the first name of a path.
func cutPath(p string) (name, rest string, more bool) { return strings.Cut(p, "/") }
