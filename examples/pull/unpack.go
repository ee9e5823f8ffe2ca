package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// maxUnpacked bounds what an image unpacks to, in bytes.
const maxUnpacked = 1 << 30

// unpack writes the image's files below dir. No entry can leave it, whatever the image says.
func unpack(img v1.Image, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	files := mutate.Extract(img)
	defer files.Close()
	limited := &io.LimitedReader{R: files, N: maxUnpacked}
	archive := tar.NewReader(limited)
	for {
		h, err := archive.Next()
		switch {
		case limited.N <= 0:
			return fmt.Errorf("larger than %d bytes", maxUnpacked)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := write(root, h, archive); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// write writes one entry. Entries come newest layer first, so a directory may follow its files.
func write(root *os.Root, h *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		return nil
	}
	mode := h.FileInfo().Mode()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name)
	case tar.TypeReg:
		if err := writeFile(root, name, content); err != nil {
			return err
		}
	default:
		return nil // devices and the like are not needed to run a program
	}
	return root.Chmod(name, mode.Perm()) // without set-user-ID: the files lie on this host
}

func writeFile(root *os.Root, name string, content io.Reader) error {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, content); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}
