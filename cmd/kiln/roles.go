package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"kiln/internal/store"
)

// A role is a part of a server that a process may have.
type role = string

const (
	roleAPI       role = "api"       // the HTTP API, webhooks of forges and registries, notifications
	roleTriggers  role = "triggers"  // decides what is due; of several processes one does
	roleScheduler role = "scheduler" // executes decisions; of several processes one does
	roleRegistry  role = "registry"  // stores images; there is one
	roleWorker    role = "worker"    // executes runs
)

var allRoles = []role{roleAPI, roleTriggers, roleScheduler, roleRegistry, roleWorker}

// checkRoles reports what is wrong with the values of --role.
func checkRoles(list []role) error {
	for _, r := range list {
		if !slices.Contains(allRoles, r) {
			return fmt.Errorf("--role %q: want one or more of %s", r, strings.Join(allRoles, ","))
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("--role: want one or more of %s", strings.Join(allRoles, ","))
	}
	return nil
}

// has reports whether this process has a role.
func (n *node) has(r role) bool { return slices.Contains(n.cfg.roles, r) }

// A tenure is the time for which this process acts in a role that one process acts in at a time.
type tenure struct {
	mu  sync.Mutex
	end time.Time // when others may begin to act, unless it is prolonged
}

var errNotActing = errors.New("another process may act in this role by now")

// check returns errNotActing if another process may act in the role.
func (t *tenure) check() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !time.Now().Before(t.end) {
		return errNotActing
	}
	return nil
}

// prolong notes that a claim was stored that was sent at begun.
func (t *tenure) prolong(begun time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = begun.Add(store.LeaderTTL)
}

const (
	applyEvery   = 500 * time.Millisecond // for a role that another process has
	prolongEvery = store.LeaderTTL / 3
)

// alone has act called while no other process acts in a role, until ctx ends or act returns an error. JetStream
// chooses who does: the process whose key it has stored, which expires when nothing is heard of it. Where no other
// process can be there is no term.
func (n *node) alone(ctx context.Context, in role, act func(context.Context, *tenure) error) error {
	if !n.shared() {
		return act(ctx, nil)
	}
	again := time.NewTicker(applyEvery)
	defer again.Stop()
	for {
		begun := time.Now()
		rev, err := n.store.Leaders.Create(ctx, in, n.instance)
		if err == nil {
			n.log.Info("acts now", "role", in)
			t := &tenure{}
			t.prolong(begun)
			err = n.serveTerm(ctx, in, t, rev, act)
			if err != nil || ctx.Err() != nil {
				return err
			}
			n.log.Warn("acts no more, another process may", "role", in)
		} else if !errors.Is(err, store.ErrConflict) && ctx.Err() == nil {
			n.log.Warn("role not claimed, trying again", "role", in, "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
	}
}

// serveTerm acts until the term is over, which it returns nil for, or act has failed.
func (n *node) serveTerm(ctx context.Context, in role, t *tenure, rev uint64, act func(context.Context, *tenure) error) error {
	actx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- act(actx, t) }()
	every := time.NewTicker(prolongEvery)
	defer every.Stop()
	for {
		select {
		case err := <-ended:
			n.resign(ctx, in, rev)
			return err
		case <-every.C:
		}
		begun := time.Now()
		next, err := n.claimTerm(ctx, in, rev)
		switch {
		case err == nil:
			rev = next
			t.prolong(begun)
		case errors.Is(err, store.ErrConflict) || t.check() != nil:
			stop()
			return <-ended
		}
	}
}

// claimTerm says that this process still acts.
func (n *node) claimTerm(ctx context.Context, in role, rev uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), prolongEvery)
	defer cancel()
	return n.store.Leaders.Update(ctx, in, n.instance, rev)
}

// resign lets another process act at once.
func (n *node) resign(ctx context.Context, in role, rev uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), prolongEvery)
	defer cancel()
	if err := n.store.Leaders.Remove(ctx, in, rev); err != nil {
		n.log.Warn("role not given up, it expires", "role", in, "err", err)
	}
}
