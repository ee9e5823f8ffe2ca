package git

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"unicode/utf8"

	"github.com/go-git/go-git/v5/plumbing"
)

// lfsPrefix begins what Git LFS commits in place of a file.
var lfsPrefix = []byte("version https://git-lfs.github.com/spec/v1\n")

const maxPointer = 1024 // bytes of such a pointer

// openFile opens a regular file. Small ones are read whole, so that a damaged mirror can be repaired
// before anybody has seen a byte.
func (s *Source) openFile(ctx context.Context, name string) (io.ReadCloser, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	n, e, err := s.lookup(ctx, name)
	switch {
	case err == nil && !e.mode.IsRegular():
		err = fmt.Errorf("is not a regular file (%s)", e.mode)
	case err == nil:
		var rc io.ReadCloser
		if rc, err = s.openBlob(ctx, n, e); err == nil {
			return &watched{ReadCloser: rc, fail: func(err error) error { return s.fail(ctx, n, name, err) }}, nil
		}
	}
	return nil, s.fail(ctx, n, name, err)
}

func (s *Source) openBlob(ctx context.Context, n node, e entry) (io.ReadCloser, error) {
	size, err := n.sn.size(ctx, e.id)
	if err != nil {
		return nil, err
	}
	if size > wholeThreshold {
		return n.sn.openBlob(ctx, e.id)
	}
	b, err := n.sn.read(ctx, plumbing.BlobObject, e.id, wholeThreshold)
	if err != nil {
		return nil, err
	}
	if len(b) < maxPointer && bytes.HasPrefix(b, lfsPrefix) {
		s.countPointer(e.id)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *Source) countPointer(h plumbing.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.seen[h] {
		s.seen[h] = true
		s.pointers++
	}
}

// watched reports why a file cannot be read to its end.
type watched struct {
	io.ReadCloser
	fail func(error) error
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		err = w.fail(err)
	}
	return n, err
}

// A fileReader opens its file at the first Read.
type fileReader struct {
	open func(name string) (io.ReadCloser, error)
	name string
	rc   io.ReadCloser
	err  error
}

func (f *fileReader) Read(b []byte) (int, error) {
	if f.rc == nil && f.err == nil {
		f.rc, f.err = f.open(f.name)
	}
	if f.err != nil {
		return 0, f.err
	}
	return f.rc.Read(b)
}

// Close may be called more than once, but not during a Read.
func (f *fileReader) Close() error {
	if f.err == nil {
		f.err = fs.ErrClosed
	}
	if f.rc == nil {
		return nil
	}
	err := f.rc.Close()
	f.rc = nil
	return err
}

func validUTF8(b []byte) bool { return utf8.Valid(b) }
