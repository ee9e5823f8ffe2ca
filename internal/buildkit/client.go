// Package buildkit executes steps on a BuildKit daemon, through BuildKit's client API only: the same
// code serves the embedded daemon and a pool of remote ones.
//
// A Client keeps one connection to one daemon. It survives the daemon's restart: what was executing
// then fails with solve.ErrUnavailable at once, what is asked for afterwards waits for the daemon to
// come back, but not longer than Config.DialTimeout.
//
// Every build is a solve of its own that pushes by digest. All containers of a session share one
// gateway build, opened by the first of them, so that a session that only builds pays for none.
// A workspace lies over the source as the daemon has it, so that making it costs no copy. The daemon keeps
// what was transferred of a source; the next run on a tree of that source transfers what has changed, on any
// daemon. A Client remembers in memory what the daemon has. Where it does not, or the daemon has removed it,
// kiln's own daemon on the same machine is shown a large tree through a mount: nothing is transferred before
// the first step starts, and of each file its content when a step reads it. On any other daemon the whole tree
// is transferred.
//
// What the package writes to disk on this side are large files of such a mount, as long as it lives; never
// credentials or secrets.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"kiln/internal/buildkit/peers"
	"kiln/internal/solve"
)

const (
	defaultDialTimeout = 10 * time.Second
	defaultStopGrace   = 10 * time.Second
	// networkLabel is the worker label in which a daemon tells how its containers are connected.
	networkLabel = "org.mobyproject.buildkit.worker.network"
)

// Config says where a daemon is and how to talk to it.
type Config struct {
	// Address is "unix:///path" or "tcp://host:port".
	Address string
	// TLS is used with tcp. Nil means none.
	TLS *TLS
	// DialTimeout bounds the wait for a daemon that is not reachable. Zero means ten seconds.
	DialTimeout time.Duration
	// StopGrace is the time between a container's SIGTERM and its SIGKILL. Zero means ten seconds.
	StopGrace time.Duration
	// Privileged says that the daemon grants the entitlement security.insecure. Without it a
	// privileged container is refused here.
	Privileged bool
}

// TLS names the files of a mutual TLS connection.
type TLS struct {
	CA         string // certificate authority of the daemon; "" means the system's
	Cert, Key  string // of this client
	ServerName string // expected in the daemon's certificate; "" means the address's host
}

// A Client executes steps on one daemon. It is safe for concurrent use.
type Client struct {
	cfg  Config
	bk   *client.Client
	link *link

	sessions sync.WaitGroup // of solves

	worker lazy[*client.WorkerInfo] // of the daemon
	seeds  seeds

	unshown   atomic.Int32 // times in a row that a tree could not be shown to the daemon
	retaining sync.Mutex   // held while a source is transferred for later sessions

	freeing sync.Mutex   // held while the disk is being freed
	freed   atomic.Int64 // times that it was
}

var _ solve.Solver = (*Client)(nil)

// New returns a client of the daemon at cfg.Address. It does not wait for the daemon: a daemon that
// is not there is reported by the first use. The caller closes the client.
func New(cfg Config) (*Client, error) {
	u, err := url.Parse(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("build daemon address %q: %w", cfg.Address, err)
	}
	l, err := newLink(u)
	if err != nil {
		return nil, fmt.Errorf("build daemon address %q: %w", cfg.Address, err)
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = defaultDialTimeout
	}
	if cfg.StopGrace == 0 {
		cfg.StopGrace = defaultStopGrace
	}
	opts := []client.ClientOpt{
		client.WithContextDialer(l.dial),
		client.WithGRPCDialOption(grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: cfg.DialTimeout,
		})),
	}
	if t := cfg.TLS; t != nil {
		name := t.ServerName
		if name == "" {
			name = u.Hostname()
		}
		if t.CA == "" {
			opts = append(opts, client.WithServerConfigSystem(name))
		} else {
			opts = append(opts, client.WithServerConfig(name, t.CA))
		}
		if t.Cert != "" || t.Key != "" {
			opts = append(opts, client.WithCredentials(t.Cert, t.Key))
		}
	}
	bk, err := client.New(context.Background(), cfg.Address, opts...)
	if err != nil {
		return nil, fmt.Errorf("build daemon %s: %w", cfg.Address, err)
	}
	return &Client{cfg: cfg, bk: bk, link: l}, nil
}

// Close ends the connection. Sessions must have been closed before.
func (c *Client) Close() error {
	c.sessions.Wait()
	if err := c.bk.Close(); err != nil {
		return fmt.Errorf("build daemon %s: %w", c.cfg.Address, err)
	}
	return nil
}

// Info is what a daemon tells about itself.
type Info struct {
	Version   string   // of BuildKit
	Platforms []string // that it builds for, the native one first
	// Network is how containers are connected: "kiln" by kiln's own daemon, "kiln-cni" by kiln's plugin, or
	// "host", "cni" and "bridge". A daemon that says "host" does not separate runs; of the last two nothing
	// is known.
	Network string
}

// Info asks the daemon what it is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	if err := c.ready(ctx); err != nil {
		return Info{}, err
	}
	info, err := c.bk.Info(ctx)
	if err != nil {
		return Info{}, c.engineError(ctx, err)
	}
	workers, err := c.bk.ListWorkers(ctx)
	if err != nil {
		return Info{}, c.engineError(ctx, err)
	}
	if len(workers) == 0 {
		return Info{}, fmt.Errorf("build daemon %s has no worker", c.cfg.Address)
	}
	out := Info{Version: info.BuildkitVersion.Version, Network: networkOf(workers[0])}
	for _, p := range workers[0].Platforms {
		out.Platforms = append(out.Platforms, platforms.Format(p))
	}
	return out, nil
}

// platform returns the one that the daemon's containers have.
func (c *Client) platform(ctx context.Context) (ocispecs.Platform, error) {
	w, err := c.worker.get(ctx, c.firstWorker)
	if err != nil {
		return ocispecs.Platform{}, err
	}
	return w.Platforms[0], nil
}

// network returns how the daemon's containers are connected, as Info.Network says it.
func (c *Client) network(ctx context.Context) (string, error) {
	w, err := c.worker.get(ctx, c.firstWorker)
	if err != nil {
		return "", err
	}
	return networkOf(w), nil
}

// networkOf tells how the containers of a worker are connected.
func networkOf(w *client.WorkerInfo) string {
	kind := w.Labels[networkLabel]
	if kind == networkCNI && w.Labels[peers.Label] == peers.Plugin {
		return networkPlugin
	}
	return kind
}

func (c *Client) firstWorker(ctx context.Context) (*client.WorkerInfo, error) {
	workers, err := c.bk.ListWorkers(ctx)
	if err != nil {
		return nil, err
	}
	if len(workers) == 0 || len(workers[0].Platforms) == 0 {
		return nil, fmt.Errorf("build daemon %s has no worker", c.cfg.Address)
	}
	return workers[0], nil
}

// Prune removes everything from the daemon's cache that is not in use and returns the bytes freed.
// It may take minutes.
func (c *Client) Prune(ctx context.Context) (freed int64, err error) {
	_, freed, err = c.PruneCache(ctx, CachePrune{All: true})
	return freed, err
}

// pruneMatching removes the unused cache records that match filter, all if it is empty. It takes one
// filter because the daemon removes what matches any of several.
func (c *Client) pruneMatching(ctx context.Context, filter string) (freed int64, err error) {
	p := CachePrune{All: true}
	if filter != "" {
		p.Filters = []string{filter}
	}
	_, freed, err = c.PruneCache(ctx, p)
	return freed, err
}

// ready returns at once when there is a connection, else it waits for one.
func (c *Client) ready(ctx context.Context) error {
	if c.link.alive() {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	_, err := c.bk.ControlClient().Info(wait, &controlapi.InfoRequest{}, grpc.WaitForReady(true))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case wait.Err() != nil && c.link.lastError() != nil:
		err = c.link.lastError()
	}
	return fmt.Errorf("build daemon %s does not answer: %w: %w", c.cfg.Address, solve.ErrUnavailable, err)
}

// Open returns a session for one attempt of a run. It does not talk to the daemon.
func (c *Client) Open(cfg solve.SessionConfig) solve.Session {
	return newSession(c, cfg)
}

// errClosed is why what a session still executes ends when it is closed.
var errClosed = errors.New("the session was closed")
