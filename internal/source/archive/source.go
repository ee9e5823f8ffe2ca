package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/tonistiigi/fsutil"
)

// A Source is an unpacked archive that BuildKit can read. Its methods may be called concurrently.
type Source struct {
	fsutil.FS
	dir, key, identity string
	warnings           []string

	failOnce sync.Once
	failed   chan struct{} // closed when err is set
	err      error
}

// Key returns where the archive comes from, as a hash.
func (s *Source) Key() string { return s.key }

// Identity names the archive by its bytes: sources of one identity have the same files.
func (s *Source) Identity() string { return s.identity }

// Warnings say what of the archive is not part of the source.
func (s *Source) Warnings() []string { return s.warnings }

// Guard returns a context that ends, with the error as its cause, when a file cannot be read. stop releases
// the context.
func (s *Source) Guard(ctx context.Context) (guarded context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-s.failed:
			cancel(s.err)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// Walk calls fn for target and all below it. What is behind a symbolic link is not there.
func (s *Source) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = clean(target)
	if s.linked(path.Dir(target)) {
		return nil
	}
	return s.FS.Walk(ctx, target, fn)
}

// linked reports whether a path has a symbolic link in it. Nothing changes in the directory any more, so
// what was looked at stays so.
func (s *Source) linked(name string) bool {
	at := s.dir
	for part := range strings.SplitSeq(name, "/") {
		at = filepath.Join(at, part)
		if info, err := os.Lstat(at); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return true
		}
	}
	return false
}

// clean returns a path below the root, which is "".
func clean(name string) string {
	return strings.TrimPrefix(path.Clean("/"+filepath.ToSlash(name)), "/")
}

// Open returns a reader of a file, whose errors end guarded contexts.
func (s *Source) Open(name string) (io.ReadCloser, error) {
	name = clean(name)
	if s.linked(name) {
		return nil, s.fail(name, fs.ErrNotExist)
	}
	f, err := s.FS.Open(name)
	if err != nil {
		return nil, s.fail(name, err)
	}
	return &file{f, s, name}, nil
}

type file struct {
	io.ReadCloser
	s    *Source
	name string
}

func (f *file) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = f.s.fail(f.name, err)
	}
	return n, err
}

func (s *Source) fail(name string, err error) error {
	err = fmt.Errorf("archive: %s: %w", name, err)
	s.failOnce.Do(func() {
		s.err = err
		close(s.failed)
	})
	return err
}

// ReadFile returns the content of a regular file of at most limit bytes. Symbolic links are not followed
// out of the archive. A file that does not exist is fs.ErrNotExist.
func (s *Source) ReadFile(_ context.Context, name string, limit int64) ([]byte, error) {
	name = clean(name)
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Lstat(name)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("is not a regular file (%s)", info.Mode())}
	case info.Size() > limit:
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("has %d bytes, more than %d", info.Size(), limit)}
	}
	return root.ReadFile(name)
}
