package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// ErrChanged is returned when a file changed while it was read: scan again.
var ErrChanged = errors.New("changed while it was read; try again when nothing writes to it")

// ScanOptions say what a scan leaves out.
type ScanOptions struct {
	// Dockerfile is the slash path of the Dockerfile inside the directory; "" means Dockerfile. It
	// is always kept, and <Dockerfile>.dockerignore takes precedence over .dockerignore.
	Dockerfile string
	// Keep lists slash paths of further files that no ignore file can exclude.
	Keep []string
	// NoIgnore keeps everything: ignore files are files like any other.
	NoIgnore bool
}

// Scan reads the directory dir as a tree, without what its ignore file excludes, and hashes every
// file. Contents are not kept. Sockets, devices and pipes are left out with a warning; hard links
// become files of their own; owners and extended attributes are dropped.
//
// A file that changes all the time while it is read is ErrChanged.
func Scan(ctx context.Context, dir string, opt ScanOptions) (*Tree, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	patterns, err := ignorePatterns(dir, opt)
	if err != nil {
		return nil, err
	}
	tree := &Tree{}
	filtered, err := fsutil.NewFilterFS(dirFS{root: dir}, &fsutil.FilterOpt{ExcludePatterns: patterns})
	if err != nil {
		return nil, fmt.Errorf("%s: ignore file: %w", dir, err)
	}
	err = filtered.Walk(ctx, "/", func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return tree.add(d)
	})
	if err != nil {
		return nil, scanError(dir, err)
	}
	if err := hashFiles(ctx, dir, tree); err != nil {
		return nil, err
	}
	if err := tree.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return tree, nil
}

func checkDir(dir string) error {
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("context %q: no such directory; check the path: %w", dir, fs.ErrNotExist)
	case err != nil:
		return scanError(dir, err)
	case !fi.IsDir():
		return fmt.Errorf("context %q: not a directory; name the directory that contains it", dir)
	}
	return nil
}

func scanError(dir string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("context %q: %w; make it readable or list it in .dockerignore", dir, err)
	}
	return fmt.Errorf("context %q: %w", dir, err)
}

// add appends what a walk has found. Regular files lack their size and digest.
func (t *Tree) add(d fs.DirEntry) error {
	fi, err := d.Info()
	if err != nil {
		return err
	}
	st := fi.Sys().(*types.Stat)
	p, mode := filepath.ToSlash(st.Path), fi.Mode()
	if mode&fs.ModeType&^(fs.ModeDir|fs.ModeSymlink) != 0 {
		t.Warnings = append(t.Warnings, fmt.Sprintf("%s: left out: %s", p, kindOf(mode)))
		return nil
	}
	if len(t.Entries) == MaxEntries {
		return fmt.Errorf("more than %d files; list what the build does not need in .dockerignore", MaxEntries)
	}
	t.Entries = append(t.Entries, Entry{
		Path: p, Mode: mode & modeMask, ModTime: fi.ModTime(), Link: filepath.ToSlash(st.Linkname),
	})
	return nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "not a regular file"
}

// A dirFS is a directory as fsutil's filters want it. Unlike fsutil.NewFS it costs one system call
// a file, and knows no hard links.
type dirFS struct{ root string }

// Open is never called by a walk.
func (d dirFS) Open(p string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(d.root, p))
}

// Walk walks all of the directory. What vanishes during the walk is left out.
func (d dirFS) Walk(ctx context.Context, _ string, fn fs.WalkDirFunc) error {
	root := filepath.Clean(d.root)
	// The trailing separator follows a link that is the root itself.
	prefix := strings.TrimSuffix(root, string(filepath.Separator)) + string(filepath.Separator)
	return filepath.WalkDir(prefix, func(p string, entry fs.DirEntry, walkErr error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, prefix)
		if rel == "" {
			return walkErr
		}
		if walkErr != nil {
			return vanished(fn(rel, entry, walkErr))
		}
		fi, err := entry.Info()
		if err != nil {
			return vanished(err)
		}
		st := &types.Stat{Path: rel, Mode: uint32(portableMode(fi.Mode())), ModTime: fi.ModTime().UnixNano()}
		if fi.Mode()&fs.ModeSymlink != 0 {
			if st.Linkname, err = os.Readlink(p); err != nil {
				return vanished(err)
			}
		}
		return fn(rel, &fsutil.DirEntryInfo{Stat: st}, nil)
	})
}

func vanished(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}
