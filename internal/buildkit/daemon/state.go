package daemon

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// The databases. What they describe (snapshots, content) lies below the root; either is worthless
// without the other.
const (
	cacheDB      = "cache.db"
	historyDB    = "history.db"
	containerdDB = "containerdmeta.db"
	metadataDB   = "metadata_v2.db"
	snapshotDB   = "snapshots.db"
)

var databaseFiles = []string{cacheDB, historyDB, containerdDB, metadataDB, snapshotDB}

const (
	// generationFile names, in the root and beside the databases, the root's content. Only
	// databases of the root's own generation are used.
	generationFile = "generation"
	// ownerFile tells, beside databases on a tmpfs, which root they belong to.
	ownerFile = "root"
	// runningFile holds, while a daemon uses the root, the ID of the kernel's boot. What had been
	// written then is on disk for certain only if the kernel still runs.
	runningFile = "running"
	// trashPrefix begins the names of directories that wait for removal.
	trashPrefix = "trash-"
)

// databases is where the databases are, and what closes those that are open.
type databases struct {
	root string
	dir  string // where they are used
	kept string // where they lie while no daemon runs; the same as dir if they are always on disk

	closers []func() error
}

func (d *databases) path(name string) string { return filepath.Join(d.dir, name) }

// relax takes from bolt's options what protects a database from a power failure, where the database is
// gone then anyway: it is in memory. Half of the work of a small build is bolt's.
func (d *databases) relax(o *bolt.Options) error {
	o.FreelistType = bolt.FreelistMapType
	o.NoSync, o.NoFreelistSync = d.dir != d.kept, d.dir != d.kept
	return nil
}

// options are the options of a database of the daemon's own.
func (d *databases) options() *bolt.Options {
	o := *bolt.DefaultOptions
	_ = d.relax(&o) // never fails
	return &o
}

func (d *databases) closeLater(f func() error) { d.closers = append(d.closers, f) }

// close closes the databases that are open, the last opened first. Closing one twice is harmless.
func (d *databases) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}

// newDatabases says where the databases of root are.
func newDatabases(root, tmpfs string) *databases {
	kept := filepath.Join(root, "db")
	dir := kept
	if tmpfs != "" {
		dir = filepath.Join(tmpfs, rootID(root))
	}
	return &databases{root: root, dir: dir, kept: kept}
}

// rootID is a short name for a root, the same in every daemon process that uses it.
func rootID(root string) string {
	sum := sha256.Sum256([]byte(root))
	return hex.EncodeToString(sum[:4])
}

func (d *databases) onTmpfs() bool { return d.dir != d.kept }

// prepare makes the directory of the databases ready. It empties the root unless the databases are
// known to describe what is there: they are in use since a daemon was killed, or a daemon that
// stopped properly put them aside.
func (d *databases) prepare(log *slog.Logger) error {
	if d.onTmpfs() {
		tmpfs := filepath.Dir(d.dir)
		if err := makePrivate(tmpfs); err != nil {
			return err
		}
		if err := removeOrphans(tmpfs); err != nil {
			log.Warn("databases of roots that are gone were not removed", "dir", tmpfs, "err", err)
		}
	}
	for _, dir := range []string{d.dir, d.kept} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	want := readGeneration(d.root)
	switch {
	case want == "" || d.interrupted():
	case want == readGeneration(d.dir):
		if d.onTmpfs() {
			if err := d.forgetKept(); err != nil { // it is older
				return err
			}
		}
		return d.markRunning()
	case want == readGeneration(d.kept):
		if err := d.restore(want); err != nil {
			return err
		}
		return d.markRunning()
	}
	if want != "" {
		log.Warn("build cache discarded: the host went down during its last use, or its databases are gone", "root", d.root)
	}
	return d.reset()
}

// interrupted tells whether the kernel has been started anew since a daemon used the root and did not
// stop.
func (d *databases) interrupted() bool {
	b, err := os.ReadFile(filepath.Join(d.root, runningFile))
	return err == nil && string(b) != bootID()
}

func (d *databases) markRunning() error {
	return writeDurably(filepath.Join(d.root, runningFile), bootID())
}

// bootID names the time between two starts of the kernel.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // without /proc there is no daemon
	}
	return string(b)
}

// reset empties root and databases and begins a new generation.
func (d *databases) reset() error {
	// Until the end nobody is named as the owner: without a generation in the root, another daemon
	// would take these for orphans.
	for _, name := range append([]string{ownerFile, generationFile}, databaseFiles...) {
		if err := os.RemoveAll(d.path(name)); err != nil {
			return err
		}
	}
	if err := discard(d.root); err != nil {
		return err
	}
	for _, dir := range []string{d.dir, d.kept} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	generation := rand.Text()
	if err := writeDurably(d.path(generationFile), generation); err != nil {
		return err
	}
	if err := writeDurably(filepath.Join(d.root, generationFile), generation); err != nil {
		return err
	}
	if err := os.WriteFile(d.path(ownerFile), []byte(d.root), 0o600); err != nil {
		return err
	}
	return d.markRunning()
}

// restore copies the kept databases to where they are used.
func (d *databases) restore(generation string) error {
	for _, name := range databaseFiles {
		err := copyDurably(filepath.Join(d.kept, name), d.path(name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.WriteFile(d.path(ownerFile), []byte(d.root), 0o600); err != nil {
		return err
	}
	if err := d.forgetKept(); err != nil {
		return err
	}
	return writeDurably(d.path(generationFile), generation)
}

// forgetKept makes sure that kept databases, which age from now on, are not used again.
func (d *databases) forgetKept() error {
	err := os.Remove(filepath.Join(d.kept, generationFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(d.kept)
}

// keep puts closed databases aside so that they survive a reboot, and everything that they describe
// is on disk before they are. It may be called only when nothing uses the root any more.
func (d *databases) keep() error {
	generation := readGeneration(d.root)
	if generation == "" || generation != readGeneration(d.dir) {
		return fmt.Errorf("%s: databases of another generation than %s", d.dir, d.root)
	}
	if d.onTmpfs() {
		for _, name := range databaseFiles {
			err := copyDurably(d.path(name), filepath.Join(d.kept, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := syncFilesystem(d.root); err != nil {
		return err
	}
	if d.onTmpfs() {
		if err := writeDurably(filepath.Join(d.kept, generationFile), generation); err != nil {
			return err
		}
		if err := os.RemoveAll(d.dir); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(d.root, runningFile)); err != nil {
		return err
	}
	return syncDir(d.root)
}

// makePrivate makes a directory that nobody else can write to, or finds that it is one. A tmpfs is
// usually open to all users.
func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.IsDir() || int(stat.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: must be a directory of user %d that others cannot write to: remove it or choose another", dir, os.Geteuid())
	}
	return nil
}

// removeOrphans removes databases below tmpfs whose root is gone: they would take memory for ever.
func removeOrphans(tmpfs string) error {
	entries, err := os.ReadDir(tmpfs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(tmpfs, e.Name())
		root, err := os.ReadFile(filepath.Join(dir, ownerFile))
		if err != nil || rootID(string(root)) != e.Name() {
			continue // not ours, or being made
		}
		if _, err := os.Stat(filepath.Join(string(root), generationFile)); errors.Is(err, fs.ErrNotExist) {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// isCorrupt tells whether opening the control plane failed because of a database's content.
func isCorrupt(err error) bool {
	for _, e := range []error{bolterrors.ErrInvalid, bolterrors.ErrVersionMismatch, bolterrors.ErrChecksum, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// discard moves everything in root out of the way, to be removed by emptyTrash; removing a large
// cache takes minutes.
func discard(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	// First of all: without it the rest is never trusted.
	if err := os.Remove(filepath.Join(root, generationFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	trash := filepath.Join(root, trashPrefix+rand.Text())
	if err := os.Mkdir(trash, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if name == lockFile || name == generationFile || name == filepath.Base(tmpDir(root)) || strings.HasPrefix(name, trashPrefix) {
			continue
		}
		if err := os.Rename(filepath.Join(root, name), filepath.Join(trash, name)); err != nil {
			return err
		}
	}
	return nil
}

func readGeneration(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, generationFile))
	if err != nil {
		return ""
	}
	return string(b)
}

// writeDurably replaces a file by content, whole or not at all, also when the power fails.
func writeDurably(name, content string) error {
	return replaceDurably(name, strings.NewReader(content))
}

func copyDurably(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	return replaceDurably(to, f)
}

func replaceDurably(name string, content io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".new-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncFilesystem writes everything that is cached of the file system at dir.
func syncFilesystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
