package git

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

const (
	maxReaders     = 4        // of one generation at once
	readerCache    = 2 << 20  // bytes of objects that a reader keeps
	wholeThreshold = 1 << 20  // larger objects are streamed
	maxTreeObject  = 64 << 20 // bytes of one directory's object
	maxCommit      = 1 << 20  // bytes of a commit or tag
)

// errDamaged is what an object is that is missing or not what its name says.
var errDamaged = errors.New("object is missing or damaged in the mirror")

// openStorage opens a generation's repository.
func openStorage(dir string) *filesystem.Storage {
	return filesystem.NewStorageWithOptions(osfs.New(dir, osfs.WithBoundOS()), cache.NewObjectLRU(readerCache),
		filesystem.Options{KeepDescriptors: true, LargeObjectThreshold: wholeThreshold})
}

// readers are the open storages of a generation: one at a time may use each.
type readers struct {
	dir   string
	slots chan struct{}

	mu     sync.Mutex
	idle   []*reader
	packs  int // counts new packs
	sizes  map[plumbing.Hash]int64
	closed bool
}

type reader struct {
	*filesystem.Storage
	packs int
}

func newReaders(dir string) *readers {
	return &readers{dir: dir, slots: make(chan struct{}, maxReaders), sizes: map[plumbing.Hash]int64{}}
}

func (rs *readers) acquire(ctx context.Context) (*reader, error) {
	select {
	case rs.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.closed {
		<-rs.slots
		return nil, os.ErrClosed
	}
	r := &reader{packs: rs.packs}
	if n := len(rs.idle); n > 0 {
		r, rs.idle = rs.idle[n-1], rs.idle[:n-1]
	} else {
		r.Storage = openStorage(rs.dir)
	}
	if r.packs != rs.packs {
		r.Reindex()
		r.packs = rs.packs
	}
	return r, nil
}

// release takes a reader back. After an error it is not used again.
func (rs *readers) release(r *reader, err error) {
	rs.mu.Lock()
	if keep := err == nil && !rs.closed; keep {
		rs.idle = append(rs.idle, r)
	} else {
		_ = r.Close()
	}
	rs.mu.Unlock()
	<-rs.slots
}

func (rs *readers) close() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.closed = true
	for _, r := range rs.idle {
		_ = r.Close()
	}
	rs.idle, rs.sizes = nil, nil
}

// addPack makes the readers look for a new pack, and remembers sizes of its objects.
func (rs *readers) addPack(sizes map[plumbing.Hash]int64) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.packs++
	for h, n := range sizes {
		rs.noteSize(h, n)
	}
}

func (rs *readers) noteSize(h plumbing.Hash, n int64) {
	if rs.sizes != nil && len(rs.sizes) < maxSizes {
		rs.sizes[h] = n
	}
}

// size returns the size of an object.
func (rs *readers) size(ctx context.Context, h plumbing.Hash) (int64, error) {
	rs.mu.Lock()
	n, ok := rs.sizes[h]
	rs.mu.Unlock()
	if ok {
		return n, nil
	}
	r, err := rs.acquire(ctx)
	if err != nil {
		return 0, err
	}
	n, err = r.EncodedObjectSize(h)
	rs.release(r, err)
	if err != nil {
		return 0, damaged(h, err)
	}
	rs.mu.Lock()
	rs.noteSize(h, n)
	rs.mu.Unlock()
	return n, nil
}

// damaged hides what a storage says: "not found" has a meaning for those who walk file systems.
func damaged(h plumbing.Hash, err error) error {
	return fmt.Errorf("%w: %s (%v)", errDamaged, h, err)
}

// read returns an object of at most limit bytes, verified.
func (rs *readers) read(ctx context.Context, t plumbing.ObjectType, h plumbing.Hash, limit int64) ([]byte, error) {
	r, err := rs.acquire(ctx)
	if err != nil {
		return nil, err
	}
	b, err := readObject(r, t, h, limit)
	rs.release(r, err)
	return b, err
}

func readObject(st storer.EncodedObjectStorer, t plumbing.ObjectType, h plumbing.Hash, limit int64) ([]byte, error) {
	obj, err := st.EncodedObject(t, h)
	if err != nil {
		return nil, damaged(h, err)
	}
	if obj.Size() > limit {
		return nil, fmt.Errorf("%s %s has %d bytes, at most %d are allowed: %w", obj.Type(), h, obj.Size(), limit, ErrTooLarge)
	}
	rc, err := obj.Reader()
	if err != nil {
		return nil, damaged(h, err)
	}
	defer rc.Close()
	b := make([]byte, obj.Size())
	if _, err := io.ReadFull(rc, b); err != nil {
		return nil, damaged(h, err)
	}
	sum := objectHash(obj.Type(), obj.Size())
	sum.Write(b)
	if !bytes.Equal(sum.Sum(nil), h[:]) {
		return nil, damaged(h, errors.New("content does not have this name"))
	}
	return b, nil
}

func objectHash(t plumbing.ObjectType, size int64) hash.Hash {
	sum := sha1.New()
	fmt.Fprintf(sum, "%s %d\x00", t, size)
	return sum
}

// open returns a reader of a large file. Its last byte is only handed out when all are verified.
func (rs *readers) open(ctx context.Context, h plumbing.Hash) (io.ReadCloser, error) {
	r, err := rs.acquire(ctx)
	if err != nil {
		return nil, err
	}
	obj, err := r.EncodedObject(plumbing.BlobObject, h)
	if err != nil {
		rs.release(r, err)
		return nil, damaged(h, err)
	}
	rc, err := obj.Reader()
	if err != nil {
		rs.release(r, err)
		return nil, damaged(h, err)
	}
	return &blob{rc: rc, id: h, left: obj.Size(), sum: objectHash(plumbing.BlobObject, obj.Size()),
		release: func(err error) { rs.release(r, err) }}, nil
}

// A blob streams one file.
type blob struct {
	rc      io.ReadCloser
	id      plumbing.Hash
	left    int64
	sum     hash.Hash
	err     error
	release func(error)
}

func (b *blob) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	if b.left == 0 {
		b.err = io.EOF
		return 0, io.EOF
	}
	n, err := b.rc.Read(p[:min(int64(len(p)), b.left)])
	b.sum.Write(p[:n])
	b.left -= int64(n)
	switch {
	case b.left == 0 && !bytes.Equal(b.sum.Sum(nil), b.id[:]):
		b.err = damaged(b.id, errors.New("content does not have this name"))
		return 0, b.err
	case b.left == 0:
		return n, nil
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		b.err = damaged(b.id, err)
		return 0, b.err
	}
	return n, nil
}

func (b *blob) Close() error {
	if b.release == nil {
		return nil
	}
	err := b.rc.Close()
	if b.err != nil && b.err != io.EOF {
		err = b.err
	}
	b.release(err)
	b.release = nil
	return nil
}
