package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/tonistiigi/fsutil"
)

// A draft is a source that is being unpacked.
type draft struct {
	dir, key string
	root     *os.Root
	sum      hash.Hash // of all that was read
	entries  int
	left     int64           // bytes of files that may still come
	times    []directoryTime // of directories, which are set when nothing is written to them any more
	skipped  int
}

type directoryTime struct {
	name string
	at   time.Time
}

func (f *Fetcher) begin(key string) (*draft, error) {
	dir, err := os.MkdirTemp(f.cfg.Dir, "context")
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &draft{dir: dir, key: key, root: root, sum: sha256.New(), left: maxUnpacked}, nil
}

// finish makes a source of what was unpacked, unless err is not nil. It is removed when ctx ends.
func (d *draft) finish(ctx context.Context, err error) (*Source, error) {
	for i := len(d.times) - 1; i >= 0 && err == nil; i-- {
		if err = d.root.Chtimes(d.times[i].name, d.times[i].at, d.times[i].at); errors.Is(err, fs.ErrNotExist) {
			err = nil // something else took its place
		}
	}
	if err = errors.Join(err, d.root.Close()); err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.dir))
	}
	files, err := fsutil.NewFS(d.dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(d.dir))
	}
	context.AfterFunc(ctx, func() { _ = os.RemoveAll(d.dir) }) // what is left the next process removes
	s := &Source{FS: files, dir: d.dir, key: d.key, identity: "archive:" + hex.EncodeToString(d.sum.Sum(nil)), failed: make(chan struct{})}
	if d.skipped > 0 {
		s.warnings = []string{fmt.Sprintf("%d devices or other special files of the archive are left out", d.skipped)}
	}
	return s, nil
}

// unpack adds the files of a tarball, which may be compressed with gzip.
func (d *draft) unpack(ctx context.Context, r io.Reader) error {
	raw := io.TeeReader(&limited{r: r, left: maxTransfer, what: fmt.Sprintf("it has more than %d bytes", int64(maxTransfer))}, d.sum)
	buffered := bufio.NewReaderSize(raw, 64<<10)
	var text io.Reader = buffered
	if magic, _ := buffered.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return err
		}
		defer z.Close()
		text = z
	}
	// What is between files counts too: zeros cost next to nothing to send.
	tr := tar.NewReader(&limited{r: text, left: d.left + int64(maxEntries)*1024, what: "its files are too large"})
	for {
		h, err := tr.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, raw) // the rest is part of its identity
			return err
		}
		if err != nil {
			return fmt.Errorf("not a tar archive that can be read: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if d.entries++; d.entries > maxEntries {
			return fmt.Errorf("%w: it has more than %d files", ErrRefused, maxEntries)
		}
		if d.left -= h.Size; h.Size < 0 || d.left < 0 {
			return fmt.Errorf("%w: its files have more than %d bytes", ErrRefused, int64(maxUnpacked))
		}
		if err := d.add(h, tr); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// add unpacks one entry. A later entry takes the place of an earlier one of its name.
func (d *draft) add(h *tar.Header, content io.Reader) error {
	name := path.Clean(strings.TrimPrefix(h.Name, "/"))
	switch {
	case name == ".":
		return nil
	case !fs.ValidPath(name):
		return fmt.Errorf("%w: the name leads out of the archive", ErrRefused)
	}
	if dir := path.Dir(name); dir != "." {
		if err := d.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		if err := d.root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		d.times = append(d.times, directoryTime{name, h.ModTime})
		return d.root.Chmod(name, h.FileInfo().Mode().Perm()|0o700)
	}
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return d.file(name, h, content)
	case tar.TypeSymlink:
		return d.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return d.root.Link(path.Clean(strings.TrimPrefix(h.Linkname, "/")), name)
	case tar.TypeXGlobalHeader:
		return nil
	}
	d.skipped++
	return nil
}

func (d *draft) file(name string, h *tar.Header, content io.Reader) error {
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err := errors.Join(err, f.Chmod(h.FileInfo().Mode().Perm()|0o400), f.Close()); err != nil {
		return err
	}
	return d.root.Chtimes(name, h.ModTime, h.ModTime)
}
