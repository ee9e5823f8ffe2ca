package buildkit

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/tonistiigi/fsutil"
)

const (
	ignoreName = ".dockerignore"
	maxIgnore  = 1 << 20 // bytes of one that is sent with the Dockerfile
)

// withIgnore returns the tree in which a build finds its Dockerfile, with the context's .dockerignore as the
// Dockerfile's own, which the frontend reads first: it then need not have the context's transferred in a
// round of its own. A Dockerfile that has its own keeps it, and whatever is not just a small file is left to
// the frontend.
func withIgnore(ctx context.Context, root fsutil.FS, contextDir, dockerfile string) fsutil.FS {
	plain := tree{fs: root}
	name := dockerfile + ignoreName
	if _, err := lookup(ctx, root, name); !errors.Is(err, fs.ErrNotExist) {
		return plain
	}
	data, err := readIgnore(ctx, root, path.Join(contextDir, ignoreName))
	if err != nil {
		return plain
	}
	if len(data) == 0 {
		data = []byte("\n") // nothing at all would count as no file
	}
	return addedFile{tree: plain, name: name, data: data}
}

// readIgnore returns the content of a small regular file; none if it is not there.
func readIgnore(ctx context.Context, root fsutil.FS, name string) ([]byte, error) {
	e, err := lookup(ctx, root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !e.Type().IsRegular() {
		return nil, fs.ErrInvalid
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIgnore+1))
	if err == nil && len(data) > maxIgnore {
		err = fs.ErrInvalid
	}
	return data, err
}

// An addedFile is a tree with one more file, in a directory that it has.
type addedFile struct {
	tree
	name string
	data []byte
}

// Walk implements fsutil.FS: the file comes where its name belongs.
func (t addedFile) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = cleanTarget(target)
	file := fileTree{name: t.name, data: t.data}
	if target == t.name {
		return file.Walk(ctx, target, fn)
	}
	dir := strings.TrimPrefix(path.Dir(t.name), ".")
	inside := target == "" || target == dir || strings.HasPrefix(dir, target+"/")
	done, stopped := !inside, false
	err := t.tree.Walk(ctx, target, func(p string, e fs.DirEntry, err error) error {
		if !done && before(t.name, p) {
			done = true
			if err := file.emit(fn); err != nil {
				stopped = true
				return err
			}
		}
		err = fn(p, e, err)
		if errors.Is(err, fs.SkipDir) && e != nil && e.IsDir() && (p == dir || strings.HasPrefix(dir, p+"/")) {
			done = true
		}
		stopped = stopped || err != nil && !errors.Is(err, fs.SkipDir)
		return err
	})
	if err != nil || done || stopped {
		return err
	}
	return file.Walk(ctx, t.name, fn)
}

// before reports whether a walk comes to a before b: directories are compared name by name.
func before(a, b string) bool {
	for {
		x, moreA, okA := strings.Cut(a, "/")
		y, moreB, okB := strings.Cut(b, "/")
		if x != y || !okA || !okB {
			return x < y || x == y && !okA && okB
		}
		a, b = moreA, moreB
	}
}

// Open implements fsutil.FS.
func (t addedFile) Open(p string) (io.ReadCloser, error) {
	if cleanTarget(p) == t.name {
		return fileTree{name: t.name, data: t.data}.Open(t.name)
	}
	return t.tree.Open(p)
}
