// Package daemon is kiln's BuildKit daemon: BuildKit's control plane with a runc worker, served on a
// unix socket.
//
// A daemon owns its root directory while it runs; a second one on the same root refuses to start. It
// may be killed at any moment: the next one on that root first removes what was left behind
// (containers, mounts, networks) and keeps the build cache. The cache is disposable: where the
// databases that describe it may not match it, for example after a power failure, it is emptied and
// never trusted.
//
// A daemon changes its process: environment variables, BuildKit's package variables and the log of
// the libraries. It is meant to have a process of its own; Child is that process's main function.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/gofrs/flock"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/grpcerrors"
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto" // the codec of BuildKit's messages
	"github.com/moby/buildkit/version"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	lockFile = "lock"
	// stopTimeout is how long requests may take to end after they have been cancelled. Containers
	// that still run then are killed by the sweep.
	stopTimeout = 10 * time.Second
)

// ErrInUse is returned when another daemon uses the root.
var ErrInUse = errors.New("in use by another build daemon")

// Serve runs a daemon until ctx ends. It then cancels the builds in hand, waits until they are gone,
// removes their containers and networks, puts the databases of the cache aside, and returns nil.
func Serve(ctx context.Context, cfg Config) error {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	if _, err := exec.LookPath(cfg.runc()); err != nil {
		return fmt.Errorf("runc: %w: install it (Debian, Ubuntu: apt-get install runc)", err)
	}
	unlock, err := lockRoot(&cfg)
	if err != nil {
		return err
	}
	defer unlock()
	if err := prepareProcess(&cfg); err != nil {
		return err
	}
	if err := sweep(ctx, &cfg); err != nil {
		return fmt.Errorf("sweep of %s: %w", cfg.Root, err)
	}
	stopProxy, err := guardGit(&cfg)
	if err != nil {
		return fmt.Errorf("git: %w", err)
	}
	defer stopProxy()
	dbs := newDatabases(cfg.Root, cfg.StateTmpfs)
	if err := dbs.prepare(cfg.Logger); err != nil {
		return fmt.Errorf("databases of %s: %w", cfg.Root, err)
	}
	trash := startCleaner(ctx, &cfg)
	defer trash.wait()
	return serve(ctx, &cfg, dbs)
}

// serve runs the control plane on a prepared root.
func serve(ctx context.Context, cfg *Config, dbs *databases) error {
	// The libraries' own work ends after the requests, not with ctx.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	nets, err := newNetworks(cfg)
	if err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	ctrl, err := openController(life, cfg, dbs, nets)
	if err != nil {
		return errors.Join(err, dbs.close(), nets.close())
	}
	ended, err := serveSocket(ctx, cfg, ctrl)
	end() // stops the controller's loops
	if err := errors.Join(err, shutDown(cfg, ctrl, dbs)); err != nil || !ended {
		return err
	}
	if err := dbs.keep(); err != nil {
		return fmt.Errorf("databases of %s not kept, the build cache starts empty next time: %w", cfg.Root, err)
	}
	return nil
}

// openController opens the control plane. Databases that cannot be read are discarded, and the cache
// with them.
func openController(ctx context.Context, cfg *Config, dbs *databases, nets networks) (*control.Controller, error) {
	ctrl, err := newController(ctx, cfg, dbs, nets)
	if err == nil || !isCorrupt(err) {
		return ctrl, err
	}
	cfg.Logger.Warn("build cache discarded: its databases cannot be read", "root", cfg.Root, "err", err)
	_ = dbs.close() // they are removed
	if err := dbs.reset(); err != nil {
		return nil, err
	}
	return newController(ctx, cfg, dbs, nets)
}

// serveSocket answers requests until ctx ends, and reports whether the requests in hand have then
// ended in time.
func serveSocket(ctx context.Context, cfg *Config, ctrl *control.Controller) (ended bool, err error) {
	l, err := listen(cfg.Socket)
	if err != nil {
		return false, err
	}
	srv := grpc.NewServer(
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.WaitForHandlers(true),
	)
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	ctrl.Register(srv)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	cfg.Logger.Info("build daemon ready", "socket", cfg.Socket, "root", cfg.Root)
	select {
	case err := <-served:
		return false, fmt.Errorf("socket %s: %w", cfg.Socket, err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() { srv.Stop(); close(stopped) }()
	select {
	case <-stopped:
		<-served
		return true, nil
	case <-time.After(stopTimeout):
		cfg.Logger.Warn("requests did not end in time", "timeout", stopTimeout)
		return false, nil
	}
}

// shutDown ends what a stopped server leaves.
func shutDown(cfg *Config, ctrl *control.Controller, dbs *databases) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	err := ctrl.Close()
	err = errors.Join(err, dbs.close())
	if err := errors.Join(err, sweep(ctx, cfg)); err != nil {
		return fmt.Errorf("stop of the build daemon: %w", err)
	}
	return nil
}

// lockRoot creates the root and makes this process its only user.
func lockRoot(cfg *Config) (unlock func(), err error) {
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, err
	}
	// Containers are found by paths below the root, as the kernel names them.
	if cfg.Root, err = filepath.EvalSymlinks(cfg.Root); err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(cfg.Root, lockFile))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("root %s: %w", cfg.Root, ErrInUse)
	}
	return func() { _ = lock.Close() }, nil
}

// WaitFree waits until no daemon uses the root of cfg: one whose supervisor was killed takes a while to
// notice and to stop. It returns ErrInUse if the root is still in use when ctx ends.
func WaitFree(ctx context.Context, cfg Config) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		unlock, err := lockRoot(&cfg)
		if err == nil {
			unlock()
			return nil
		}
		if !errors.Is(err, ErrInUse) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// nameVersion tells BuildKit its own version, which its build scripts would have set.
func nameVersion() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/moby/buildkit" {
			version.Version = m.Version
		}
	}
}

// prepareProcess sets what BuildKit reads from its process.
func prepareProcess(cfg *Config) error {
	apicaps.ExportedProduct = "buildkit"
	nameVersion()
	routeLogs(cfg.Logger)
	return errors.Join(
		// Output of steps is not clipped here.
		os.Setenv("BUILDKIT_STEP_LOG_MAX_SIZE", "-1"),
		os.Setenv("BUILDKIT_STEP_LOG_MAX_SPEED", "-1"),
		// BuildKit mounts in temporary directories; the sweep finds them below the root.
		os.Setenv("TMPDIR", tmpDir(cfg.Root)),
		mount.SetTempMountLocation(tmpDir(cfg.Root)),
	)
}

// listen opens the socket for its owner only. A dead daemon's socket is replaced.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// The socket is nobody else's from the first moment on.
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}
