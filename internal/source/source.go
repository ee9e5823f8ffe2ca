// Package source is where the files of a run come from: today, directories that a client uploads.
//
// A directory becomes a Tree (Scan), whose ID covers every path, mode, time and content. Upload
// sends what the newest context of the same origin lacks. The server stores contexts as artifacts of
// its registry (Contexts) and a worker presents one to BuildKit as a virtual file system (Opener):
// nothing is ever unpacked, and only what BuildKit asks for is read.
//
// Trust: a tree is validated where it is made, where it is received and where it is opened. No path
// leaves the root, symbolic links are data, every content is verified against its digest when it is
// received and again when it is read. Sizes and counts are bounded.
//
// Failure: a context exists when it is complete, or not at all. Uploading is idempotent and may be
// repeated at any time. A read that cannot be served is an error, never an empty file.
package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// An Opener opens the sources of a worker's runs.
type Opener struct {
	Blobs Reader // the server's registry
	Cache *Cache
	// Limits are the server's; what exceeds them is refused.
	Limits Limits
}

// Open returns the source that ref names, "context://<id>". Its list of files is read at once, its
// contents when they are asked for. ctx bounds the life of the source: when it ends, reading does.
// A source that does not exist is fs.ErrNotExist.
func (o *Opener) Open(ctx context.Context, ref string) (*Source, error) {
	id, err := ParseRef(ref)
	if err != nil {
		return nil, err
	}
	s, err := load(ctx, o.Blobs, id, o.Limits.withDefaults().maxConfig(), nil)
	if err != nil {
		return nil, err
	}
	if s.id != id {
		return nil, fmt.Errorf("context %s: holds the files of %s; the registry's storage is damaged", id, s.id)
	}
	return &Source{
		id: id, key: s.keySum, entries: s.tree.Entries, places: s.places, failed: make(chan struct{}),
		content: func(p place) (io.ReaderAt, func(), error) { return o.Cache.acquire(ctx, o.Blobs, s.packs[p.pack]) },
		damaged: func(p place) { o.Cache.dropDigest(s.packs[p.pack].digest) },
	}, nil
}

// A Source is a directory tree that BuildKit can read: an fsutil.FS. Its methods may be called
// concurrently. It needs no closing.
type Source struct {
	id, key string
	entries []Entry
	places  map[Sum]place
	content func(place) (io.ReaderAt, func(), error)
	damaged func(place)

	failOnce sync.Once
	failed   chan struct{} // closed when err is set
	err      error
}

var _ fsutil.FS = (*Source)(nil)

// ID returns the identity of the tree.
func (s *Source) ID() string { return s.id }

// Key returns where the tree comes from, as a hash: sources with one key are versions of one
// directory, which BuildKit transfers as differences.
func (s *Source) Key() string { return s.key }

// Guard returns a context that ends, with the error as its cause, when a content cannot be read.
// Build under it: BuildKit's protocol has no word for a file that breaks off, so the daemon would
// wait for the rest of it. stop releases the context.
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

func (s *Source) fail(err error) {
	s.failOnce.Do(func() {
		s.err = err
		close(s.failed)
	})
}

// Walk calls fn for target and all below it in fsutil's order, as filepath.WalkDir would. Target ""
// or "/" is the root, for which fn is not called.
func (s *Source) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = cleanPath(target)
	i, end := 0, len(s.entries)
	if target != "" {
		var ok bool
		if i, ok = s.find(target); !ok {
			err := fn(filepath.FromSlash(target), nil, &fs.PathError{Op: "walk", Path: target, Err: fs.ErrNotExist})
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.SkipDir) || errors.Is(err, fs.SkipAll) {
				return nil // as fsutil's own walk: what is not there is left out
			}
			return err
		}
		end = s.end(i, target)
	}
	for i < end {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		e := &s.entries[i]
		err := fn(filepath.FromSlash(e.Path), &fsutil.DirEntryInfo{Stat: e.stat()}, nil)
		switch {
		case err == nil:
			i++
		case errors.Is(err, fs.SkipAll):
			return nil
		case !errors.Is(err, fs.SkipDir):
			return err
		case e.Mode.IsDir():
			i = s.end(i, e.Path)
		default: // the rest of the directory that the file is in
			i = s.end(i, parentOf(e.Path))
		}
	}
	return nil
}

// stat returns a new value: callers change it.
func (e *Entry) stat() *types.Stat {
	st := &types.Stat{
		Path: filepath.FromSlash(e.Path), Mode: uint32(e.Mode), Size: e.Size,
		ModTime: e.ModTime.UnixNano(), Linkname: filepath.FromSlash(e.Link),
	}
	if e.Mode&fs.ModeSymlink != 0 {
		st.Size = int64(len(e.Link))
	}
	return st
}

// find returns the index of the entry with the path.
func (s *Source) find(p string) (int, bool) {
	return sort.Find(len(s.entries), func(i int) int { return comparePath(p, s.entries[i].Path) })
}

// end returns the index behind the last entry below dir, of which i is one or dir itself.
func (s *Source) end(i int, dir string) int {
	if dir == "" {
		return len(s.entries)
	}
	return i + 1 + sort.Search(len(s.entries)-i-1, func(n int) bool {
		return !strings.HasPrefix(s.entries[i+1+n].Path, dir+"/")
	})
}

// cleanPath returns the slash path below the root that p names, "" for the root.
func cleanPath(p string) string {
	return strings.TrimPrefix(path.Clean("/"+filepath.ToSlash(p)), "/")
}

// Open returns a reader of a regular file. What cannot be read is an error of Read, and ends guarded
// contexts: BuildKit takes a file that cannot be opened for an empty one. Close the reader.
func (s *Source) Open(p string) (io.ReadCloser, error) {
	p = cleanPath(p)
	i, ok := s.find(p)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
	e := &s.entries[i]
	if !e.Mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: p, Err: fmt.Errorf("is not a regular file (%s)", e.Mode)}
	}
	return &fileReader{source: s, entry: e, left: e.Size}, nil
}

// ReadFile returns the content of a regular file of at most limit bytes. Symbolic links are not
// followed. A file that does not exist is fs.ErrNotExist.
func (s *Source) ReadFile(ctx context.Context, p string, limit int64) ([]byte, error) {
	f, err := s.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := f.(*fileReader).left
	if size > limit {
		return nil, &TooLargeError{What: p, Size: uint64(size), Limit: limit}
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	return b, nil
}

// A fileReader reads one file. It gets its pack at the first Read.
type fileReader struct {
	source  *Source
	entry   *Entry
	left    int64
	at      *io.SectionReader
	sum     hash.Hash
	release func()
	err     error
}

// Read never hands out the end of a file whose content is not what the tree says.
func (f *fileReader) Read(b []byte) (int, error) {
	if f.err == nil && f.left == 0 {
		f.err = io.EOF
	}
	if f.err != nil || len(b) == 0 {
		return 0, f.err
	}
	n, err := f.read(b)
	if err == nil && f.left > 0 {
		return n, nil
	}
	f.done()
	if err != nil {
		f.err = fmt.Errorf("context %s: %s: %w", f.source.id, f.entry.Path, err)
		f.source.fail(f.err)
		return 0, f.err
	}
	f.err = io.EOF
	return n, nil
}

// errDamaged is what a stored content is that does not have its digest.
var errDamaged = errors.New("stored content is damaged; upload the context again")

func (f *fileReader) read(b []byte) (int, error) {
	if f.at == nil {
		if err := f.acquire(); err != nil {
			return 0, err
		}
	}
	n, err := f.at.Read(b)
	f.sum.Write(b[:n])
	f.left -= int64(n)
	switch {
	case f.left == 0 && Sum(f.sum.Sum(nil)) != f.entry.Digest, f.left > 0 && err == io.EOF:
		f.source.damaged(f.source.places[f.entry.Digest])
		return 0, errDamaged
	case f.left == 0:
		return n, nil
	}
	return n, err
}

func (f *fileReader) acquire() error {
	p := f.source.places[f.entry.Digest]
	at, release, err := f.source.content(p)
	if err != nil {
		return err
	}
	f.at, f.release, f.sum = io.NewSectionReader(at, p.offset, f.entry.Size), release, sha256.New()
	return nil
}

func (f *fileReader) done() {
	if f.release != nil {
		f.release()
		f.release = nil
	}
}

// Close may be called at any time and more than once, but not during a Read.
func (f *fileReader) Close() error {
	f.done()
	if f.err == nil {
		f.err = fs.ErrClosed
	}
	return nil
}
