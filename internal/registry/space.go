package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// checkSpace refuses n more bytes of uploads when they would eat into the reserve.
func (s *Store) checkSpace(n int64) error {
	if s.opt.Reserve < 0 {
		return nil
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	if free-n < s.opt.Reserve {
		return fmt.Errorf("%w: %d bytes are free on the registry's disk, %d are needed and %d kept in reserve: free space, for example by deleting images", ErrDiskFull, free, n, s.opt.Reserve)
	}
	return nil
}

// Ping returns nil if the store has written to its disk just now and has room for more, and otherwise what is wrong.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.checkSpace(0); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(s.dir, blobsDir)); err != nil {
		return err
	}
	return s.write.do(ctx, func(t *tx) error {
		return t.exec(`INSERT OR REPLACE INTO meta (key, value) VALUES ('ping', ?)`, t.now.Format(time.RFC3339Nano))
	})
}

// diskError marks an error of a write as ErrDiskFull if that is what it is.
func diskError(err error) error {
	if err == nil || errors.Is(err, ErrDiskFull) {
		return err
	}
	for _, full := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, full) {
			return fmt.Errorf("%w: %w", ErrDiskFull, full) // without the name of the file
		}
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code()&0xff == sqlite3.SQLITE_FULL {
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	}
	return err
}
