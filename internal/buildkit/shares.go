package buildkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"sync"

	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"

	"kiln/internal/solve"
)

// sharePrefix is how the names of shares begin on the daemon.
const sharePrefix = "kiln-volume-"

// shmDir is shared memory of a container's processes.
const shmDir = "/dev/shm"

// shares are the directories, by their names, that containers of a session have besides those that all have.
type shares struct {
	mu     sync.Mutex
	byName map[string]*lazy[gwclient.Mount]
}

func (s *shares) entry(name string) *lazy[gwclient.Mount] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName == nil {
		s.byName = map[string]*lazy[gwclient.Mount]{}
	}
	e := s.byName[name]
	if e == nil {
		e = &lazy[gwclient.Mount]{}
		s.byName[name] = e
	}
	return e
}

// extra returns the mounts of c that are neither the session's nor filled with files.
func (g *gateway) extra(ctx context.Context, c solve.Container, img *image) ([]gwclient.Mount, error) {
	var mounts []gwclient.Mount
	for _, t := range tmpfsOf(c) {
		mounts = append(mounts, gwclient.Mount{Dest: t.Path, MountType: pb.MountType_TMPFS, Readonly: t.ReadOnly})
	}
	for _, s := range c.Shares {
		m, err := g.share(ctx, s, img)
		if err != nil {
			return nil, fmt.Errorf("volume at %s: %w", s.Path, err)
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// tmpfsOf returns the directories in memory of c, shared memory of another size than usual among them.
func tmpfsOf(c solve.Container) []solve.Tmpfs {
	if c.Options.ShmSize <= 0 {
		return c.Tmpfs
	}
	size := strconv.FormatInt(c.Options.ShmSize, 10)
	return append(c.Tmpfs[:len(c.Tmpfs):len(c.Tmpfs)], solve.Tmpfs{Path: shmDir, Options: []string{"mode=1777", "size=" + size, "noexec", "nodev"}})
}

// share returns the mount of a share. The first container that names one decides what is in it.
func (g *gateway) share(ctx context.Context, s solve.Share, img *image) (gwclient.Mount, error) {
	if s.Name == "" {
		m, err := g.seedOf(ctx, s, img)
		m.Dest, m.Readonly = s.Path, s.ReadOnly
		return m, err
	}
	m, err := g.shares.entry(s.Name).get(ctx, func(ctx context.Context) (gwclient.Mount, error) {
		m, err := g.seedOf(ctx, s, img)
		if err != nil {
			return m, err
		}
		sum := sha256.Sum256([]byte(s.Name))
		m.MountType = pb.MountType_CACHE
		m.CacheOpt = &pb.CacheOpt{ID: sharePrefix + hex.EncodeToString(sum[:keySize]) + "-" + g.session.token, Sharing: pb.CacheSharingOpt_SHARED}
		return m, g.hold(ctx, m)
	})
	m.Dest, m.Readonly = s.Path, s.ReadOnly
	return m, err
}

// seedOf returns a mount that begins with what the image has at a share's path.
func (g *gateway) seedOf(ctx context.Context, s solve.Share, img *image) (gwclient.Mount, error) {
	m := gwclient.Mount{Dest: s.Path, MountType: pb.MountType_BIND}
	if s.Empty || img.rootfs == nil {
		return m, nil
	}
	ctx, cancel := g.while(ctx)
	defer cancel()
	stat, err := img.rootfs.StatFile(ctx, gwclient.StatRequest{Path: s.Path})
	switch {
	case err == nil && os.FileMode(stat.Mode).IsDir():
		m.Ref, m.Selector = img.rootfs, s.Path
	case err != nil && !isMissing(err):
		failure, _ := g.failure(ctx, err)
		return m, failure
	}
	return m, nil
}

// hold keeps what is mounted until the session ends: the daemon would remove it between two steps when it frees
// disk.
func (g *gateway) hold(ctx context.Context, mounts ...gwclient.Mount) error {
	ctx, cancel := g.while(ctx)
	defer cancel()
	_, err := g.NewContainer(ctx, gwclient.NewContainerRequest{Mounts: append([]gwclient.Mount{emptyRoot}, mounts...)})
	if err != nil {
		err, _ = g.failure(ctx, err)
	}
	return err
}
