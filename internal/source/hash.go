package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/errgroup"
)

const (
	hashTries  = 3         // readings of a file that changes meanwhile
	hashSerial = 32        // as many entries are hashed without another goroutine
	hashBuffer = 128 << 10 // of one hasher, bytes
)

// hashFiles fills in size, mode, time and digest of the tree's regular files. Files that have
// vanished since the walk are removed.
func hashFiles(ctx context.Context, dir string, t *Tree) error {
	var (
		next    atomic.Int64
		gone    atomic.Bool
		workers = 1
	)
	if len(t.Entries) > hashSerial {
		workers = runtime.GOMAXPROCS(0)
	}
	g, ctx := errgroup.WithContext(ctx)
	for range workers {
		g.Go(func() error {
			h := hasher{buf: make([]byte, hashBuffer)}
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(t.Entries) {
					return nil
				}
				e := &t.Entries[i]
				if !e.Mode.IsRegular() {
					continue
				}
				err := h.file(dir, e)
				if errors.Is(err, fs.ErrNotExist) {
					e.Mode = fs.ModeIrregular // removed below
					gone.Store(true)
				} else if err != nil {
					return scanError(dir, err)
				}
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if gone.Load() {
		t.Entries = slices.DeleteFunc(t.Entries, func(e Entry) bool { return e.Mode == fs.ModeIrregular })
	}
	return nil
}

// A hasher hashes one file after the other.
type hasher struct{ buf []byte }

func (h *hasher) file(dir string, e *Entry) error {
	name := filepath.Join(dir, filepath.FromSlash(e.Path))
	for range hashTries {
		stable, err := h.try(name, e)
		if err != nil || stable {
			return err
		}
	}
	return fmt.Errorf("%s: %w", e.Path, ErrChanged)
}

// try reads the file once and reports whether it stayed the same meanwhile.
func (h *hasher) try(name string, e *Entry) (bool, error) {
	f, before, err := openRegular(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	var n int64
	// What is appended meanwhile shows in the size afterwards.
	for n == 0 || n < before.Size() {
		k, err := f.Read(h.buf)
		sum.Write(h.buf[:k])
		n += int64(k)
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, err
		}
	}
	after, err := f.Stat()
	if err != nil {
		return false, err
	}
	e.Size, e.Mode, e.ModTime = n, portableMode(after.Mode())&modeMask, after.ModTime()
	sum.Sum(e.Digest[:0])
	return n == before.Size() && n == after.Size() && before.ModTime().Equal(after.ModTime()), nil
}

// openRegular opens a file that a walk saw as a regular one, and refuses what replaced it since.
func openRegular(name string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|openFlags, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, nil, fmt.Errorf("%s: %w", name, ErrChanged)
	}
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", name, ErrChanged)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// portableMode is the mode that docker gives a file: on Windows, which has no executable bit, every
// file may be executed.
func portableMode(m fs.FileMode) fs.FileMode {
	if runtime.GOOS != "windows" {
		return m
	}
	return m&^fs.ModePerm | (m.Perm()|0o111)&0o755
}
