package registry

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A blobStore keeps the content of the blobs that are too large for the database, under their keys. That
// there is no such content is fs.ErrNotExist.
type blobStore interface {
	// keep makes the content of sp, which is in its file, durable under its key.
	keep(ctx context.Context, sp *spool) error
	// open returns content of that size; what s tells is read first. It may be read until ctx ends.
	open(ctx context.Context, key string, size int64, s span) (io.ReadSeekCloser, error)
	// stat returns the size of content.
	stat(ctx context.Context, key string) (int64, error)
	// remove deletes content. That there is none is no error.
	remove(ctx context.Context, keys ...string) error
	// list calls f with everything that is where content belongs.
	list(ctx context.Context, f func(content) error) error
	// tidy gives back what unfinished writes have left.
	tidy(ctx context.Context) error
	// forget sees to it that the content of key, which no row owns, goes sooner or later.
	forget(ctx context.Context, key string) error
}

// A span is a part of a blob: the bytes from one position up to another.
type span struct{ from, to int64 }

// A content is what a blobStore has somewhere.
type content struct {
	key      string // if that is what its name says
	name     string // for people
	size     int64
	modified time.Time
}

// fileBlobs keeps content in files below a directory.
type fileBlobs struct{ dir string }

func (b fileBlobs) path(key string) string { return filepath.Join(b.dir, key[:2], key) }

// keep links the spool's file to its final name. Until the spool is discarded the file has both: a start
// after a crash finds among the uploads what no row came to own.
func (b fileBlobs) keep(_ context.Context, sp *spool) error {
	if err := sp.file.Sync(); err != nil {
		return diskError(err)
	}
	final := b.path(sp.key)
	shard := filepath.Dir(final)
	if err := os.Mkdir(shard, 0o700); err == nil {
		if err := syncDir(b.dir); err != nil {
			return diskError(err)
		}
	} else if !errors.Is(err, os.ErrExist) {
		return diskError(err)
	}
	if err := os.Link(sp.path(), final); err != nil {
		return diskError(err)
	}
	return diskError(syncDir(shard))
}

func (b fileBlobs) open(_ context.Context, key string, _ int64, _ span) (io.ReadSeekCloser, error) {
	f, err := os.Open(b.path(key))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (b fileBlobs) stat(_ context.Context, key string) (int64, error) {
	info, err := os.Stat(b.path(key))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (b fileBlobs) remove(_ context.Context, keys ...string) error {
	for _, key := range keys {
		if err := os.Remove(b.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (b fileBlobs) list(ctx context.Context, f func(content) error) error {
	shards, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, shard := range shards {
		entries, err := os.ReadDir(filepath.Join(b.dir, shard.Name()))
		if err != nil {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			c := content{key: e.Name(), name: filepath.Join(blobsDir, shard.Name(), e.Name()), size: info.Size(), modified: info.ModTime()}
			if err := errors.Join(f(c), ctx.Err()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b fileBlobs) tidy(context.Context) error { return nil }

func (b fileBlobs) forget(ctx context.Context, key string) error { return b.remove(ctx, key) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
