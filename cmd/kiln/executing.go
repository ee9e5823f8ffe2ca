package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/apiclient"
	"kiln/internal/buildkit"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/internal/source"
	"kiln/worker"
)

func (n *node) openBuilder(context.Context) error {
	if !n.has(roleWorker) {
		return nil
	}
	token := ""
	if n.keys != nil {
		// The own daemon gets its credentials when it starts, for as long as this process lives.
		var err error
		if token, err = n.keys.Mint(stagingAccess("build daemon", time.Now().AddDate(10, 0, 0))); err != nil {
			return err
		}
	}
	b, err := newBuilder(n.cfg, n.daemonRegistry(token), n.log)
	if err != nil {
		return err
	}
	n.builder = b
	n.onClose(b.close)
	return nil
}

// worker makes the component that executes runs.
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
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	n.cfg.name = cmp.Or(n.cfg.name, n.workerName(host))
	open := (&sources{uploads: n.uploads(cache), mirrors: n.mirrors, archives: n.archives,
		allowed: n.allowed, keys: n.gitKeys(), registry: append([]string{n.host}, n.aliases...)}).open
	outside := n.outside()
	n.onClose(func() error { outside.CloseIdleConnections(); return nil })
	attempts := n.attemptsAt()
	w := &worker.Worker{
		Bus: n.bus, Store: n.store, Solver: n.builder.client, Identity: identity,
		Publisher: attempts, Resolver: attempts, Open: open, MayFetch: n.allowed.mayFetch, Outside: outside,
		Name: n.cfg.name, Host: host, Instance: strings.ToLower(rand.Text()), Pool: n.cfg.pool,
		Parallel: n.cfg.parallel, Steps: n.cfg.stepsAtOnce(), BuildKit: info.Version, Platforms: info.Platforms,
		Address: n.cfg.buildkit, Apart: n.registry == nil, Healthy: n.builder.healthy, Notice: missingIsolation(info),
		Registry: n.host, RegistryAt: n.registryAt, Aliases: n.aliases, Insecure: n.insecure, Own: n.own(),
		LeaseTTL: n.store.LeaseTTL, Grace: n.cfg.grace, Log: n.log,
		Version: version(), Builder: cmp.Or(n.cfg.publicURL, n.url, baseURL(n.host)),
	}
	return n.equip(w), nil
}

// workerName is what a worker without --name is called: as its host, with what tells several there apart.
func (n *node) workerName(host string) string {
	if !n.shared() {
		return host
	}
	return host + "-" + event.Hash(n.cfg.data)[:4]
}

// uploads opens uploaded contexts: where they are in another process, with the token of the attempt.
func (n *node) uploads(cache *source.Cache) func(token string) *source.Opener {
	if n.registry != nil {
		o := &source.Opener{Blobs: n.contexts.Blobs, Cache: cache}
		return func(string) *source.Opener { return o }
	}
	client := n.registryHTTP()
	return func(token string) *source.Opener {
		return &source.Opener{Blobs: source.Remote{BaseURL: baseURL(n.host), Token: token, Client: client}, Cache: cache}
	}
}

// execute executes runs until ctx ends and those in hand have, and answers questions about the build cache.
func (n *node) execute(ctx context.Context, w *worker.Worker) error {
	asked, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	g.Go(func() error { defer stop(); return w.Run(ctx) })
	if n.shared() {
		g.Go(func() error { return bus.Answer(asked, n.bus, event.AskCache(w.Instance), n.builder.cache) })
		g.Go(func() error { return bus.Answer(asked, n.bus, event.AskPruneCache(w.Instance), n.builder.pruneCache) })
	}
	return g.Wait()
}

// A purgeAsk is the wish of a run to purge.
type purgeAsk struct {
	Run   string          `json:"run"`
	Purge apiclient.Purge `json:"purge"`
}

// answerPurges purges for the runs of workers in other processes.
func (n *node) answerPurges(ctx context.Context) error {
	if !n.shared() {
		<-ctx.Done()
		return nil
	}
	return bus.Answer(ctx, n.bus, event.AskPurge, func(ctx context.Context, ask purgeAsk) (apiclient.Purged, error) {
		r, _, err := n.store.Runs.Get(ctx, ask.Run)
		if err != nil {
			return apiclient.Purged{}, err
		}
		return n.purgeFor(ctx, r, ask.Purge)
	})
}
