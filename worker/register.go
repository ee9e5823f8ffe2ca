package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/internal/event"
	"kiln/internal/store"
)

const (
	maxHeartbeat  = 5 * time.Second // between two heartbeats
	healthTimeout = 3 * time.Second // for the build daemon to answer
	maxUnfit      = 200             // bytes of what is told of it
)

// ErrReplaced is returned by Run when another process works under the worker's name, because this one could not be
// heard for long.
var ErrReplaced = errors.New("another worker has its name")

// register tells who the worker is and whether it can take runs.
func (w *Worker) register(ctx context.Context) error {
	w.registering.Lock()
	defer w.registering.Unlock()
	unfit := w.examine(ctx)
	if unfit != w.unfit {
		w.Log.Warn("the build daemon's state has changed", "unfit", unfit)
	}
	w.unfit = unfit
	_, err := w.Store.Workers.Put(ctx, w.Instance, event.Worker{Name: w.Name, Instance: w.Instance, Pool: w.Pool,
		Parallel: w.Parallel, Platforms: w.Platforms, BuildKit: w.BuildKit, Address: w.Address, Version: w.Version,
		Recipient: w.Identity.Recipient(), Started: w.started, Host: w.Host, Unfit: unfit, Apart: w.Apart})
	if err == nil {
		now := time.Now()
		w.heard.Store(&now)
	}
	return err
}

// Heard returns when the worker was registered last, zero if it was not yet. Who is not heard of for LeaseTTL is lost.
func (w *Worker) Heard() time.Time {
	if at := w.heard.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// examine says why the build daemon can execute nothing, empty if it can.
func (w *Worker) examine(ctx context.Context) string {
	if w.Healthy == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	err := w.Healthy(ctx)
	if err == nil {
		return ""
	}
	return "cannot reach its build daemon: " + clip(oneLine(err.Error()), maxUnfit)
}

// heartbeat keeps the worker registered.
func (w *Worker) heartbeat(ctx context.Context) error {
	t := time.NewTicker(min(w.LeaseTTL/3, maxHeartbeat))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if time.Since(w.Heard()) > w.LeaseTTL {
			if err := w.unreplaced(ctx); errors.Is(err, ErrReplaced) {
				return err
			}
		}
		if err := w.register(ctx); err != nil && ctx.Err() == nil {
			w.Log.Warn("worker not registered, trying again", "err", err)
		}
	}
}

// unreplaced returns ErrReplaced if another process is registered under the worker's name.
func (w *Worker) unreplaced(ctx context.Context) error {
	var other string
	err := w.Store.Workers.List(ctx, func(e store.Entry[event.Worker]) bool {
		if e.Value.Name == w.Name && e.Value.Instance != w.Instance {
			other = e.Value.Host
		}
		return other == ""
	})
	if err == nil && other != "" {
		err = fmt.Errorf("worker %s: %w, on host %s; stop one of them, or give it another --name", w.Name, ErrReplaced, other)
	}
	return err
}

// withdraw takes the worker out of the scheduler's sight.
func (w *Worker) withdraw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := w.Store.Workers.Delete(ctx, w.Instance); err != nil {
		w.Log.Warn("worker not withdrawn, its registration will expire", "err", err)
	}
}
