package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"kiln/internal/buildkit/daemon/runnet"
)

// deleteTimeout bounds the removal of one container.
const deleteTimeout = 20 * time.Second

// Sweep removes what a daemon of that configuration that was killed left in the kernel: containers,
// mounts and networks. Serve does it too; it is for those who do not start the daemon again.
func Sweep(ctx context.Context, cfg Config) error {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	unlock, err := lockRoot(&cfg)
	if err != nil {
		return err
	}
	defer unlock()
	return sweep(ctx, &cfg)
}

// sweep removes what a daemon that was killed left in the kernel: containers, mounts and networks,
// and the files of those containers. Only what belongs to the root is touched.
func sweep(ctx context.Context, cfg *Config) error {
	if err := sweepContainers(ctx, cfg); err != nil {
		return err
	}
	if err := sweepMounts(cfg.Root); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(executorDir(cfg.Root)), os.RemoveAll(treesDir(cfg.Root))); err != nil {
		return err
	}
	if err := emptyDir(tmpDir(cfg.Root)); err != nil {
		return err
	}
	return runnet.Sweep(rootID(cfg.Root))
}

// sweepContainers kills and deletes the containers whose bundles lie below the root.
func sweepContainers(ctx context.Context, cfg *Config) error {
	entries, err := os.ReadDir(executorDir(cfg.Root))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(4)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		group.Go(func() error { return deleteContainer(ctx, cfg, e.Name()) })
	}
	return group.Wait()
}

func deleteContainer(ctx context.Context, cfg *Config, id string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, cfg.runc(), "delete", "--force", id).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "does not exist") {
		return fmt.Errorf("container %s: runc delete: %w: %s", id, err, firstLine(out))
	}
	cfg.Logger.Debug("container of an earlier daemon removed", "container", id)
	return nil
}

// sweepMounts unmounts everything below the root, the innermost first.
func sweepMounts(root string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].Mountpoint == root {
			continue // the root may be a disk of its own
		}
		err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", mounts[i].Mountpoint, err)
		}
	}
	return nil
}

// tmpDir is for what nobody needs after a restart.
func tmpDir(root string) string { return filepath.Join(root, "tmp") }

func emptyDir(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o700)
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}

// A cleaner removes discarded caches while the daemon already works.
type cleaner struct{ done sync.WaitGroup }

// startCleaner starts removing trash. It stops soon after ctx ends; the rest is removed next time.
func startCleaner(ctx context.Context, cfg *Config) *cleaner {
	var c cleaner
	c.done.Go(func() {
		trash, err := filepath.Glob(filepath.Join(cfg.Root, trashPrefix+"*"))
		if err != nil {
			return // the pattern is constant but for the root, which is then left alone
		}
		for _, dir := range trash {
			if err := removeAll(ctx, dir); err != nil && ctx.Err() == nil {
				cfg.Logger.Warn("discarded build cache not removed", "dir", dir, "err", err)
			}
		}
	})
	return &c
}

func (c *cleaner) wait() { c.done.Wait() }

// removeAll is os.RemoveAll for trees so large that one wants to stop it.
func removeAll(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = removeAll(ctx, name)
		} else {
			err = os.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(dir)
}
