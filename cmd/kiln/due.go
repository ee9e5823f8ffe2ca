package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/index"
	"kiln/internal/registry"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/scheduler"
	"kiln/triggers"
	alarms "kiln/triggers/clock"
	"kiln/triggers/watch"
)

// openDecider makes what decides which runs are due, unless it is made for each term, and the logins that it and
// others use.
func (n *node) openDecider(context.Context) error {
	if n.onlyWorks() {
		return nil
	}
	n.logins = &logins{tasks: n.store.Tasks.List, secrets: n.secrets(), shared: n.registryLogins(), log: n.log}
	if n.has(roleTriggers) && !n.shared() {
		n.decider = n.newDecider(n.watcher())
	}
	return nil
}

// watcher makes what looks at images.
func (n *node) watcher() *watch.Watcher {
	return &watch.Watcher{Store: n.store, Bus: n.bus, Local: digests{n.far()}, Registry: n.host, Every: n.cfg.pollEvery, Log: n.log,
		Dial: n.forgeGuard().Dial, Login: n.logins.of}
}

// newDecider makes what decides which runs are due.
func (n *node) newDecider(looks *watch.Watcher) *triggers.Decider {
	aliases := graph.Aliases{}
	for _, a := range n.aliases {
		if a != n.host {
			aliases[a] = n.host
		}
	}
	images, _ := n.cfg.steps.images() // validated
	return &triggers.Decider{Bus: n.bus, Store: n.store, Mirrors: n.mirrors, Clock: &alarms.Clock{Bus: n.bus, Log: n.log},
		Images: looks, Registry: n.host, Aliases: aliases, ImageAliases: images, Secret: n.secrets().Value, Keys: n.gitKeys(),
		Every: n.cfg.reconcileEvery, Decided: n.metrics.Decided, Log: n.log,
		ForgeHTTP: n.forgeGuard().Client(forgeTimeout), Forges: n.cfg.forgeHosts()}
}

// secrets are the secrets that have a name.
func (n *node) secrets() secret.Named {
	return secret.Named{Identity: n.identity, Record: func(ctx context.Context, name string) (event.Secret, error) {
		s, _, err := n.store.Secrets.Get(ctx, event.Hash(name))
		if errors.Is(err, store.ErrNotFound) {
			return s, secret.ErrUnknown
		}
		return s, err
	}}
}

// digests resolves images of the co-located registry.
type digests struct {
	registry interface {
		Resolve(ctx context.Context, repository, reference string) (registry.Descriptor, error)
	}
}

// Digest implements watch.Local.
func (d digests) Digest(ctx context.Context, repository, reference string) (string, error) {
	found, err := d.registry.Resolve(ctx, repository, reference)
	if errors.Is(err, registry.ErrManifestUnknown) || errors.Is(err, registry.ErrRepositoryUnknown) {
		err = fmt.Errorf("%w: %w", watch.ErrNotFound, err)
	}
	return found.Digest, err
}

// reconcile looks at everything that tasks follow.
func (n *node) reconcile(ctx context.Context, dryRun bool) (apiclient.Reconciled, error) {
	if n.decider == nil {
		return bus.Ask[apiclient.Reconciled](ctx, n.bus, event.AskReconcile, replayAsk{DryRun: dryRun})
	}
	r, err := n.decider.Reconcile(ctx, dryRun)
	return reconciled(r, dryRun), err
}

// replay handles a stored event again.
func (n *node) replay(ctx context.Context, seq uint64, dryRun bool) (apiclient.Reconciled, error) {
	if n.decider == nil {
		return bus.Ask[apiclient.Reconciled](ctx, n.bus, event.AskReplay, replayAsk{seq, dryRun})
	}
	r, err := n.decider.Replay(ctx, seq, dryRun)
	return reconciled(r, dryRun), err
}

func reconciled(r triggers.Report, dryRun bool) apiclient.Reconciled {
	out := apiclient.Reconciled{DryRun: dryRun, Looked: r.Looked, Due: []apiclient.Found{}, Problems: r.Problems}
	for _, f := range r.Found {
		out.Due = append(out.Due, apiclient.Found(f))
	}
	return out
}

// publisher returns the ID of the last run that published an image.
func (n *node) publisher(ctx context.Context, reference string) (string, error) {
	for _, alias := range append([]string{n.host}, n.aliases...) {
		reference = strings.TrimPrefix(reference, alias+"/")
	}
	runs, err := n.index.List(ctx, index.Query{Image: reference, Limit: 1})
	if err != nil {
		return "", err
	}
	if len(runs) == 0 {
		return "", &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: fmt.Sprintf("no run is known that has published %q", reference), Remedy: "name it as REPOSITORY:TAG or REPOSITORY@DIGEST; list runs with `kiln runs`"}
	}
	return runs[0].ID, nil
}

// waiting says what queued runs wait for.
func (n *node) waiting(ctx context.Context, ids ...string) (map[string]string, error) {
	var list []scheduler.Waiting
	var err error
	if n.scheduler != nil {
		list, err = n.scheduler.Queue(ctx, ids...)
	} else {
		list, err = n.askQueue(ctx, ids)
	}
	reasons := make(map[string]string, len(list))
	for _, w := range list {
		reasons[w.Run] = w.Reason
	}
	return reasons, err
}

// askWithin bounds how long a list waits for what only another process knows.
const askWithin = 2 * time.Second

// askQueue asks the process that schedules. If none does, that is what the runs wait for.
func (n *node) askQueue(ctx context.Context, ids []string) ([]scheduler.Waiting, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	list, err := bus.Ask[[]scheduler.Waiting](ctx, n.bus, event.AskQueue, ids)
	if errors.Is(err, bus.ErrNobody) || errors.Is(err, context.DeadlineExceeded) {
		for _, id := range ids {
			list = append(list, scheduler.Waiting{Run: id, Reason: "waiting: no process schedules runs at the moment"})
		}
		err = nil
	}
	return list, err
}

// A replayAsk is a question to the process that decides.
type replayAsk struct {
	Seq    uint64 `json:"seq"`
	DryRun bool   `json:"dryRun"`
}

// answerAbout answers what other processes ask of the one that decides.
func (n *node) answerAbout(ctx context.Context, g *errgroup.Group, d *triggers.Decider) {
	g.Go(func() error {
		return bus.Answer(ctx, n.bus, event.AskReconcile, func(ctx context.Context, q replayAsk) (apiclient.Reconciled, error) {
			r, err := d.Reconcile(ctx, q.DryRun)
			return reconciled(r, q.DryRun), err
		})
	})
	g.Go(func() error {
		return bus.Answer(ctx, n.bus, event.AskReplay, func(ctx context.Context, q replayAsk) (apiclient.Reconciled, error) {
			r, err := d.Replay(ctx, q.Seq, q.DryRun)
			return reconciled(r, q.DryRun), err
		})
	})
	g.Go(func() error {
		return bus.Answer(ctx, n.bus, event.AskFollowed, func(ctx context.Context, _ struct{}) ([]graph.Name, error) { return d.Followed(ctx) })
	})
}

// followed returns the names of the images that tasks are built on.
func (n *node) followed(ctx context.Context) ([]graph.Name, error) {
	if n.decider != nil {
		return n.decider.Followed(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, forgeTimeout)
	defer cancel()
	names, err := bus.Ask[[]graph.Name](ctx, n.bus, event.AskFollowed, struct{}{})
	if errors.Is(err, bus.ErrNobody) {
		err = errors.New("what tasks are built on is not known: no process with the role triggers answers")
	}
	return names, err
}
