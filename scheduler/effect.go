package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
)

const (
	// maxEffects is how many records are stored at once. Assignments are not counted: they come first.
	maxEffects = 256
	// storeTimeout bounds how long a record's acknowledgement is waited for.
	storeTimeout = 30 * time.Second
)

// An effect is what is to be done about one state of a run: store it, then act on it. A run has one at
// a time, and they are executed beside the loop, so that none has to wait for another.
type effect struct {
	entry   *entry // the loop's; not touched here
	run     run.Run
	rev     uint64
	store   bool
	send    bool
	stop    bool
	to      event.Worker // the attempt's
	settles []func(error)
}

// A result is what became of an effect.
type result struct {
	effect
	stored   bool     // the record is; rev is its revision
	sent     bool     // the assignment is
	replaced *run.Run // the stored record, of revision rev, which holds instead
	refused  bool     // a change of a record was not stored: the record had changed already
	ended    error    // why the run cannot be given to any worker
	err      error
}

// act starts effects: those of assignments, and of the others as many as may be under way.
func (s *Scheduler) act(ctx context.Context) {
	c := s.core
	for _, e := range c.urgent {
		e.inUrgent = false
		s.start(ctx, e)
	}
	clear(c.urgent)
	c.urgent = c.urgent[:0]
	n := 0
	for n < len(c.changed) && s.effects < maxEffects {
		e := c.changed[n]
		c.changed[n] = nil
		n++
		e.inChanged = false
		s.start(ctx, e)
	}
	if c.changed = c.changed[n:]; len(c.changed) == 0 {
		c.changed = nil
	}
}

// start executes what is to be done about an entry.
func (s *Scheduler) start(ctx context.Context, e *entry) {
	if e.busy || !e.pending() {
		return
	}
	f := effect{entry: e, run: snapshot(e.run), rev: e.rev, store: e.dirty, send: e.send, stop: e.stop, settles: e.settles}
	if e.send {
		m := s.core.workers[e.attempt().Instance]
		if m == nil { // it left meanwhile
			f.send, e.suspect = false, time.Now()
		} else {
			f.to = m.Worker
		}
	}
	e.dirty, e.send, e.stop, e.settles, e.busy = false, false, false, nil, true
	s.effects++
	s.running.Go(func() {
		r := s.execute(ctx, f)
		select {
		case s.results <- r:
		case <-ctx.Done():
		}
	})
}

// snapshot copies what the loop may change of a record.
func snapshot(r run.Run) run.Run {
	r.Attempts, r.Steps = slices.Clone(r.Attempts), slices.Clone(r.Steps)
	r.Images, r.Bases = slices.Clone(r.Images), slices.Clone(r.Bases)
	return r
}

// execute stores the record and then does what follows from it.
func (s *Scheduler) execute(ctx context.Context, f effect) result {
	r := result{effect: f}
	r.err = s.persist(ctx, &r)
	if r.err != nil || r.replaced != nil {
		return r
	}
	switch {
	case f.run.State.Final():
		r.err = s.cleanUp(ctx, f.run)
	case f.send:
		r.ended, r.err = s.dispatch(ctx, f.run, f.to)
		r.sent = r.err == nil
	}
	if f.stop && !f.run.State.Final() {
		a := f.run.Attempts[len(f.run.Attempts)-1]
		s.tellToStop(a.Instance, event.Control{Run: f.run.ID, Attempt: a.N, Reason: "by " + f.run.CancelBy})
	}
	return r
}

// persist stores the record and, for an attempt that is to be sent, raises the fence; both at once.
func (s *Scheduler) persist(ctx context.Context, r *result) error {
	var g errgroup.Group
	if r.send {
		id, attempt := r.run.ID, r.run.Attempt
		g.Go(func() error { return s.Fence.RaiseFence(ctx, id, attempt) })
	}
	var saved error
	if r.store {
		saved = s.save(ctx, r)
	}
	err := g.Wait()
	if errors.Is(saved, store.ErrConflict) {
		return s.reload(ctx, r)
	}
	return errors.Join(saved, err)
}

// save stores the record; store.ErrConflict means that the stored one is another.
func (s *Scheduler) save(ctx context.Context, r *result) error {
	ack, err := s.Bus.ReplaceAsync(runSubject+r.run.ID, r.rev, r.run)
	if err != nil {
		return err
	}
	timeout := time.NewTimer(storeTimeout)
	defer timeout.Stop()
	select {
	case ok := <-ack.Ok():
		r.rev, r.stored = ok.Sequence, true
		s.Log.Info("run state stored", "run", r.run.ID, "attempt", r.run.Attempt, "task", r.run.Task, "event", r.run.Cause.Event, "status", r.run.State, "reason", r.run.Reason)
		if s.Ended != nil && r.run.State.Final() {
			s.Ended(r.run)
		}
		return nil
	case err := <-ack.Err():
		if err = bus.MapError(err); errors.Is(err, bus.ErrConflict) {
			return store.ErrConflict
		}
		return fmt.Errorf("record: %w", err)
	case <-timeout.C:
		return fmt.Errorf("record: not acknowledged within %s", storeTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// reload reads the stored record of a run that was decided twice, which holds.
func (s *Scheduler) reload(ctx context.Context, r *result) error {
	stored, rev, err := s.Store.Runs.Get(ctx, r.run.ID)
	if errors.Is(err, store.ErrNotFound) { // its time was over, and it was removed
		stored, rev, err = r.run, 0, nil
		stored.State = run.Canceled
	}
	if err != nil {
		return err
	}
	s.Log.Warn("run is stored already, its stored state holds", "run", r.run.ID, "attempt", stored.Attempt, "task", stored.Task, "status", stored.State)
	r.replaced, r.refused, r.rev = &stored, r.rev > 0, rev
	return nil
}

// conclude takes note of what became of an effect.
func (s *Scheduler) conclude(r result, now time.Time) {
	e := r.entry
	e.busy = false
	s.effects--
	if r.stored {
		e.rev = r.rev
	}
	err := r.err
	switch {
	case r.replaced != nil:
		if r.refused {
			err = fmt.Errorf("run %s: %w", r.run.ID, store.ErrConflict)
		}
		s.core.replace(e, *r.replaced, r.rev, now.Add(s.LeaseTTL))
	case r.err != nil:
		e.dirty = e.dirty || r.store && !r.stored
		e.send = e.send || r.send && !r.sent && e.assigned() && e.run.Attempt == r.run.Attempt
		s.failed = append(s.failed, e)
		err = fmt.Errorf("run %s: %w", r.run.ID, r.err)
		s.Log.Error("run state not stored, trying again", "run", r.run.ID, "attempt", r.run.Attempt, "task", r.run.Task, "err", r.err)
	case r.run.State.Final():
		delete(s.core.runs, r.run.ID)
	case r.ended != nil && e.run.Attempt == r.run.Attempt:
		s.core.finish(e, run.Error, "cannot be given to a worker: "+r.ended.Error(), now)
	}
	for _, settle := range r.settles {
		settle(err)
	}
	if r.err == nil && e.pending() && s.core.runs[r.run.ID] == e {
		s.core.mark(e)
		return
	}
	settles := e.settles
	e.settles = nil
	for _, settle := range settles {
		settle(err)
	}
}

// retry has another try at what has failed.
func (s *Scheduler) retry() {
	for _, e := range s.failed {
		s.core.mark(e)
	}
	s.failed = nil
}

// cleanUp forgets a run whose end is stored. One that was never given to a worker has left nothing.
func (s *Scheduler) cleanUp(ctx context.Context, r run.Run) error {
	if len(r.Attempts) == 0 {
		return nil
	}
	pause(ctx, yieldFor)
	if err := s.Fence.FinishRun(ctx, r.ID); err != nil {
		return err
	}
	for _, a := range r.Attempts {
		if err := s.Store.Leases.Delete(ctx, event.LeaseKey(r.ID, a.N)); err != nil {
			s.Log.Warn("lease not removed, it will expire", "run", r.ID, "attempt", a.N, "err", err)
		}
	}
	return nil
}

// tellToStop signals a worker; the signal may be lost, so the loop repeats it.
func (s *Scheduler) tellToStop(instance string, c event.Control) {
	if err := s.Bus.Signal(event.ControlSubject(instance), c); err != nil {
		s.Log.Warn("worker not told to stop", "run", c.Run, "attempt", c.Attempt, "err", err)
	}
}
