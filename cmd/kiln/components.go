package main

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/scheduler"
)

// components are what this process runs for its roles, beside the worker. Those that one process is to run at a
// time run when it is this one's turn.
func (n *node) components() []func(context.Context) error {
	all := []func(context.Context) error{func(ctx context.Context) error { trimMemory(ctx); return nil }}
	add := func(list ...func(context.Context) error) { all = append(all, list...) }
	if n.builder != nil {
		add(n.builder.run, func(ctx context.Context) error { n.builder.sweep(ctx); return nil })
	}
	if n.onlyWorks() {
		return all
	}
	add(n.tokens.run, n.audit.Run, func(ctx context.Context) error { return n.index.Run(ctx, &n.store.Runs) })
	if n.registry != nil {
		add(n.keepClaim, n.answerPurges,
			func(ctx context.Context) error { return n.registry.Relay(ctx, n.relay) },
			func(ctx context.Context) error { return n.registry.Maintain(ctx, tidyEvery, n.tidy) })
	}
	if n.has(roleTriggers) {
		add(func(ctx context.Context) error { return n.alone(ctx, roleTriggers, n.decide) })
	}
	if n.has(roleScheduler) {
		add(func(ctx context.Context) error { return n.alone(ctx, roleScheduler, n.schedule) })
	}
	if n.has(roleAPI) {
		add(n.hooks.Run,
			func(ctx context.Context) error {
				return n.alone(ctx, "intake", func(ctx context.Context, _ *tenure) error { return n.intake.Run(ctx) })
			},
			func(ctx context.Context) error {
				return n.alone(ctx, "notify", func(ctx context.Context, _ *tenure) error { return n.notifier.Run(ctx) })
			})
	}
	return all
}

// decide decides what is due until ctx ends.
func (n *node) decide(ctx context.Context, t *tenure) error {
	decider := n.decider
	if t != nil { // what one term leaves in memory is no other's
		decider = n.newDecider(n.watcher())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return decider.Run(ctx) })
	g.Go(func() error { return decider.Images.Run(ctx) })
	if t != nil {
		n.answerAbout(ctx, g, decider)
	}
	return g.Wait()
}

// schedule executes decisions until ctx ends.
func (n *node) schedule(ctx context.Context, t *tenure) error {
	s := n.scheduler
	if t != nil {
		s = n.newScheduler(t)
	}
	g, ctx := errgroup.WithContext(ctx)
	n.acting.Store(s)
	defer n.acting.CompareAndSwap(s, nil)
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error { return n.retention().Run(ctx) })
	if t != nil {
		g.Go(func() error {
			return bus.Answer(ctx, n.bus, event.AskQueue, func(ctx context.Context, ids []string) ([]scheduler.Waiting, error) {
				return s.Queue(ctx, ids...)
			})
		})
	}
	return g.Wait()
}

func (n *node) openScheduler(context.Context) error {
	if n.has(roleScheduler) && !n.shared() {
		n.scheduler = n.newScheduler(nil)
	}
	return nil
}

func (n *node) newScheduler(t *tenure) *scheduler.Scheduler {
	return &scheduler.Scheduler{Bus: n.bus, Store: n.store, Secrets: n.identity, LeaseTTL: n.cfg.lease, Log: n.log,
		Fence: fence{n.far(), t}, Active: n.active(t), Tokens: n.mint, MaxRuns: n.cfg.maxRuns,
		Resolve: n.resolve, ResolveAll: len(n.cfg.steps.logins) > 0, Ended: n.metrics.Ended}
}

// A fence is moved only while no other scheduler can act: one that was stopped for a while would give up attempts
// that are well.
type fence struct {
	scheduler.Fence
	term *tenure
}

// RaiseFence implements scheduler.Fence.
func (f fence) RaiseFence(ctx context.Context, run string, attempt int) error {
	if err := f.term.check(); err != nil {
		return err
	}
	return f.Fence.RaiseFence(ctx, run, attempt)
}

// FinishRun implements scheduler.Fence.
func (f fence) FinishRun(ctx context.Context, run string) error {
	if err := f.term.check(); err != nil {
		return err
	}
	return f.Fence.FinishRun(ctx, run)
}

// active returns what lists the runs that have not ended. What another scheduler has stored last is included.
func (n *node) active(t *tenure) func(context.Context) ([]string, error) {
	if t == nil {
		return n.index.Active
	}
	return func(ctx context.Context) ([]string, error) {
		last, err := n.bus.LastSequence(ctx, "KV_"+store.BucketRuns, "$KV."+store.BucketRuns+".>")
		if err != nil {
			return nil, err
		}
		if err := n.index.Reach(ctx, last); err != nil {
			return nil, err
		}
		return n.index.Active(ctx)
	}
}

// mint makes what an attempt shows the registry. The token with which it reads and stages its images is the same
// for all attempts of an hour: a build daemon asks the client once for each set of credentials
// that it has lately seen for a host, so a token of each run's own would make every build slower than
// the one before. That of a restricted run, or one whose author is limited, reads what the run may and nothing else. Publishing over the network
// takes a token of the run's own.
func (n *node) mint(r run.Run, apart bool) (event.Tokens, error) {
	expires := time.Now().UTC().Add(r.Spec.Timeout + tokenLife).Truncate(time.Hour)
	p := runAccess(r.Spec, expires, append([]string{n.host}, n.aliases...)...)
	var t event.Tokens
	var err error
	if t.Registry, err = n.keys.Mint(p); err != nil || !apart {
		return t, err
	}
	t.Publish, err = n.keys.Mint(publishingAccess(r.ID, expires))
	return t, err
}
