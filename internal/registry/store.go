// Package registry is the co-located OCI registry: it speaks the distribution specification 1.1 over
// one directory and moves the tags of runs. The content of large blobs may be in a bucket instead.
//
// Durability: what is acknowledged (a 201, a nil error) survives a crash of the process and of the
// machine. A manifest that can be read can be pulled: it is stored only when everything it refers
// to is present. One manifest push is one transaction, which also records the event that tells of
// it; the event is delivered at least once, in order, under an ID that never changes.
//
// Fencing: tags of runs move only by [Store.Publish], which refuses attempts that were superseded
// and never gives a unique tag a second meaning. All tags of a publication move, or none.
//
// Storage: with a bucket, a blob is stored when the bucket has acknowledged it. While that does not answer,
// large blobs are neither read nor written ([bucket.ErrUnavailable]); everything else goes on.
//
// Concurrency: a Store may be used by any number of goroutines, and a directory by one Store at a
// time. Reads never wait for writes. Uploads in progress live as long as the process: after a
// restart clients are told that the upload is unknown, and begin again.
package registry

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kiln/internal/registry/bucket"
)

// Limits of what a store accepts; those that an operator may want to change are in Options.
const (
	maxManifest = 4 << 20  // bytes of a manifest
	inlineBlob  = 64 << 10 // bytes up to which a blob lives in the database
	blobsDir    = "blobs"
	uploadsDir  = "uploads"
)

// Options change a store's defaults. The zero value is usable.
type Options struct {
	// Reserve is the free space in bytes below which uploads are refused, so that metadata can
	// still be written. 0 means 64 MiB, a negative value none.
	Reserve int64
	// MaxBlob is the largest blob in bytes. 0 means 64 GiB.
	MaxBlob int64
	// MaxUploads is how many uploads may be in progress at once. 0 means 1024.
	MaxUploads int
	// UploadAge is how long an upload may be idle before it is dropped. 0 means one hour.
	UploadAge time.Duration
	// Grace is for how long content that no manifest refers to is kept: as long as a client may take from
	// the first blob of an image to its manifest. 0 means 24 hours.
	Grace time.Duration
	// Bucket says where the content of large blobs is kept. Nil means in files, in the store's directory.
	Bucket *bucket.Config
	// Log receives what an operator should know. Nil discards it.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Reserve == 0 {
		o.Reserve = 64 << 20
	}
	if o.MaxBlob <= 0 {
		o.MaxBlob = 64 << 30
	}
	if o.MaxUploads <= 0 {
		o.MaxUploads = 1024
	}
	if o.UploadAge <= 0 {
		o.UploadAge = time.Hour
	}
	if o.Grace <= 0 {
		o.Grace = 24 * time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// A Store is an open registry directory. Close it.
type Store struct {
	dir  string
	opt  Options
	uuid string
	lock *os.File

	write *writer
	read  *statements

	blobs  blobStore
	bucket *bucketBlobs // blobs, or nil if they are files

	mu      sync.Mutex // guards uploads
	uploads map[string]*upload

	pulls      pulls
	collecting sync.Mutex // held by a collection

	relaying atomic.Bool
	closed   chan struct{}
	close    func() error
}

// Open opens the registry in dir and creates it if there is none. It fails with ErrInUse if another
// Store has dir open, and refuses a directory written by a newer version of kiln.
func Open(dir string, opt Options) (*Store, error) {
	s := &Store{dir: dir, opt: opt.withDefaults(), uploads: map[string]*upload{}, closed: make(chan struct{})}
	s.close = sync.OnceValue(s.shutdown)
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open registry %s: %w", dir, err), s.Close())
	}
	return s, nil
}

func (s *Store) open() error {
	for _, d := range []string{s.dir, filepath.Join(s.dir, blobsDir), filepath.Join(s.dir, uploadsDir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	for _, d := range []string{s.dir, filepath.Dir(s.dir)} { // the names just made must last, too
		if err := syncDir(d); err != nil {
			return err
		}
	}
	lock, err := lockDir(s.dir)
	if err != nil {
		return err
	}
	s.lock = lock
	path := filepath.Join(s.dir, "registry.db")
	wdb, err := openDB(path, 1, 4096, "synchronous(FULL)", "journal_mode(WAL)", "wal_autocheckpoint(2000)", "journal_size_limit(67108864)")
	if err != nil {
		return err
	}
	ws := newStatements(wdb)
	if err := migrate(ws); err != nil {
		return errors.Join(err, ws.close())
	}
	if s.uuid, err = storeUUID(ws); err != nil {
		return errors.Join(err, ws.close())
	}
	if err := s.openBlobs(ws); err != nil {
		return errors.Join(err, ws.close())
	}
	s.write = startWriter(ws)
	rdb, err := openDB(path, 4, 1024, "query_only(1)")
	if err != nil {
		return err
	}
	s.read = newStatements(rdb)
	return s.sweepUploads()
}

// Close drops the uploads in progress, waits for writes in hand and releases the directory. Readers
// that BlobReader returned stay usable. Closing twice is harmless.
func (s *Store) Close() error { return s.close() }

func (s *Store) shutdown() error {
	close(s.closed)
	s.dropUploads()
	var errs []error
	if s.write != nil && s.read != nil {
		if err := s.storePulls(context.Background()); err != nil {
			s.opt.Log.Warn("when images were last pulled is not stored", "err", err)
		}
	}
	if s.read != nil {
		errs = append(errs, s.read.close())
	}
	if s.write != nil {
		errs = append(errs, s.write.stop())
	}
	if s.bucket != nil {
		s.bucket.Close()
	}
	if s.lock != nil {
		// A program that is just being started holds a copy of the descriptor, and with it the lock.
		errs = append(errs, syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN), s.lock.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close registry %s: %w", s.dir, err)
	}
	return nil
}

// UUID returns the identity of the store, minted when the directory was created. It is the first
// part of every event's ID.
func (s *Store) UUID() string { return s.uuid }

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: stop the other kiln process or use another data directory", ErrInUse)
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

func storeUUID(st *statements) (string, error) {
	var id string
	err := st.db.QueryRow(`SELECT value FROM meta WHERE key = 'uuid'`).Scan(&id)
	if !errors.Is(err, sql.ErrNoRows) {
		return id, err
	}
	if id, err = newKey(); err != nil {
		return "", err
	}
	_, err = st.db.Exec(`INSERT INTO meta (key, value) VALUES ('uuid', ?)`, id)
	return id, err
}

// newKey returns 32 random hexadecimal digits.
func newKey() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return hex.EncodeToString(b[:]), nil
}
