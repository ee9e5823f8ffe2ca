package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/store"
	"kiln/internal/task"
)

// A Retention removes the runs that have ended long ago: their records, and what is left of their logs. It
// removes no run that has not ended, and no decision about a task that exists: what a task has acted on stays
// known. Decisions about tasks that are gone go as runs do.
type Retention struct {
	Bus   *bus.Bus
	Store *store.Store
	// Ended lists runs that have ended and were created before a time, oldest first, up to a limit.
	Ended func(ctx context.Context, created time.Time, limit int) ([]string, error)
	Keep  time.Duration // how long runs are kept after their end; 0 means for ever
	Log   *slog.Logger
}

const (
	retainEvery = time.Hour
	retainSoon  = time.Minute // if there is more to remove than one round takes
	retainRound = 10_000      // runs that are looked at in a row
	forgetEvery = 24 * time.Hour
)

// Run removes runs at once and then hourly, until ctx is done. It returns nil.
func (k *Retention) Run(ctx context.Context) error {
	if k.Keep == 0 {
		return nil
	}
	var forgot time.Time
	for {
		pause := retainEvery
		if time.Since(forgot) > forgetEvery {
			if err := k.forget(ctx, time.Now().Add(-k.Keep)); err != nil && ctx.Err() == nil {
				k.Log.Warn("decisions about tasks that are gone stay until the next round", "err", err)
			} else {
				forgot = time.Now()
			}
		}
		removed, more, err := k.round(ctx, time.Now().UTC().Add(-k.Keep))
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			k.Log.Warn("runs past retention stay until the next round", "err", err)
		case more && removed > 0:
			pause = retainSoon
		}
		if removed > 0 {
			k.Log.Info("runs past retention removed", "runs", removed)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// round removes runs that ended before limit; more says that there may be others. One that cannot be
// removed keeps no other.
func (k *Retention) round(ctx context.Context, limit time.Time) (removed int, more bool, err error) {
	ids, err := k.Ended(ctx, limit, retainRound)
	if err != nil {
		return 0, false, err
	}
	left := 0
	for _, id := range ids {
		if ctx.Err() != nil {
			return removed, false, ctx.Err()
		}
		gone, failed := k.remove(ctx, id, limit)
		switch {
		case failed != nil && err == nil:
			err = failed
			fallthrough
		case failed != nil:
			left++
		case gone:
			removed++
		}
	}
	if left > 1 {
		err = fmt.Errorf("%w, and %d others", err, left-1)
	}
	return removed, len(ids) == retainRound, err
}

// remove removes a run if it ended before limit. The log goes first: if the process ends in between, the
// record still leads to the run.
func (k *Retention) remove(ctx context.Context, id string, limit time.Time) (bool, error) {
	r, revision, err := k.Store.Runs.Get(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		// The index has missed the removal, and learns of it by another.
		return true, k.Store.Runs.Delete(ctx, id)
	}
	if err != nil {
		return false, err
	}
	if !r.State.Final() || r.Finished.IsZero() || !r.Finished.Before(limit) {
		return false, nil
	}
	if err := k.Bus.Purge(ctx, bus.StreamLogs, event.LogFilter(id)); err != nil {
		return false, err
	}
	if err := k.Store.Runs.Remove(ctx, id, revision); err != nil && !errors.Is(err, store.ErrConflict) {
		return false, err
	}
	return true, nil
}

// forget removes what was decided about tasks that are gone, if nothing was since limit.
func (k *Retention) forget(ctx context.Context, limit time.Time) error {
	subjects, err := k.Bus.Subjects(ctx, bus.StreamDecisions, event.DecisionFilter("*"))
	if err != nil {
		return err
	}
	gone := map[string]bool{}
	for subject := range subjects {
		gone[event.DecidedTask(subject)] = true
	}
	delete(gone, event.QuickTask) // each of these decisions ends by itself
	// Read after the decisions: of a task of which one is there, the record is there too.
	err = k.Store.Tasks.List(ctx, func(e store.Entry[task.Task]) bool {
		delete(gone, e.Value.UID)
		return ctx.Err() == nil
	})
	for uid := range gone {
		if err != nil {
			return err
		}
		var last time.Time
		switch last, err = k.Bus.LastTime(ctx, bus.StreamDecisions, event.DecisionFilter(uid)); {
		case errors.Is(err, bus.ErrNone):
			err = nil
		case err == nil && last.Before(limit):
			err = k.Bus.Purge(ctx, bus.StreamDecisions, event.DecisionFilter(uid))
		}
	}
	return err
}
