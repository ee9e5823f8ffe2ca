package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/codes"
)

// Where the directories that a session's containers share are mounted.
const (
	workspaceDir = "/workspace"
	homeDir      = "/acb/home"
)

const (
	// readChunk is how much of a file one call reads; a message of the gateway holds 16 MiB.
	readChunk = 4 << 20
	// releaseTimeout bounds the removal of a container.
	releaseTimeout = 30 * time.Second
)

// A workspace is what a session's containers share. It is a writable layer over the source tree (see
// seeds), so that it costs no copy, and is held by a container that is never started: the daemon would remove
// it between two steps when it frees disk.
type workspace struct {
	mounts []gwclient.Mount
}

// createWorkspace uploads the source and mounts the session's directories.
func (g *gateway) createWorkspace(ctx context.Context) (_ *workspace, err error) {
	ctx, cancel := g.while(ctx)
	defer cancel()
	defer func() {
		if err != nil {
			failure, _ := g.failure(ctx, err)
			err = fmt.Errorf("workspace: %w", failure)
		}
	}()
	seed, err := g.seed(ctx)
	if err != nil {
		return nil, err
	}
	w := &workspace{mounts: []gwclient.Mount{
		g.shared(workspaceDir, workspacePrefix, seed),
		g.shared(homeDir, homePrefix, nil),
	}}
	if _, err := g.NewContainer(ctx, gwclient.NewContainerRequest{Mounts: append([]gwclient.Mount{emptyRoot}, w.mounts...)}); err != nil {
		return nil, err
	}
	return w, nil
}

// The names of a session's directories on the daemon begin so.
const (
	workspacePrefix = "kiln-workspace-"
	homePrefix      = "kiln-home-"
)

// RemoveWorkspaces removes what sessions have left that could not close, because their process or the
// daemon was killed. The workspaces of sessions that live are in use and stay.
func (c *Client) RemoveWorkspaces(ctx context.Context) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	for _, prefix := range []string{workspacePrefix, homePrefix, treePrefix, sharePrefix} {
		if _, err := c.pruneMatching(ctx, "description~="+prefix); err != nil {
			return fmt.Errorf("workspaces of earlier runs: %w", err)
		}
	}
	return nil
}

func (g *gateway) shared(dest, prefix string, seed gwclient.Reference) gwclient.Mount {
	return gwclient.Mount{
		Dest:      dest,
		Ref:       seed,
		MountType: pb.MountType_CACHE,
		CacheOpt:  &pb.CacheOpt{ID: prefix + g.session.token, Sharing: pb.CacheSharingOpt_SHARED},
	}
}

// emptyRoot is the root of a container that is not started.
var emptyRoot = gwclient.Mount{Dest: "/", MountType: pb.MountType_BIND}

// release removes ctr and waits until it is gone, also when ctx has ended.
func (g *gateway) release(ctx context.Context, ctr gwclient.Container) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	// It also returns how the process was killed. If the call itself failed the gateway is lost,
	// and the container ends with it.
	_ = ctr.Release(ctx)
}

// A workspaceTree is the workspace as it is now, as a tree that a build can read.
type workspaceTree struct {
	ctr     gwclient.Container
	release func()
}

// openWorkspace returns the workspace for reading. The caller releases it.
func (g *gateway) openWorkspace(ctx context.Context, w *workspace) (*workspaceTree, error) {
	// A container of its own sees what was written up to now.
	ctr, err := g.NewContainer(ctx, gwclient.NewContainerRequest{Mounts: []gwclient.Mount{emptyRoot, w.mounts[0]}})
	if err != nil {
		failure, _ := g.failure(ctx, err)
		return nil, fmt.Errorf("workspace: %w", failure)
	}
	return &workspaceTree{ctr: ctr, release: func() { g.release(ctx, ctr) }}, nil
}

const workspaceIndex = 1 // in the mounts of a workspaceTree's container

// Walk calls fn for everything below target, in the order and with the paths that fsutil requires.
func (t *workspaceTree) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = cleanTarget(target)
	if target == "" {
		return endOfWalk(t.walkDir(ctx, "", fn))
	}
	entries, err := t.readDir(ctx, parent(target))
	if err != nil {
		if isMissing(err) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.Path == target {
			return endOfWalk(t.visit(ctx, e, fn))
		}
	}
	return nil
}

// endOfWalk makes of a callback's wish to stop what filepath.WalkDir makes of it.
func endOfWalk(err error) error {
	if errors.Is(err, fs.SkipAll) || errors.Is(err, fs.SkipDir) {
		return nil
	}
	return err
}

func (t *workspaceTree) walkDir(ctx context.Context, dir string, fn fs.WalkDirFunc) error {
	entries, err := t.readDir(ctx, dir)
	if err != nil {
		if isMissing(err) {
			return nil // removed meanwhile
		}
		return err
	}
	for _, e := range entries {
		if err := t.visit(ctx, e, fn); err != nil {
			if errors.Is(err, fs.SkipDir) {
				return nil // of the rest of dir
			}
			return err
		}
	}
	return nil
}

func (t *workspaceTree) visit(ctx context.Context, e *types.Stat, fn fs.WalkDirFunc) error {
	err := fn(e.Path, &fsutil.DirEntryInfo{Stat: e}, nil)
	switch {
	case !e.IsDir():
		return err
	case errors.Is(err, fs.SkipDir):
		return nil
	case err != nil:
		return err
	}
	return t.walkDir(ctx, e.Path, fn)
}

// readDir returns the entries of dir by name, their paths relative to the workspace.
func (t *workspaceTree) readDir(ctx context.Context, dir string) ([]*types.Stat, error) {
	entries, err := t.ctr.ReadDir(ctx, gwclient.ReadDirContainerRequest{
		MountIndex:     workspaceIndex,
		ReadDirRequest: gwclient.ReadDirRequest{Path: "/" + dir},
	})
	if err != nil {
		return nil, fmt.Errorf("workspace: %s: %w", path.Join("/", dir), err)
	}
	for _, e := range entries {
		e.Path = path.Join(dir, path.Base(e.Path))
		e.Uid, e.Gid = 0, 0
	}
	slices.SortFunc(entries, func(a, b *types.Stat) int { return strings.Compare(a.Path, b.Path) })
	return entries, nil
}

// Open returns the content of a file. It never fails, Read does: see tree.Open.
func (t *workspaceTree) Open(p string) (io.ReadCloser, error) {
	return &workspaceFile{ctr: t.ctr, name: path.Join("/", p)}, nil
}

// A workspaceFile reads a file of a workspace chunk by chunk.
type workspaceFile struct {
	ctr    gwclient.Container
	name   string
	offset int
	chunk  []byte
	last   bool
}

func (f *workspaceFile) Read(p []byte) (int, error) {
	if len(f.chunk) == 0 && !f.last {
		if err := f.next(); err != nil {
			return 0, fmt.Errorf("workspace: %s: %w", f.name, err)
		}
	}
	if len(f.chunk) == 0 {
		return 0, io.EOF
	}
	n := copy(p, f.chunk)
	f.chunk = f.chunk[n:]
	return n, nil
}

func (f *workspaceFile) next() error {
	// fsutil opens files without a context. The gateway's end ends the calls.
	ctx := context.Background()
	chunk, err := f.ctr.ReadFile(ctx, gwclient.ReadContainerRequest{
		MountIndex:  workspaceIndex,
		ReadRequest: gwclient.ReadRequest{Filename: f.name, Range: &gwclient.FileRange{Offset: f.offset, Length: readChunk}},
	})
	if err != nil {
		// A socket looks like an empty file from here, and cannot be read.
		stat, serr := f.ctr.StatFile(ctx, gwclient.StatContainerRequest{
			MountIndex:  workspaceIndex,
			StatRequest: gwclient.StatRequest{Path: f.name},
		})
		if serr != nil || stat.Size > 0 {
			return err
		}
	}
	f.offset += len(chunk)
	f.chunk, f.last = chunk, len(chunk) < readChunk
	return nil
}

func (f *workspaceFile) Close() error { return nil }

// isMissing reports whether the daemon said that a path is not there.
func isMissing(err error) bool {
	return grpcerrors.Code(err) == codes.NotFound || strings.Contains(err.Error(), "no such file or directory")
}

// parent returns the directory of p, "" for the root.
func parent(p string) string { return strings.TrimPrefix(path.Dir("/"+p), "/") }
