package main

import (
	"cmp"
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
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/api"
	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/buildkit"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/notify"
	"kiln/internal/registry"
	"kiln/internal/registry/bucket"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/source"
	"kiln/internal/source/archive"
	"kiln/internal/source/git"
	"kiln/internal/store"
	"kiln/scheduler"
	"kiln/taskspec"
	"kiln/triggers"
	"kiln/triggers/watch"
	"kiln/webhook"
	"kiln/worker"
)

const (
	leaseTTL = 15 * time.Second
	// diskReserve is how much room on the data directory's disk messages leave, in bytes.
	diskReserve = 32 << 20
	tokenLife   = 24 * time.Hour // of an attempt's registry token, beyond the run's time limit
)

// A node is a server: every component in one process, on one data directory.
type node struct {
	cfg       serveConfig
	log       *slog.Logger
	started   time.Time
	listener  net.Listener
	url       string
	host      string   // canonical name of the registry
	aliases   []string // its other names
	keys      *auth.Keys
	tokens    *tokenBook
	cert      *certificate // nil without TLS
	identity  secret.Identity
	registry  *registry.Store
	bus       *bus.Bus
	store     *store.Store
	claimed   uint64 // revision of the claim on the state, where others may work on it
	index     *index.Index
	contexts  *source.Contexts
	allowed   allowedSources
	mirrors   *git.Mirrors // of git repositories
	archives  *archive.Fetcher
	builder   *builder
	hooks     *webhook.Book
	delivery  *webhook.Handler
	intake    *webhook.Intake
	notifier  *notify.Notifier
	logins    *logins // for registries
	images    *watch.Watcher
	decider   *triggers.Decider
	scheduler *scheduler.Scheduler

	closers []func() error // in the order of opening
}

// serve runs a server until ctx ends.
func (c *cli) serve(ctx context.Context, cfg serveConfig) error {
	n := &node{cfg: cfg, log: cfg.logger(), started: time.Now().UTC()}
	slog.SetDefault(n.log) // libraries that write to the standard log by themselves write to this one
	err := n.open(ctx)
	if err == nil {
		err = n.run(ctx, func() {
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
		n.claim, n.listen, n.openTLS, n.openKeys, n.openRegistry, n.openMirrors, n.openBus, n.claimState, n.openHooks, n.openDecider, n.openScheduler, n.openBuilder,
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
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", n.cfg.listen)
	if err != nil {
		return usagef("--listen HOST:PORT with another port, or stop what uses it", "listen on %s: %w", n.cfg.listen, err)
	}
	n.listener = l
	n.onClose(func() error { _ = l.Close(); return nil })
	n.url = n.cfg.scheme() + "://" + l.Addr().String()
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
	var err error
	if n.keys, err = auth.Load(n.cfg.data); err != nil {
		return err
	}
	if n.identity, err = secret.LoadIdentity(filepath.Join(n.cfg.data, "identity.key")); err != nil {
		return err
	}
	n.keys.PublicURL = n.cfg.publicURL
	n.keys.Anonymous, err = auth.AnonymousPull(n.cfg.anonymousPull)
	return err
}

func (n *node) openRegistry(context.Context) error {
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

func (n *node) openBus(ctx context.Context) error {
	nc, err := n.connectNATS(ctx)
	if err != nil {
		return err
	}
	n.onClose(func() error { nc.Close(); return nil })
	openStore := store.Open
	if n.cfg.nats.others() {
		openStore = store.OpenShared
	}
	err = bus.Patiently(ctx, func() (err error) {
		if n.bus, err = bus.Open(ctx, nc, n.log); err != nil {
			return err
		}
		if err := n.bus.LimitLogs(ctx, time.Duration(n.cfg.keepLogs), int64(n.cfg.maxLogs)); err != nil {
			return err
		}
		n.store, err = openStore(ctx, n.bus.JetStream(), leaseTTL)
		return err
	})
	if err != nil {
		return err
	}
	if !n.cfg.nats.others() {
		n.bus.Reserve(n.cfg.data, diskReserve)
	}
	n.tokens = newTokenBook(&n.store.Tokens, n.log)
	n.keys.Stored = n.tokens.get
	if n.index, err = index.Open(filepath.Join(n.cfg.data, "index.db"), n.log); err != nil {
		return err
	}
	n.onClose(n.index.Close)
	return nil
}

func (n *node) openBuilder(ctx context.Context) error {
	// The own daemon gets its credentials when it starts, for as long as this process lives.
	token, err := n.keys.Mint(stagingAccess("build daemon", time.Now().AddDate(10, 0, 0)))
	if err != nil {
		return err
	}
	b, err := newBuilder(n.cfg, n.host, n.aliases, token, n.log)
	if err != nil {
		return err
	}
	n.builder = b
	n.onClose(b.close)
	return nil
}

// run runs the components until ctx ends. The worker stops first: while its runs finish, everything
// they need is still there.
func (n *node) run(ctx context.Context, ready func()) error {
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, gctx := errgroup.WithContext(inner)
	server := &http.Server{Handler: n.handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
	g.Go(func() error {
		if err := n.serveHTTP(server); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error { return n.keepClaim(gctx) })
	g.Go(func() error { trimMemory(gctx); return nil })
	g.Go(func() error { return n.builder.run(gctx) })
	g.Go(func() error { n.builder.sweep(gctx); return nil })
	g.Go(func() error { return n.index.Run(gctx, &n.store.Runs) })
	g.Go(func() error { return n.registry.Relay(gctx, n.relay) })
	g.Go(func() error { return n.registry.Maintain(gctx, tidyEvery, n.tidy) })
	g.Go(func() error { return n.decider.Run(gctx) })
	g.Go(func() error { return n.images.Run(gctx) })
	g.Go(func() error { return n.scheduler.Run(gctx) })
	g.Go(func() error { return n.retention().Run(gctx) })
	g.Go(func() error { return n.hooks.Run(gctx) })
	g.Go(func() error { return n.tokens.run(gctx) })
	g.Go(func() error { return n.intake.Run(gctx) })
	g.Go(func() error { return n.notifier.Run(gctx) })

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

// work executes runs until ctx ends and the runs in hand have.
func (n *node) work(ctx context.Context, ready func()) error {
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
	if err := n.announce(); err != nil {
		return err
	}
	defer func() { _ = os.Remove(filepath.Join(n.cfg.data, apiclient.ServerFile)) }()
	ready()
	return w.Run(ctx)
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

func (n *node) handler() http.Handler {
	mux := http.NewServeMux()
	serveRegistry(mux, n.registry, n.keys)
	mux.Handle("/api/", (&api.Server{
		Bus: n.bus, Store: n.store, Index: n.index, Keys: n.keys, Recipient: n.identity.Recipient(),
		Contexts:   &source.Handler{Contexts: n.contexts, Fault: contextFault, Log: n.log},
		HasContext: n.hasContext, Check: n.check, Status: n.status, Log: n.log,
		KeepRuns: time.Duration(n.cfg.keepRuns), Hooks: n.hookConfig(), TestTarget: n.notifier.Test,
		TokenDeleted: n.tokens.forget, Publisher: n.publisher, Reconcile: n.reconcile, Replay: n.replay, Waiting: n.waiting,
		Cache: n.builder.cache, PruneCache: n.builder.pruneCache, Registry: n.registry, Collect: n.collect, Purge: n.purge, Import: n.importImage,
	}).Handler())
	mux.Handle(webhook.Prefix, n.delivery)
	mux.HandleFunc("GET "+runPath+"{run}", n.showRun)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

func (n *node) check(r run.Run, secrets map[string]string) (taskspec.Warnings, error) {
	_, warnings, err := worker.Plan(r, n.planOptions(secrets))
	return warnings, err
}

// contextFault describes errors of the registry to who uploads a context.
func contextFault(err error) *apiclient.Error {
	if errors.Is(err, registry.ErrDiskFull) {
		return &apiclient.Error{Status: http.StatusInsufficientStorage, Code: apiclient.CodeDiskFull,
			Message: "the server's disk is full", Remedy: "free space on the disk of the server's data directory, then try again"}
	}
	return nil
}

func (n *node) openScheduler(context.Context) error {
	n.scheduler = &scheduler.Scheduler{Bus: n.bus, Store: n.store, Secrets: n.identity, LeaseTTL: leaseTTL, Log: n.log,
		Fence: n.registry, Active: n.index.Active, Token: n.mint, MaxRuns: n.cfg.maxRuns,
		Resolve: n.resolve, ResolveAll: len(n.cfg.steps.logins) > 0}
	return nil
}

// mint makes the token with which an attempt reads from the registry and stages its images. All
// attempts of an hour get the same one: a build daemon asks the client once for each set of credentials
// that it has lately seen for a host, so a token of each run's own would make every build slower than
// the one before. That of a restricted run reads what the run may and nothing else.
func (n *node) mint(r run.Run) (string, error) {
	p := stagingAccess("runs", time.Now().UTC().Add(r.Spec.Timeout+tokenLife).Truncate(time.Hour))
	if r.Spec.Restricted {
		p = restrictedAccess("restricted runs", worker.Readable(r.Spec, append([]string{n.host}, n.aliases...)...), p.Expires)
	}
	return n.keys.Mint(p)
}

func (n *node) worker(info buildkit.Info) (*worker.Worker, error) {
	identity, err := secret.NewIdentity()
	if err != nil {
		return nil, err
	}
	cache, err := source.NewCache(filepath.Join(n.cfg.data, "sources"), source.DefaultCacheSize)
	if err != nil {
		return nil, err
	}
	n.onClose(cache.Close)
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	open := (&sources{uploads: &source.Opener{Blobs: n.contexts.Blobs, Cache: cache}, mirrors: n.mirrors, archives: n.archives,
		allowed: n.allowed, keys: n.gitKeys(), registry: append([]string{n.host}, n.aliases...)}).open
	outside := n.outside()
	n.onClose(func() error { outside.CloseIdleConnections(); return nil })
	return n.equip(&worker.Worker{
		Bus: n.bus, Store: n.store, Solver: n.builder.client, Identity: identity,
		Publisher: n.registry, Resolver: n.registry, Open: open, MayFetch: n.allowed.mayFetch, Outside: outside,
		Name: name, Instance: strings.ToLower(rand.Text()), Pool: "default", Parallel: n.cfg.parallel, Steps: n.cfg.stepsAtOnce(), BuildKit: info.Version,
		Notice:   missingIsolation(info),
		Registry: n.host, Aliases: n.aliases, Insecure: n.cert == nil, Own: n.own(), LeaseTTL: leaseTTL, Grace: n.cfg.grace, Log: n.log,
		Version: version(), Builder: cmp.Or(n.cfg.publicURL, n.url),
	}), nil
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

func (n *node) status(ctx context.Context) apiclient.Status {
	return apiclient.Status{Version: version(), Started: n.started, Registry: n.host, DataDir: n.cfg.data,
		Checks: append(n.builder.checks(ctx), n.blobChecks(ctx)...)}
}
