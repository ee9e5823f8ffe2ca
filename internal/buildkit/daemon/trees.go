package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/provenance"
	provenancetypes "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"kiln/internal/buildkit/treefs"
)

// treesDir has the trees that a client of this machine has mounted, see package treefs.
func treesDir(root string) string { return filepath.Join(root, "trees") }

// serveTrees gives the worker layers whose content is a tree that a client has mounted. Only overlayfs takes
// a layer as it lies; any other snapshotter would copy it.
func serveTrees(w *base.Worker, cfg *Config) error {
	if w.Snapshotter.Name() != overlayfs {
		return nil
	}
	dir := treesDir(cfg.Root)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	w.SourceManager.Register(&treeSource{cache: w.CacheMgr, dir: dir})
	w.WorkerOpt.Labels[treefs.Label] = dir
	return nil
}

// A treeSource is a source.Source.
type treeSource struct {
	cache cache.Accessor
	dir   string
}

// A treeID names a tree that is mounted.
type treeID string

var treeName = regexp.MustCompile(`^[a-z0-9-]{1,100}$`)

func (*treeSource) Schemes() []string { return []string{treefs.Scheme} }

func (*treeSource) Identifier(_, ref string, _ map[string]string, _ *pb.Platform) (source.Identifier, error) {
	if !treeName.MatchString(ref) {
		return nil, fmt.Errorf("%s: %q is no name of a tree", treefs.Scheme, ref)
	}
	return treeID(ref), nil
}

func (s *treeSource) Resolve(_ context.Context, id source.Identifier, _ *session.Manager, _ solver.Vertex) (source.SourceInstance, error) {
	name, ok := id.(treeID)
	if !ok {
		return nil, fmt.Errorf("%s: no name of a tree", treefs.Scheme)
	}
	return &treeInstance{source: s, name: string(name)}, nil
}

func (id treeID) String() string { return treefs.Scheme + "://" + string(id) }

func (treeID) Scheme() string { return treefs.Scheme }

func (id treeID) Capture(c *provenance.Capture, _ string) error {
	c.AddLocal(provenancetypes.LocalSource{Name: string(id)})
	return nil
}

// A treeInstance is a source.SourceInstance.
type treeInstance struct {
	source *treeSource
	name   string
}

// CacheKey is the tree's name, of which there is no other.
func (t *treeInstance) CacheKey(context.Context, solver.JobContext, int) (key, pin string, opts solver.CacheOpts, done bool, err error) {
	return treefs.Scheme + ":" + t.name, digest.FromString(t.name).String(), nil, true, nil
}

// Snapshot returns a layer whose directory is a link to the mounted tree. Whoever uses the layer follows it,
// what measures or removes it does not; and once the tree is no longer mounted the layer cannot be taken
// for an empty one.
func (t *treeInstance) Snapshot(ctx context.Context, job solver.JobContext) (_ cache.ImmutableRef, err error) {
	target := filepath.Join(t.source.dir, t.name)
	var fs unix.Statfs_t
	if err := unix.Statfs(target, &fs); err != nil || uint64(fs.Type) != treefs.Magic { // its width differs by architecture
		return nil, fmt.Errorf("%s: no tree is mounted there: %w", target, errors.Join(err))
	}
	ref, err := t.source.cache.New(ctx, nil, job.Session(), cache.CachePolicyRetain,
		cache.WithRecordType(client.UsageRecordTypeLocalSource), cache.WithDescription("mounted tree "+t.name))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ref.Release(context.WithoutCancel(ctx)))
		}
	}()
	dir, release, err := directoryOf(ctx, ref, job.Session())
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.Remove(dir), os.Symlink(target, dir), release())
	if err != nil {
		return nil, err
	}
	return ref.Commit(ctx)
}

// directoryOf returns where a layer without a parent lies.
func directoryOf(ctx context.Context, ref cache.MutableRef, g session.Group) (dir string, release func() error, err error) {
	m, err := ref.Mount(ctx, false, g)
	if err != nil {
		return "", nil, err
	}
	mounts, release, err := m.Mount()
	if err != nil {
		return "", nil, err
	}
	if len(mounts) != 1 || mounts[0].Type != "bind" || filepath.Base(mounts[0].Source) != "fs" {
		return "", nil, errors.Join(errors.New("the layer is not a directory of overlayfs"), release())
	}
	return mounts[0].Source, release, nil
}
