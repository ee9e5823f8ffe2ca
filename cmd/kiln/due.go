package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/index"
	"kiln/internal/registry"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/triggers"
	alarms "kiln/triggers/clock"
	"kiln/triggers/watch"
)

// openDecider makes what decides which runs are due.
func (n *node) openDecider(context.Context) error {
	aliases := graph.Aliases{}
	for _, a := range n.aliases {
		if a != n.host {
			aliases[a] = n.host
		}
	}
	images, _ := n.cfg.steps.images() // validated
	n.logins = &logins{tasks: n.store.Tasks.List, secrets: n.secrets(), shared: n.registryLogins(), log: n.log}
	n.images = &watch.Watcher{Store: n.store, Bus: n.bus, Local: digests{n.registry}, Registry: n.host, Every: n.cfg.pollEvery, Log: n.log,
		Dial: n.forgeGuard().Dial, Login: n.logins.of}
	n.decider = &triggers.Decider{Bus: n.bus, Store: n.store, Mirrors: n.mirrors, Clock: &alarms.Clock{Bus: n.bus, Log: n.log},
		Images: n.images, Registry: n.host, Aliases: aliases, ImageAliases: images, Secret: n.secrets().Value, Keys: n.gitKeys(),
		Every: n.cfg.reconcileEvery, Log: n.log,
		ForgeHTTP: n.forgeGuard().Client(forgeTimeout), Forges: n.cfg.forgeHosts()}
	return nil
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
type digests struct{ store *registry.Store }

// Digest implements watch.Local.
func (d digests) Digest(ctx context.Context, repository, reference string) (string, error) {
	found, err := d.store.Resolve(ctx, repository, reference)
	if errors.Is(err, registry.ErrManifestUnknown) || errors.Is(err, registry.ErrRepositoryUnknown) {
		err = fmt.Errorf("%w: %w", watch.ErrNotFound, err)
	}
	return found.Digest, err
}

// reconcile looks at everything that tasks follow.
func (n *node) reconcile(ctx context.Context, dryRun bool) (apiclient.Reconciled, error) {
	r, err := n.decider.Reconcile(ctx, dryRun)
	return reconciled(r, dryRun), err
}

// replay handles a stored event again.
func (n *node) replay(ctx context.Context, seq uint64, dryRun bool) (apiclient.Reconciled, error) {
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
	list, err := n.scheduler.Queue(ctx, ids...)
	reasons := make(map[string]string, len(list))
	for _, w := range list {
		reasons[w.Run] = w.Reason
	}
	return reasons, err
}
