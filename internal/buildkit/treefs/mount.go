package treefs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// endTimeout bounds the wait for the kernel to let go of a mount.
const endTimeout = 10 * time.Second

// A Mount is a tree that is mounted.
type Mount struct {
	dir    string
	copies string
	server *server
	ended  chan struct{}
}

// Show mounts a tree on a new directory of that name in dir. Open returns the content of a file of the tree;
// it is called by several at once.
func Show(dir, name string, t *Tree, open func(path string) (io.ReadCloser, error)) (_ *Mount, err error) {
	m := &Mount{dir: filepath.Join(dir, name), copies: filepath.Join(dir, name+".files"), ended: make(chan struct{})}
	if err := errors.Join(os.MkdirAll(m.dir, 0o755), os.MkdirAll(m.copies, 0o700)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = m.remove()
		}
	}()
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,allow_other,default_permissions,max_read=%d",
		device, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRead)
	if err := unix.Mount("kiln", m.dir, "fuse.kiln", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, options); err != nil {
		_ = unix.Close(device)
		return nil, fmt.Errorf("mount %s: %w", m.dir, err)
	}
	m.server = newServer(t, open, m.copies)
	srv, err := fuse.NewServer(m.server, fmt.Sprintf("/dev/fd/%d", device), &fuse.MountOptions{
		MaxWrite: maxRead, MaxBackground: maxReads, DisableXAttrs: true, EnableSymlinkCaching: true,
		MaxStackDepth: -1, // a container may lay a file system of its own over this one
		Logger:        log.New(io.Discard, "", 0),
	})
	if err != nil { // the server has closed the device
		return nil, errors.Join(fmt.Errorf("mount %s: %w", m.dir, err), unmount(m.dir))
	}
	go func() {
		defer close(m.ended)
		srv.Serve()
	}()
	return m, nil
}

// Read tells how many files have been read, those that were read again counted again.
func (m *Mount) Read() int64 { return m.server.read.Load() }

// End unmounts the tree. Who still uses it gets errors.
func (m *Mount) End() error {
	err := unmount(m.dir)
	late := time.NewTimer(endTimeout)
	defer late.Stop()
	select {
	case <-m.ended:
	case <-late.C:
		return errors.Join(err, fmt.Errorf("%s: the kernel still uses what was mounted", m.dir))
	}
	return errors.Join(err, m.remove())
}

// remove removes the directories of a mount, which the daemon may have done, too.
func (m *Mount) remove() error {
	err := os.Remove(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(m.copies))
}

// unmount ends the mount at dir whoever uses it. That there is none any more is no error.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
