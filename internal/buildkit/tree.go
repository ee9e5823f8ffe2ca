package buildkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// A tree is a directory of a source tree as the daemon may read it.
type tree struct {
	fs  fsutil.FS
	dir string // slash path without a leading or trailing slash; "" is the root
}

// Walk calls fn for everything below target, as fsutil.FS requires.
func (t tree) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = cleanTarget(target)
	if t.dir == "" {
		return t.fs.Walk(ctx, target, fn)
	}
	return t.fs.Walk(ctx, path.Join(t.dir, target), func(p string, e fs.DirEntry, err error) error {
		if p == t.dir {
			return err // the root itself is not an entry
		}
		rel, below := strings.CutPrefix(p, t.dir+"/")
		if !below {
			return fmt.Errorf("source: entry %q is not below %q", p, t.dir)
		}
		if e != nil {
			e = entryBelow{DirEntry: e, dir: t.dir}
		}
		return fn(rel, e, err)
	})
}

// Open opens a file. It never fails: who asks takes an error here for an empty file, so that an
// error is only returned by Read.
func (t tree) Open(p string) (io.ReadCloser, error) {
	p = path.Join(t.dir, cleanTarget(p))
	f, err := t.fs.Open(p)
	if err != nil {
		return brokenFile{fmt.Errorf("source: %s: %w", p, err)}, nil
	}
	return f, nil
}

// cleanTarget returns p relative to the root, which is "".
func cleanTarget(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

type brokenFile struct{ err error }

func (f brokenFile) Read([]byte) (int, error) { return 0, f.err }
func (brokenFile) Close() error               { return nil }

// entryBelow is an entry seen from a directory of the tree.
type entryBelow struct {
	fs.DirEntry
	dir string
}

func (e entryBelow) Info() (fs.FileInfo, error) {
	info, err := e.DirEntry.Info()
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*types.Stat)
	if !ok {
		return nil, fmt.Errorf("source: %s: no file status", info.Name())
	}
	stat = stat.Clone()
	stat.Path = strings.TrimPrefix(stat.Path, e.dir+"/")
	if stat.Linkname != "" && info.Mode()&fs.ModeSymlink == 0 {
		// A hard link. If its other name is outside, this is where the content is.
		link, below := strings.CutPrefix(stat.Linkname, e.dir+"/")
		if !below {
			link = ""
		}
		stat.Linkname = link
	}
	return &fsutil.StatInfo{Stat: stat}, nil
}

// lookup returns the entry at p, which is not the root. A missing one is fs.ErrNotExist.
func lookup(ctx context.Context, t fsutil.FS, p string) (fs.DirEntry, error) {
	var found fs.DirEntry
	err := t.Walk(ctx, p, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			found = e
			return fs.SkipAll
		}
		return err
	})
	switch {
	case found != nil:
		return found, nil
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return nil, &fs.PathError{Op: "lookup", Path: p, Err: fs.ErrNotExist}
	}
	return nil, err
}

// rootOwned returns t with everything owned by root, as in any build's context.
func rootOwned(t fsutil.FS) (fsutil.FS, error) {
	return fsutil.NewFilterFS(t, &fsutil.FilterOpt{Map: func(_ string, s *types.Stat) fsutil.MapResult {
		s.Uid, s.Gid = 0, 0
		return fsutil.MapResultKeep
	}})
}

// A fileTree is a tree of one file at its root.
type fileTree struct {
	name string
	data []byte
}

func (t fileTree) Walk(_ context.Context, target string, fn fs.WalkDirFunc) error {
	if target = cleanTarget(target); target != "" && target != t.name {
		return nil
	}
	if err := t.emit(fn); !errors.Is(err, fs.SkipAll) {
		return err
	}
	return nil
}

// emit calls fn for the file.
func (t fileTree) emit(fn fs.WalkDirFunc) error {
	err := fn(t.name, &fsutil.DirEntryInfo{Stat: &types.Stat{Path: t.name, Mode: 0o644, Size: int64(len(t.data))}}, nil)
	if errors.Is(err, fs.SkipDir) {
		return nil // there is nothing below it
	}
	return err
}

func (t fileTree) Open(p string) (io.ReadCloser, error) {
	if cleanTarget(p) != t.name {
		return brokenFile{&fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}}, nil
	}
	return io.NopCloser(bytes.NewReader(t.data)), nil
}

// An emptyTree has no entries.
type emptyTree struct{}

func (emptyTree) Walk(context.Context, string, fs.WalkDirFunc) error { return nil }

func (emptyTree) Open(p string) (io.ReadCloser, error) {
	return brokenFile{&fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}}, nil
}
