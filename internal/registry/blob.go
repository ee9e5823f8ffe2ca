package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
)

// renewal is how old a lease must be before looking at what it is of renews it. It is a small part of the
// age at which collection may take what nothing refers to, so that a client which found a blob has time to
// push the manifest.
func (s *Store) renewal() time.Duration { return s.opt.Grace / 4 }

// BlobReader opens a blob of a repository, to be read until ctx ends. The caller closes it.
func (s *Store) BlobReader(ctx context.Context, repository, dgst string) (io.ReadSeekCloser, int64, error) {
	return s.openBlob(ctx, repository, dgst, func(size int64) (span, error) { return span{0, size}, nil })
}

// openBlob opens a blob of a repository. What first returns, given the size, will be read first.
func (s *Store) openBlob(ctx context.Context, repository, dgst string, first func(int64) (span, error)) (io.ReadSeekCloser, int64, error) {
	for again := true; ; again = false {
		var (
			size int64
			key  *string
			data []byte
			l    locks
		)
		ok, err := s.row(ctx, `SELECT b.size, b.key, d.data, r.locks FROM repository r
			JOIN repo_blob l ON l.repo = r.id
			JOIN blob b ON b.id = l.blob
			LEFT JOIN blob_data d ON d.blob = b.id
			WHERE r.name = ? AND b.digest = ?`, []any{repository, dgst}, &size, &key, &data, &l)
		if err != nil {
			return nil, 0, err
		}
		if !ok {
			return nil, 0, blobUnknown(repository, dgst)
		}
		if err := l.locked(lockRead, repository); err != nil {
			return nil, 0, err
		}
		part, err := first(size)
		if err != nil {
			return nil, size, err
		}
		if key == nil {
			return memoryBlob{bytes.NewReader(data)}, size, nil
		}
		r, err := s.blobs.open(ctx, *key, size, part)
		if errors.Is(err, fs.ErrNotExist) && again {
			continue // collected meanwhile, and perhaps uploaded again
		}
		if err != nil {
			return nil, 0, fmt.Errorf("blob %s: %w", dgst, err)
		}
		return r, size, nil
	}
}

type memoryBlob struct{ *bytes.Reader }

func (memoryBlob) Close() error { return nil }

func blobUnknown(repository, dgst string) error {
	return fmt.Errorf("%w: %s in %s", ErrBlobUnknown, dgst, repository)
}

// statBlob returns the size of a blob of a repository and renews its lease.
func (s *Store) statBlob(ctx context.Context, repository, dgst string) (int64, error) {
	var size, touched, repo, blob int64
	var l locks
	ok, err := s.row(ctx, `SELECT b.size, l.touched, l.repo, l.blob, r.locks FROM repository r
		JOIN repo_blob l ON l.repo = r.id
		JOIN blob b ON b.id = l.blob
		WHERE r.name = ? AND b.digest = ?`, []any{repository, dgst}, &size, &touched, &repo, &blob, &l)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, blobUnknown(repository, dgst)
	}
	if err := l.locked(lockRead, repository); err != nil {
		return 0, err
	}
	if time.Since(time.UnixMilli(touched)) < s.renewal() {
		return size, nil
	}
	err = s.write.do(ctx, func(t *tx) error {
		n, err := t.change(`UPDATE repo_blob SET touched = ? WHERE repo = ? AND blob = ?`, t.millis(), repo, blob)
		if err == nil && n == 0 {
			return blobUnknown(repository, dgst) // collected meanwhile
		}
		return err
	})
	if errors.Is(err, ErrDiskFull) {
		err = nil // reading goes on; whoever relies on the lease cannot write now either
	}
	return size, err
}

// PutBlob stores a blob in a repository, which it creates if need be. It returns the sha256 digest.
func (s *Store) PutBlob(ctx context.Context, repository string, r io.Reader) (dgst string, size int64, err error) {
	if err := checkName(repository); err != nil {
		return "", 0, err
	}
	sp, err := s.newSpool()
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, sp.discard()) }()
	if err := sp.readFrom(r, func() bool { return ctx.Err() == nil }); err != nil {
		return "", 0, fmt.Errorf("put blob into %s: %w", repository, errors.Join(context.Cause(ctx), err))
	}
	d, err := sp.digest(digest.SHA256)
	if err != nil {
		return "", 0, err
	}
	if err := s.commitBlob(ctx, repository, sp, d); err != nil {
		return "", 0, fmt.Errorf("put blob into %s: %w", repository, err)
	}
	return d.String(), sp.size, nil
}

// commitBlob links the content of sp, whose digest is d, into a repository. The caller discards sp
// afterwards, however it ends.
func (s *Store) commitBlob(ctx context.Context, repository string, sp *spool, d digest.Digest) error {
	known, err := s.row(ctx, `SELECT 1 FROM blob WHERE digest = ?`, []any{d.String()}, new(int))
	if err != nil {
		return err
	}
	if sp.file != nil && known {
		if err := s.linkBlob(ctx, repository, sp, d, false); !errors.Is(err, errCollected) {
			return err
		}
	}
	if sp.file != nil {
		if err := s.blobs.keep(ctx, sp); err != nil {
			return errors.Join(err, s.forget(ctx, sp))
		}
	}
	return s.linkBlob(ctx, repository, sp, d, sp.file != nil)
}

// errCollected says that the content that was here has been collected, and this one must be kept.
var errCollected = errors.New("blob was collected")

// linkBlob links content into a repository. Unless it was kept, it must be there or be small.
func (s *Store) linkBlob(ctx context.Context, repository string, sp *spool, d digest.Digest, kept bool) error {
	owned := false // by a row
	err := s.write.do(ctx, func(t *tx) error {
		owned = false
		repo, err := t.createRepository(repository)
		if err != nil {
			return err
		}
		blob, err := t.blobID(d.String())
		if err != nil {
			return err
		}
		if blob == 0 {
			if sp.file != nil && !kept {
				return errCollected
			}
			if blob, err = t.insertBlob(d, sp); err != nil {
				return err
			}
			owned = true
		}
		return t.touch(repo, blob)
	})
	switch {
	case !kept || err == nil && owned:
		return err
	case owned && !errors.Is(err, ErrDiskFull):
		// The commit failed in the disk: only the next start can see whether a row owns the file.
		return errors.Join(err, sp.abandon())
	}
	return errors.Join(err, s.forget(ctx, sp))
}

// forget sees to it that the content goes which was kept of sp, or may have been.
func (s *Store) forget(ctx context.Context, sp *spool) error {
	err := s.blobs.forget(context.WithoutCancel(ctx), sp.key)
	if err == nil || errors.Is(err, ErrDiskFull) {
		return err
	}
	return errors.Join(err, sp.abandon()) // the next start finds its key
}

// blobID returns the row of a blob, 0 if there is none.
func (t *tx) blobID(dgst string) (int64, error) {
	var id int64
	_, err := t.row(`SELECT id FROM blob WHERE digest = ?`, []any{dgst}, &id)
	return id, err
}

func (t *tx) insertBlob(d digest.Digest, sp *spool) (int64, error) {
	var key any
	if sp.file != nil {
		key = sp.key
	}
	id, err := t.insert(`INSERT INTO blob (digest, size, key, created) VALUES (?, ?, ?, ?)`, d.String(), sp.size, key, t.millis())
	if err != nil || key != nil {
		return id, err
	}
	data := sp.buf
	if data == nil {
		data = []byte{} // the empty blob, not null
	}
	return id, t.exec(`INSERT INTO blob_data (blob, data) VALUES (?, ?)`, id, data)
}

// touch links a blob into a repository, or renews the lease it has there.
func (t *tx) touch(repo, blob int64) error {
	return t.exec(`INSERT INTO repo_blob (repo, blob, touched) VALUES (?, ?, ?)
		ON CONFLICT (repo, blob) DO UPDATE SET touched = excluded.touched`, repo, blob, t.millis())
}

// createRepository returns the row of a repository that is written to. It creates one if need be.
func (t *tx) createRepository(name string) (int64, error) {
	var id int64
	var l locks
	ok, err := t.row(`SELECT id, locks FROM repository WHERE name = ?`, []any{name}, &id, &l)
	if err == nil && ok {
		err = l.locked(lockWrite, name)
	}
	if err != nil || ok {
		return id, err
	}
	return t.insert(`INSERT INTO repository (name, created, internal) VALUES (?, ?, ?)`, name, t.millis(), isReserved(name))
}

// repository returns the row of a repository, 0 if there is none.
func (t *tx) repository(name string) (int64, error) {
	var id int64
	_, err := t.row(`SELECT id FROM repository WHERE name = ?`, []any{name}, &id)
	return id, err
}

// mountBlob links a blob of one repository into another and reports whether the first has it.
func (s *Store) mountBlob(ctx context.Context, from, to, dgst string) (bool, error) {
	found := false
	err := s.write.do(ctx, func(t *tx) error {
		var blob int64
		var err error
		found, err = t.row(`SELECT b.id FROM repository r
			JOIN repo_blob l ON l.repo = r.id
			JOIN blob b ON b.id = l.blob
			WHERE r.name = ? AND b.digest = ? AND r.locks & ? = 0`, []any{from, dgst, lockRead}, &blob)
		if err != nil || !found {
			return err
		}
		repo, err := t.createRepository(to)
		if err != nil {
			return err
		}
		return t.touch(repo, blob)
	})
	return found && err == nil, err
}

// blobRepositories names up to n repositories that have a blob.
func (s *Store) blobRepositories(ctx context.Context, dgst string, n int) ([]string, error) {
	rows, err := s.rows(ctx, `SELECT r.name FROM blob b
		JOIN repo_blob l ON l.blob = b.id
		JOIN repository r ON r.id = l.repo
		WHERE b.digest = ? AND r.locks & ? = 0 LIMIT ?`, dgst, lockRead, n)
	if err != nil {
		return nil, err
	}
	return collectStrings(rows)
}

// DeleteBlob unlinks a blob from a repository. A blob that one of the repository's manifests refers
// to is refused: the manifest could not be pulled any more.
func (s *Store) DeleteBlob(ctx context.Context, repository, dgst string) error {
	return s.write.do(ctx, func(t *tx) error {
		var repo, blob, refs int64
		var l locks
		ok, err := t.row(`SELECT r.id, r.locks, b.id, l.refs FROM repository r
			JOIN repo_blob l ON l.repo = r.id
			JOIN blob b ON b.id = l.blob
			WHERE r.name = ? AND b.digest = ?`, []any{repository, dgst}, &repo, &l, &blob, &refs)
		if err != nil {
			return err
		}
		if !ok {
			return blobUnknown(repository, dgst)
		}
		if err := l.locked(keeps, repository); err != nil {
			return err
		}
		if refs != 0 {
			return fmt.Errorf("%w: blob %s by a manifest of %s: delete the manifest first", errReferenced, dgst, repository)
		}
		return t.exec(`DELETE FROM repo_blob WHERE repo = ? AND blob = ?`, repo, blob)
	})
}
