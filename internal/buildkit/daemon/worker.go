package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/platforms"
	cachemetadata "github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/executor/runcexecutor"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker/base"
	wlabel "github.com/moby/buildkit/worker/label"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"

	"kiln/internal/buildkit/limits"
)

// The snapshotters by the names that BuildKit gives them.
const (
	overlayfs = "overlayfs"
	nativefs  = "native"
)

// namespace is the containerd namespace that BuildKit's records are kept under.
const namespace = "buildkit"

// networks are the network providers by the mode that a container asks for.
type networks map[pb.NetMode]network.Provider

// workerDir is where the worker keeps snapshots, content and running containers.
func workerDir(root string) string { return filepath.Join(root, "worker") }

// executorDir has one directory for each running container, named by its ID.
func executorDir(root string) string { return filepath.Join(workerDir(root), "executor") }

// newWorker assembles the worker that executes build steps by runc.
func newWorker(ctx context.Context, cfg *Config, dbs *databases, nets networks, hosts docker.RegistryHosts) (*base.Worker, error) {
	dir := workerDir(cfg.Root)
	monitor, err := resources.NewMonitor()
	if err != nil {
		return nil, err
	}
	exe, err := newExecutor(cfg, nets, monitor)
	if err != nil {
		return nil, err
	}
	opt, err := openStores(ctx, cfg, dbs)
	if err != nil {
		return nil, err
	}
	if opt.ID, err = base.ID(dir); err != nil {
		return nil, err
	}
	opt.Root = dir
	opt.Executor = exe
	opt.NetworkProviders = nets
	opt.RegistryHosts = hosts
	opt.GCPolicy = gcPolicy(cfg)
	opt.BuildkitVersion = client.BuildkitVersion{Package: version.Package, Version: version.Version}
	opt.Platforms = []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())}
	opt.ParallelismSem = semaphore.NewWeighted(int64(cfg.parallelism()))
	opt.MountPoolRoot = filepath.Join(dir, "cachemounts")
	opt.ResourceMonitor = monitor
	w, err := base.NewWorker(ctx, opt)
	if err != nil {
		return nil, err
	}
	return w, errors.Join(guardHTTP(w, cfg), serveTrees(w, cfg))
}

func newExecutor(cfg *Config, nets networks, monitor *resources.Monitor) (*guarded, error) {
	var dns *oci.DNSConfig
	if len(cfg.Nameservers) > 0 {
		dns = &oci.DNSConfig{}
		for _, a := range cfg.Nameservers {
			dns.Nameservers = append(dns.Nameservers, a.String())
		}
	}
	exe, err := runcexecutor.New(runcexecutor.Opt{
		Root:              executorDir(cfg.Root),
		CommandCandidates: []string{cfg.runc()},
		ProcessMode:       oci.ProcessSandbox,
		DNS:               dns,
		ResourceMonitor:   monitor,
	}, nets.shaped(tmpDir(cfg.Root)))
	if err != nil {
		return nil, err
	}
	return &guarded{Executor: exe, runc: cfg.runc(), allowInsecure: cfg.AllowInsecure}, nil
}

// openStores opens content, snapshots and their databases.
func openStores(ctx context.Context, cfg *Config, dbs *databases) (opt base.WorkerOpt, err error) {
	dir := workerDir(cfg.Root)
	name, snapshotter, err := newSnapshotter(cfg, dbs)
	if err != nil {
		return opt, err
	}
	dbs.closeLater(snapshotter.Close)
	content, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		return opt, err
	}
	db, err := bolt.Open(dbs.path(containerdDB), 0o600, dbs.options())
	if err != nil {
		return opt, fmt.Errorf("%s: %w", dbs.path(containerdDB), err)
	}
	dbs.closeLater(db.Close)
	mdb := metadata.NewDB(db, content, map[string]snapshots.Snapshotter{name: snapshotter})
	if err := mdb.Init(ctx); err != nil {
		return opt, fmt.Errorf("%s: %w", dbs.path(containerdDB), err)
	}
	md, err := cachemetadata.NewStore(dbs.path(metadataDB))
	if err != nil {
		return opt, fmt.Errorf("%s: %w", dbs.path(metadataDB), err)
	}
	if db, ok := md.DB().(*bolt.DB); ok { // it takes no options
		o := dbs.options()
		db.NoSync, db.NoFreelistSync = o.NoSync, o.NoFreelistSync
	}
	dbs.closeLater(md.Close)
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	store := containerdsnapshot.NewContentStore(mdb.ContentStore(), namespace)
	return base.WorkerOpt{
		Labels: map[string]string{
			wlabel.Executor:       "oci",
			wlabel.Snapshotter:    name,
			wlabel.Hostname:       hostname,
			wlabel.Network:        limits.Network,
			wlabel.OCIProcessMode: oci.ProcessSandbox.String(),
		},
		MetadataStore:  md,
		Snapshotter:    containerdsnapshot.NewSnapshotter(name, mdb.Snapshotter(name), namespace, nil),
		ContentStore:   store,
		Applier:        apply.NewFileSystemApplier(store),
		Differ:         walking.NewWalkingDiff(store),
		LeaseManager:   leaseutil.WithNamespace(metadata.NewLeaseManager(mdb), namespace),
		GarbageCollect: mdb.GarbageCollect,
	}, nil
}

// newSnapshotter returns the snapshotter to use at the daemon's root and its name.
func newSnapshotter(cfg *Config, dbs *databases) (string, snapshots.Snapshotter, error) {
	dir := workerDir(cfg.Root)
	name := cfg.Snapshotter
	if name == "" {
		name = overlayfs
		if err := overlayutils.Supported(cfg.Root); err != nil {
			cfg.Logger.Warn("overlayfs does not work here, layers are copied, which is slow and takes space", "root", cfg.Root, "err", err)
			name = nativefs
		}
	}
	dir = filepath.Join(dir, name)
	if name == nativefs {
		// Its database has a fixed place.
		if err := linkDatabase(dbs.path(snapshotDB), filepath.Join(dir, "metadata.db")); err != nil {
			return "", nil, err
		}
		s, err := native.NewSnapshotter(dir)
		return name, s, err
	}
	ms, err := storage.NewMetaStore(dbs.path(snapshotDB), dbs.relax)
	if err != nil {
		return "", nil, err
	}
	s, err := overlay.NewSnapshotter(dir, overlay.AsynchronousRemove, overlay.WithMetaStore(ms))
	return name, s, err
}

// linkDatabase makes link lead to the database file, whether or not it exists yet.
func linkDatabase(file, link string) error {
	if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(file, link)
}

// gcPolicy is BuildKit's default policy with the configured limits.
func gcPolicy(cfg *Config) []client.PruneInfo {
	stat, err := disk.GetDiskStat(cfg.Root)
	if err != nil {
		cfg.Logger.Warn("size of the disk is unknown, garbage collection keeps 2 GB", "root", cfg.Root, "err", err)
	}
	var policy []client.PruneInfo
	for _, rule := range config.DefaultGCPolicy(gcLimits(cfg, stat), stat) {
		policy = append(policy, client.PruneInfo{
			Filter:        rule.Filters,
			All:           rule.All,
			KeepDuration:  rule.KeepDuration.Duration,
			ReservedSpace: rule.ReservedSpace.AsBytes(stat),
			MaxUsedSpace:  rule.MaxUsedSpace.AsBytes(stat),
			MinFreeSpace:  rule.MinFreeSpace.AsBytes(stat),
		})
	}
	return policy
}

// Limits returns the limits that a daemon of this configuration keeps to: those configured, and BuildKit's
// for the disk at Root in place of the others. Root must exist.
func (c *Config) Limits() (GC, error) {
	stat, err := disk.GetDiskStat(c.Root)
	if err != nil {
		return GC{}, fmt.Errorf("%s: %w", c.Root, err)
	}
	l := gcLimits(c, stat)
	return GC{Reserved: l.GCReservedSpace.AsBytes(stat), MaxUsed: l.GCMaxUsedSpace.AsBytes(stat), MinFree: l.GCMinFreeSpace.AsBytes(stat)}, nil
}

func gcLimits(cfg *Config, stat disk.DiskStat) config.GCConfig {
	limits := config.DetectDefaultGCCap(stat)
	override(&limits.GCReservedSpace, cfg.GC.Reserved)
	override(&limits.GCMaxUsedSpace, cfg.GC.MaxUsed)
	override(&limits.GCMinFreeSpace, cfg.GC.MinFree)
	if cfg.GC.MaxUsed > 0 && cfg.GC.Reserved == 0 {
		limits.GCReservedSpace = config.DiskSpace{Bytes: min(limits.GCReservedSpace.AsBytes(stat), cfg.GC.MaxUsed/2)}
	}
	return limits
}

func override(d *config.DiskSpace, bytes int64) {
	if bytes > 0 {
		*d = config.DiskSpace{Bytes: bytes}
	}
}
