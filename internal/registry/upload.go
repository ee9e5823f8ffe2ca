package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// holdPatience is how long a request waits for another one that works on the same upload.
const holdPatience = 10 * time.Second

// An upload is a blob that a client sends in one or more requests.
type upload struct {
	id         string
	repository string
	gone       atomic.Bool // ended: cancelled, completed or too old
	expiry     *time.Timer

	held chan struct{} // has a token while a request works on it
	sp   *spool
}

// startUpload begins an upload into a repository.
func (s *Store) startUpload(repository string) (*upload, error) {
	sp, err := s.newSpool()
	if err != nil {
		return nil, err
	}
	u := &upload{id: sp.key, repository: repository, sp: sp, held: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return nil, ErrClosed
	default:
	}
	if len(s.uploads) >= s.opt.MaxUploads {
		return nil, fmt.Errorf("%w: at most %d are allowed: try again later", errTooManyUploads, s.opt.MaxUploads)
	}
	s.uploads[u.id] = u
	u.expiry = time.AfterFunc(s.opt.UploadAge, func() { s.dropUpload(u) })
	return u, nil
}

func (s *Store) findUpload(repository, id string) (*upload, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.uploads[id]
	if u == nil || u.repository != repository {
		return nil, fmt.Errorf("%w: %s in %s: begin again", errUploadUnknown, clip(id), repository)
	}
	return u, nil
}

// hold gives the caller u for one request. A client that tries again after its connection broke may
// have to wait until that is noticed. The caller calls release.
func (s *Store) hold(ctx context.Context, u *upload) error {
	select {
	case u.held <- struct{}{}:
	default:
		patience := time.NewTimer(holdPatience)
		defer patience.Stop()
		select {
		case u.held <- struct{}{}:
		case <-patience.C:
			return fmt.Errorf("%w: %s", errUploadBusy, u.id)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if u.gone.Load() {
		s.release(u)
		return fmt.Errorf("%w: %s: begin again", errUploadUnknown, u.id)
	}
	u.expiry.Stop()
	return nil
}

// release ends a request's work on u; an upload that has ended loses its content.
func (s *Store) release(u *upload) {
	u.expiry.Reset(s.opt.UploadAge)
	<-u.held
	if u.gone.Load() {
		s.dropUpload(u) // whoever ended it left the content to the holder
	}
}

// dropUpload ends an upload. Its content goes at once, or when the request that works on it notices.
func (s *Store) dropUpload(u *upload) {
	s.mu.Lock()
	delete(s.uploads, u.id)
	s.mu.Unlock()
	u.gone.Store(true)
	u.expiry.Stop()
	select {
	case u.held <- struct{}{}:
		s.cleanUp(u)
		<-u.held
	default:
	}
}

func (s *Store) cleanUp(u *upload) {
	if err := u.sp.discard(); err != nil {
		s.opt.Log.Warn("upload not removed, the next start will", "upload", u.id, "err", err)
	}
}

// offset is how many bytes have been received. It may be asked for at any time.
func (u *upload) offset() int64 { return u.sp.received.Load() }

// receive appends a chunk to u, which the caller holds. An upload that the disk has no room for is
// dropped, so that its space comes back.
func (s *Store) receive(u *upload, r io.Reader) error {
	err := u.sp.readFrom(r, func() bool { return !u.gone.Load() })
	if err != nil && !errors.Is(err, errUploadInvalid) {
		s.dropUpload(u)
	}
	return err
}

// complete ends u, which the caller holds, and stores its content as the blob d.
func (s *Store) complete(ctx context.Context, u *upload, d digest.Digest) error {
	defer s.dropUpload(u)
	got, err := u.sp.digest(d.Algorithm())
	if err != nil {
		return err
	}
	if got != d {
		return fmt.Errorf("%w: the content's is %s, not %s", ErrDigestInvalid, got, d)
	}
	return s.commitBlob(ctx, u.repository, u.sp, d)
}

// dropUploads ends all uploads.
func (s *Store) dropUploads() {
	s.mu.Lock()
	all := make([]*upload, 0, len(s.uploads))
	for _, u := range s.uploads {
		all = append(all, u)
	}
	s.mu.Unlock()
	for _, u := range all {
		s.dropUpload(u)
	}
}

// sweepUploads removes what a crash left of uploads, blobs included that no row came to own.
func (s *Store) sweepUploads() error {
	dir := filepath.Join(s.dir, uploadsDir)
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	for _, key := range names {
		var owned int
		if err := s.write.st.db.QueryRow(`SELECT EXISTS (SELECT 1 FROM blob WHERE key = ?)`, key).Scan(&owned); err != nil {
			return err
		}
		if owned == 0 && len(key) == 32 {
			if err := s.blobs.forget(context.Background(), key); err != nil {
				return err
			}
		}
		if err := os.Remove(filepath.Join(dir, key)); err != nil {
			return err
		}
	}
	return nil
}
