package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/cmd/kiln/internal/metrics"
	"kiln/internal/apiclient"
	"kiln/internal/audit"
	"kiln/internal/auth"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/notify"
	"kiln/internal/registry"
	"kiln/internal/registry/bucket"
	"kiln/internal/secret"
	"kiln/internal/source"
	"kiln/internal/source/archive"
	"kiln/internal/source/git"
	"kiln/internal/store"
	"kiln/scheduler"
	"kiln/triggers"
	"kiln/webhook"
	"kiln/worker"
)

const (
	// diskReserve is how much room on the data directory's disk messages leave, in bytes.
	diskReserve = 32 << 20
	tokenLife   = 24 * time.Hour // of an attempt's registry token, beyond the run's time limit
)

// A node is a process of a server: those components that its roles call for, on one data directory. One that only
// executes runs, for a server elsewhere, has no keys and makes nothing in the message store.
type node struct {
	cfg        serveConfig
	log        *slog.Logger
	started    time.Time
	listener   net.Listener
	url        string
	host       string     // canonical name of the registry
	aliases    []string   // its other names
	instance   string     // of this process
	insecure   bool       // the registry speaks plain HTTP
	keys       *auth.Keys // nil without
	tokens     *tokenBook
	audit      *audit.Log
	cert       *certificate // nil without TLS
	identity   secret.Identity
	registry   *registry.Store // nil if another process has it
	remote     *elsewhere      // the registry, if another process has it
	registryAt string          // where the build daemon reaches it, if not by its canonical name
	bus        *bus.Bus
	store      *store.Store
	claimed    uint64 // revision of the claim on the registry, where others may work on the state
	index      *index.Index
	contexts   *source.Contexts
	allowed    allowedSources
	mirrors    *git.Mirrors // of git repositories
	archives   *archive.Fetcher
	builder    *builder
	hooks      *webhook.Book
	delivery   *webhook.Handler
	intake     *webhook.Intake
	notifier   *notify.Notifier
	logins     *logins              // for registries
	decider    *triggers.Decider    // nil while another process decides
	scheduler  *scheduler.Scheduler // nil where another process may schedule

	metrics *metrics.Metrics
	ready   readiness
	acting  atomic.Pointer[scheduler.Scheduler] // that schedules now, in this process
	works   atomic.Pointer[worker.Worker]       // that executes runs, in this process

	closers []func() error // in the order of opening
}

// serve runs a server until ctx ends.
func (c *cli) serve(ctx context.Context, cfg serveConfig) error {
	n := &node{cfg: cfg, log: cfg.logger(), started: time.Now().UTC(), instance: strings.ToLower(rand.Text()), metrics: metrics.New(version())}
	slog.SetDefault(n.log) // libraries that write to the standard log by themselves write to this one
	err := n.open(ctx)
	if err == nil {
		err = n.run(ctx, func() {
			if n.onlyWorks() {
				fmt.Fprintf(c.Out, "kiln %s is ready as worker %s of pool %s, for the registry %s\n", version(), n.cfg.name, cfg.pool, n.host)
				return
			}
			fmt.Fprintf(c.Out, "kiln %s is ready at %s (data in %s)\n", version(), n.url, cfg.data)
		})
	}
	return errors.Join(err, n.close())
}

// onClose has f called when the node is closed, before what was opened earlier is closed.
func (n *node) onClose(f func() error) { n.closers = append(n.closers, f) }

func (n *node) close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	return errors.Join(errs...)
}

// open opens everything that a component needs, and claims what only one process may have.
func (n *node) open(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		n.claim, n.listen, n.openTLS, n.openKeys, n.openRegistry, n.openBus, n.claimRegistry, n.openElsewhere, n.openMirrors, n.openHooks,
		n.openDecider, n.openScheduler, n.openBuilder,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// claim makes the data directory and locks it for this process.
func (n *node) claim(context.Context) error {
	if err := os.MkdirAll(n.cfg.data, 0o700); err != nil {
		return usagef("--data DIR", "data directory: %w", err)
	}
	path := filepath.Join(n.cfg.data, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return usagef("--data DIR", "data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		owner := make([]byte, 32)
		read, _ := f.Read(owner)
		return errors.Join(usagef("stop that server, or name another directory with --data",
			"data directory %s is in use by another server (process %s)", n.cfg.data, strings.TrimSpace(string(owner[:read]))), f.Close())
	}
	n.onClose(f.Close)
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	return err
}

func (n *node) listen(ctx context.Context) error {
	if n.cfg.listen == "" {
		return nil // a worker has nothing to tell
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", n.cfg.listen)
	if err != nil {
		return usagef("--listen HOST:PORT with another port, or stop what uses it", "listen on %s: %w", n.cfg.listen, err)
	}
	n.listener = l
	n.onClose(func() error { _ = l.Close(); return nil })
	n.url, n.insecure = n.cfg.scheme()+"://"+l.Addr().String(), n.cfg.tlsCert == ""
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	n.aliases = append(n.cfg.aliases, l.Addr().String(), "localhost:"+port, "127.0.0.1:"+port)
	if n.host = n.cfg.registryHost; n.host == "" {
		n.host = l.Addr().String()
	}
	return nil
}

func (n *node) openKeys(context.Context) error {
	if n.onlyWorks() {
		return nil
	}
	if err := os.MkdirAll(n.cfg.keys, 0o700); err != nil {
		return usagef("--keys DIR", "directory of the keys: %w", err)
	}
	var err error
	if n.keys, err = auth.Load(n.cfg.keys); err != nil {
		return err
	}
	if n.identity, err = secret.LoadIdentity(filepath.Join(n.cfg.keys, "identity.key")); err != nil {
		return err
	}
	n.keys.PublicURL = n.cfg.publicURL
	n.keys.Anonymous, err = auth.AnonymousPull(n.cfg.anonymousPull)
	return err
}

func (n *node) openRegistry(context.Context) error {
	if !n.has(roleRegistry) {
		return nil
	}
	blobs, err := n.cfg.bucket()
	if err != nil {
		return err
	}
	st, err := registry.Open(filepath.Join(n.cfg.data, "registry"), registry.Options{Bucket: blobs, Log: n.log})
	if errors.Is(err, bucket.ErrUnavailable) {
		return usagef("see that the address, the region and the credentials of --blobs are right", "%w", err)
	}
	if err != nil {
		return err
	}
	n.onClose(st.Close)
	n.registry = st
	n.contexts = &source.Contexts{Blobs: source.In(st, func(m registry.Manifest) []byte { return m.Body },
		registry.ErrManifestUnknown, registry.ErrBlobUnknown, registry.ErrRepositoryUnknown)}
	return nil
}

// onlyWorks reports whether this process does nothing but execute runs.
func (n *node) onlyWorks() bool { return len(n.cfg.roles) == 1 && n.has(roleWorker) }

func (n *node) openBus(ctx context.Context) error {
	nc, err := n.connectNATS(ctx)
	if err != nil {
		return err
	}
	n.onClose(func() error { nc.Close(); return nil })
	if n.onlyWorks() {
		return n.attach(ctx, nc)
	}
	if n.bus, n.store, err = n.cfg.openState(ctx, nc, n.seal, n.log); err != nil {
		return err
	}
	if !n.cfg.nats.others() {
		n.bus.Reserve(n.cfg.data, diskReserve)
	}
	n.tokens = newTokenBook(n.store, n.log)
	n.tokens.attach(n.keys)
	n.audit = audit.New(n.bus, n.log)
	if n.index, err = index.Open(filepath.Join(n.cfg.data, "index.db"), n.log); err != nil {
		return err
	}
	n.onClose(n.index.Close)
	return nil
}

// attach waits until a server has made the state, and opens what a worker needs of it.
func (n *node) attach(ctx context.Context, nc *bus.Conn) (err error) {
	if n.bus, err = bus.Attach(nc, n.log); err != nil {
		return err
	}
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for said := false; ; said = true {
		if n.store, err = store.Attach(ctx, n.bus.JetStream()); err == nil {
			return nil
		}
		if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrOlder) && !bus.Transient(err) {
			return err
		}
		if !said {
			n.log.Warn("waiting for a server to make its state in the message store", "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again.C:
		}
	}
}

// run runs the components until ctx ends. The worker stops first: while its runs finish, everything
// they need is still there.
func (n *node) run(ctx context.Context, ready func()) error {
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(inner)
	server := newServer(n.handler(), maxPause, n.log)
	if n.listener != nil {
		g.Go(func() error {
			if err := n.serveHTTP(server); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	for _, component := range n.components() {
		g.Go(func() error { return component(gctx) })
	}
	wctx, stopWorker := context.WithCancel(ctx)
	defer stopWorker()
	context.AfterFunc(gctx, stopWorker)
	err := n.work(wctx, ready)
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if server.Shutdown(shutdown) != nil {
		_ = server.Close() // followers of logs come back to the next server
	}
	stop()
	stopped := g.Wait()
	if errors.Is(stopped, context.Canceled) {
		stopped = nil // of a component that had not begun
	}
	return errors.Join(err, stopped)
}

// work executes runs until ctx ends and the runs in hand have, if this process is to execute some.
func (n *node) work(ctx context.Context, ready func()) error {
	run := func(ctx context.Context) error { <-ctx.Done(); return nil }
	if n.builder != nil {
		info, err := n.builder.ready(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		w, err := n.worker(info)
		if err != nil {
			return err
		}
		n.works.Store(w)
		run = func(ctx context.Context) error { return n.execute(ctx, w) }
	}
	if n.listener != nil && !n.onlyWorks() {
		if err := n.announce(); err != nil {
			return err
		}
		defer func() { _ = os.Remove(filepath.Join(n.cfg.data, apiclient.ServerFile)) }()
	}
	ready()
	return run(ctx)
}

// announce tells clients on this host where the server is.
func (n *node) announce() error {
	at := apiclient.Location{URL: n.url, PID: os.Getpid()}
	if n.cert != nil {
		at.Certificate, at.Name = n.cfg.tlsCert, hostOf(n.host)
	}
	b, err := json.Marshal(at)
	if err != nil {
		return err
	}
	path := filepath.Join(n.cfg.data, apiclient.ServerFile)
	if err := os.WriteFile(path+".tmp", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// relay publishes the registry's events.
func (n *node) relay(ctx context.Context, events []registry.OutboxEvent) error {
	for _, e := range events {
		ev, err := event.New(e.ID, "/v2/"+e.Repository, e.Type, e.Time, event.Image{Registry: n.host, Repository: e.Repository,
			Tag: e.Tag, Digest: e.Digest, MediaType: e.MediaType, ArtifactType: e.ArtifactType, Size: e.Size, Run: e.Run})
		if err != nil {
			return err
		}
		ev.Subject = n.host + "/" + e.Repository + "@" + e.Digest
		if e.Tag != "" {
			ev.Subject = n.host + "/" + e.Repository + ":" + e.Tag
		}
		if _, err := n.bus.Publish(ctx, event.ImageSubject(e.Type, e.Repository), e.ID, ev); err != nil {
			return err
		}
	}
	return nil
}
