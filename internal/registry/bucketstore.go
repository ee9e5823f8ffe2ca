package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"sync/atomic"
	"time"

	"kiln/internal/registry/bucket"
)

const (
	openPatience = 30 * time.Second // that opening a store waits for the storage of its blobs
	partAge      = 24 * time.Hour   // of parts of an object that nobody completes any more
)

// bucketBlobs keeps content in a bucket, below a prefix that is this store's alone.
type bucketBlobs struct {
	*bucket.Bucket
	s     *Store
	ready atomic.Bool // the prefix is known to be ours
}

// openBlobs says where the content of large blobs is. A store has it in files or in a bucket, for ever.
func (s *Store) openBlobs(st *statements) error {
	var was string
	if err := st.db.QueryRow(`SELECT coalesce((SELECT value FROM meta WHERE key = 'blobs'), '')`).Scan(&was); err != nil {
		return err
	}
	if s.opt.Bucket == nil {
		if was != "" {
			return fmt.Errorf("%w: its blobs are in %s: say so with --blobs, as before", ErrBlobsElsewhere, was)
		}
		s.blobs = fileBlobs{filepath.Join(s.dir, blobsDir)}
		return nil
	}
	b := &bucketBlobs{Bucket: bucket.Open(*s.opt.Bucket), s: s}
	s.bucket, s.blobs = b, b
	ctx, cancel := context.WithTimeout(context.Background(), openPatience)
	defer cancel()
	if was == b.Location() {
		err := b.check(ctx)
		if errors.Is(err, bucket.ErrUnavailable) && !errors.Is(err, bucket.ErrRefused) || err != nil && ctx.Err() != nil {
			s.opt.Log.Warn("the storage of blobs does not answer; what does not need it goes on", "err", err)
			return nil
		}
		return err
	}
	return s.moveIn(ctx, st, b, was)
}

// moveIn makes a bucket the place of blobs: that of a store which has none yet, or one that those of another
// bucket, where they were, have been copied to.
func (s *Store) moveIn(ctx context.Context, st *statements, b *bucketBlobs, was string) error {
	if was != "" {
		if err := b.check(ctx); err != nil {
			return fmt.Errorf("%w; its blobs were in %s: before they are looked for in another place, copy all objects there", err, was)
		}
	} else {
		var files bool
		if err := st.db.QueryRow(`SELECT EXISTS (SELECT 1 FROM blob WHERE key IS NOT NULL) OR EXISTS (SELECT 1 FROM doomed)`).Scan(&files); err != nil {
			return err
		}
		if files {
			return fmt.Errorf("%w: its blobs are files on disk: leave --blobs out, or use a new data directory and copy the images to it", ErrBlobsElsewhere)
		}
		owner, err := b.Claim(ctx, s.uuid)
		if err == nil {
			err = b.ours(owner)
		}
		if err != nil {
			return err
		}
	}
	_, err := st.db.Exec(`INSERT OR REPLACE INTO meta (key, value) VALUES ('blobs', ?)`, b.Location())
	return err
}

// check makes sure that the bucket is there and its prefix ours.
func (b *bucketBlobs) check(ctx context.Context) error {
	owner, err := b.Owner(ctx)
	if err != nil {
		return err
	}
	return b.ours(owner)
}

func (b *bucketBlobs) ours(owner string) error {
	switch owner {
	case b.s.uuid:
		b.ready.Store(true)
		return nil
	case "":
		return fmt.Errorf("%w: %s has no object %s that says it is this registry's", ErrBlobsElsewhere, b, bucket.Marker)
	}
	return fmt.Errorf("%w: %s is the registry's with the ID %.40q: name another bucket or prefix, or delete its object %s if that registry is gone",
		ErrBlobsElsewhere, b, owner, bucket.Marker)
}

// claimed looks whose the prefix is if that was not possible when the store was opened.
func (b *bucketBlobs) claimed(ctx context.Context) error {
	if b.ready.Load() {
		return nil
	}
	return b.check(ctx)
}

// keep sends the spool's file, which stays until a row owns the object: a start after a crash finds its key
// among the uploads.
func (b *bucketBlobs) keep(ctx context.Context, sp *spool) error {
	if err := b.claimed(ctx); err != nil {
		return err
	}
	return b.Put(ctx, sp.key, sp.file, sp.size)
}

func (b *bucketBlobs) open(ctx context.Context, key string, size int64, s span) (io.ReadSeekCloser, error) {
	if err := b.claimed(ctx); err != nil {
		return nil, err
	}
	o, err := b.Get(ctx, key, size, s.from, s.to)
	if err != nil {
		return nil, err
	}
	return o, nil
}

func (b *bucketBlobs) stat(ctx context.Context, key string) (int64, error) {
	if err := b.claimed(ctx); err != nil {
		return 0, err
	}
	return b.Stat(ctx, key)
}

func (b *bucketBlobs) remove(ctx context.Context, keys ...string) error {
	if err := b.claimed(ctx); err != nil {
		return err
	}
	return b.Remove(ctx, keys...)
}

func (b *bucketBlobs) list(ctx context.Context, f func(content) error) error {
	return b.List(ctx, func(o bucket.Listed) error {
		return f(content{key: path.Base(o.Name), name: o.Name, size: o.Size, modified: o.Modified})
	})
}

func (b *bucketBlobs) tidy(ctx context.Context) error {
	if err := b.claimed(ctx); err != nil {
		return err
	}
	err := b.AbortStale(ctx, time.Now().Add(-partAge))
	if errors.Is(err, bucket.ErrRefused) { // it needs permissions of its own, and nothing else depends on it
		b.s.opt.Log.Warn("what unfinished uploads hold in the bucket is not given back", "err", err)
		return nil
	}
	return err
}

// forget notes the key for the next collection: the storage may be what fails, or be still about to
// take the object.
func (b *bucketBlobs) forget(ctx context.Context, key string) error {
	return b.s.write.do(ctx, func(t *tx) error {
		return t.exec(`INSERT OR IGNORE INTO doomed (key, size) VALUES (?, 0)`, key)
	})
}

// CheckBlobs asks the storage that large blobs are in whether it is there, and returns its name; empty if they
// are files.
func (s *Store) CheckBlobs(ctx context.Context) (string, error) {
	if s.bucket == nil {
		return "", nil
	}
	return s.bucket.String(), s.bucket.check(ctx)
}
