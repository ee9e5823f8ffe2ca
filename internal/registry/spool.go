package registry

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"
)

const (
	// spaceStep is how many bytes are written between two looks at the free space.
	spaceStep = 1 << 20
	// flushStep is how many bytes are written before the disk is asked to begin with them.
	flushStep = 8 << 20
	// syncFileRangeWrite is SYNC_FILE_RANGE_WRITE of sync_file_range(2).
	syncFileRangeWrite = 2
)

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// A spool receives the content of one blob: in memory while it is small, then in a file below the
// uploads directory. It is used by one goroutine at a time.
type spool struct {
	s        *Store
	key      string
	buf      []byte
	file     *os.File // nil while the content is in buf
	size     int64
	sha      hash.Hash    // sha256 of what was written
	received atomic.Int64 // size, for those who look on
	checked  int64        // bytes for which there was space
	flushed  int64        // bytes that the disk was asked to begin with
}

func (s *Store) newSpool() (*spool, error) {
	if err := s.checkSpace(0); err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	return &spool{s: s, key: key, sha: sha256.New()}, nil
}

// readFrom appends r. What was read before an error stays in the spool, so that the sender can go on
// from there. Errors of r wrap errUploadInvalid, the disk's do not.
func (sp *spool) readFrom(r io.Reader, alive func() bool) error {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		n, rerr := r.Read(*buf)
		if !alive() {
			return errUploadUnknown
		}
		if n > 0 {
			if err := sp.append((*buf)[:n]); err != nil {
				return err
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			return fmt.Errorf("%w: content ended early: %w", errUploadInvalid, rerr)
		}
	}
}

func (sp *spool) append(p []byte) error {
	if sp.size+int64(len(p)) > sp.s.opt.MaxBlob {
		return fmt.Errorf("%w: at most %d bytes are accepted", errBlobTooLarge, sp.s.opt.MaxBlob)
	}
	if err := sp.store(p); err != nil {
		return fmt.Errorf("store upload: %w", diskError(err))
	}
	sp.sha.Write(p)
	sp.size += int64(len(p))
	sp.received.Store(sp.size)
	return nil
}

func (sp *spool) store(p []byte) error {
	if sp.file == nil {
		if sp.size+int64(len(p)) <= inlineBlob {
			sp.buf = append(sp.buf, p...)
			return nil
		}
		f, err := os.OpenFile(sp.path(), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		sp.file = f
		if _, err := f.Write(sp.buf); err != nil {
			return err
		}
		sp.buf = nil
	}
	if sp.size+int64(len(p)) > sp.checked {
		if err := sp.s.checkSpace(spaceStep); err != nil {
			return err
		}
		sp.checked = sp.size + spaceStep
	}
	if _, err := sp.file.Write(p); err != nil {
		return err
	}
	if n := sp.size + int64(len(p)) - sp.flushed; n >= flushStep {
		// A hint: the final sync waits for less if the disk begins now.
		_ = syscall.SyncFileRange(int(sp.file.Fd()), sp.flushed, n, syncFileRangeWrite)
		sp.flushed += n
	}
	return nil
}

func (sp *spool) path() string { return filepath.Join(sp.s.dir, uploadsDir, sp.key) }

// digest returns the content's digest in the algorithm of like.
func (sp *spool) digest(like digest.Algorithm) (digest.Digest, error) {
	if like == digest.SHA256 {
		return digest.NewDigest(digest.SHA256, sp.sha), nil
	}
	d := like.Digester()
	if sp.file == nil {
		d.Hash().Write(sp.buf)
		return d.Digest(), nil
	}
	if _, err := io.Copy(d.Hash(), io.NewSectionReader(sp.file, 0, sp.size)); err != nil {
		return "", fmt.Errorf("read upload: %w", err)
	}
	return d.Digest(), nil
}

// discard ends the spool: the space of what was not kept is free again.
func (sp *spool) discard() error {
	sp.buf = nil
	if sp.file == nil {
		return nil
	}
	err := errors.Join(sp.file.Close(), os.Remove(sp.path()))
	sp.file = nil
	return err
}

// abandon ends the spool and leaves its file to the next start.
func (sp *spool) abandon() error {
	f := sp.file
	sp.file = nil
	return f.Close()
}
