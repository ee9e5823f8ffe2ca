package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// flush stores what has changed and then acts on it. It returns what failed, by run; that stays marked
// and is tried again.
func (s *Scheduler) flush(ctx context.Context) map[string]error {
	failed := map[string]error{}
	for id, e := range s.core.runs {
		if !e.dirty && !e.send && !e.stop {
			continue
		}
		if err := s.flushRun(ctx, e); err != nil {
			failed[id] = fmt.Errorf("run %s: %w", id, err)
		}
	}
	return failed
}

func (s *Scheduler) flushRun(ctx context.Context, e *entry) error {
	if err := s.persist(ctx, e); err != nil {
		return err
	}
	switch {
	case e.run.State.Final():
		return s.cleanUp(ctx, e)
	case e.send:
		if err := s.dispatch(ctx, e); err != nil {
			return err
		}
		e.send = false
		if e.dirty { // it cannot be dispatched and has ended
			return s.flushRun(ctx, e)
		}
	}
	if e.stop {
		a := e.attempt()
		s.tellToStop(a.Instance, e.run.ID, a.N, "by "+e.run.CancelBy)
		e.stop = false
	}
	return nil
}

// persist stores the record and, for an attempt that is to be sent, raises the fence; both at once.
func (s *Scheduler) persist(ctx context.Context, e *entry) error {
	id, attempt := e.run.ID, e.run.Attempt
	var g errgroup.Group
	if e.send {
		g.Go(func() error { return s.Fence.RaiseFence(ctx, id, attempt) })
	}
	var saved error
	if e.dirty {
		saved = s.save(ctx, e)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if errors.Is(saved, store.ErrConflict) {
		saved = s.reload(ctx, e)
	}
	if saved != nil {
		return saved
	}
	e.dirty = false
	return nil
}

// save stores the record; store.ErrConflict means that the stored one is another.
func (s *Scheduler) save(ctx context.Context, e *entry) error {
	write := func() (uint64, error) { return s.Store.Runs.Update(ctx, e.run.ID, e.run, e.rev) }
	if e.rev == 0 {
		write = func() (uint64, error) { return s.Store.Runs.Create(ctx, e.run.ID, e.run) }
	}
	rev, err := write()
	if err != nil {
		return err
	}
	e.rev = rev
	s.Log.Info("run state stored", "run", e.run.ID, "status", e.run.State, "attempt", e.run.Attempt, "reason", e.run.Reason)
	return nil
}

// reload gives way to the stored record of a run that was decided twice.
func (s *Scheduler) reload(ctx context.Context, e *entry) error {
	stored, rev, err := s.Store.Runs.Get(ctx, e.run.ID)
	if err != nil {
		return err
	}
	s.Log.Warn("run is stored already, its stored state holds", "run", e.run.ID, "status", stored.State)
	s.core.replace(e, stored, rev, time.Now().Add(s.LeaseTTL))
	return nil
}

// dispatch sends the current attempt to its worker: a first lease, so that its silence is noticed,
// then the assignment. A run that cannot be assigned at all ends.
func (s *Scheduler) dispatch(ctx context.Context, e *entry) error {
	a := e.attempt()
	m := s.core.workers[a.Instance]
	if m == nil { // it left meanwhile
		e.suspect = time.Now()
		return nil
	}
	as, err := s.assignment(e.run, m.Recipient)
	if err != nil {
		s.core.finish(e, run.Error, "cannot be given to a worker: "+err.Error(), time.Now().UTC())
		return nil
	}
	lease := event.Lease{Attempt: a.N, Worker: a.Worker, Instance: a.Instance}
	if _, err := s.Store.Leases.Put(ctx, event.LeaseKey(e.run.ID, a.N), lease); err != nil {
		return err
	}
	id := event.LeaseKey(e.run.ID, a.N)
	if _, err := s.Bus.Publish(ctx, event.WorkSubject(a.Instance), id, as); err != nil {
		return err
	}
	return nil
}

// assignment seals what the worker alone may read to its key.
func (s *Scheduler) assignment(r run.Run, recipient string) (event.Assignment, error) {
	as := event.Assignment{Run: r}
	token, err := s.Token(r)
	if err != nil {
		return as, err
	}
	if as.Token, err = s.sealed.seal(recipient, token); err != nil {
		return as, err
	}
	if len(r.Spec.Secrets) == 0 {
		return as, nil
	}
	var values map[string]string
	if err := s.Secrets.Open(r.Spec.Secrets, &values); err != nil {
		return as, fmt.Errorf("secrets: %w", err)
	}
	as.Run.Spec.Secrets = nil
	as.Secrets, err = secret.Seal(recipient, values)
	return as, err
}

// A sealedToken remembers the last token that was sealed: it is the same for many runs.
type sealedToken struct {
	recipient, token string
	sealed           []byte
}

func (t *sealedToken) seal(recipient, token string) ([]byte, error) {
	if t.sealed != nil && t.recipient == recipient && t.token == token {
		return t.sealed, nil
	}
	sealed, err := secret.Seal(recipient, token)
	if err == nil {
		*t = sealedToken{recipient, token, sealed}
	}
	return sealed, err
}

// cleanUp forgets a run whose end is stored.
func (s *Scheduler) cleanUp(ctx context.Context, e *entry) error {
	e.send, e.stop = false, false
	if err := s.Fence.FinishRun(ctx, e.run.ID); err != nil {
		e.dirty = true // comes back here at the next flush
		return err
	}
	for _, a := range e.run.Attempts {
		if err := s.Store.Leases.Delete(ctx, event.LeaseKey(e.run.ID, a.N)); err != nil {
			s.Log.Warn("lease not removed, it will expire", "run", e.run.ID, "attempt", a.N, "err", err)
		}
	}
	delete(s.core.runs, e.run.ID)
	return nil
}

// tellToStop signals a worker; the signal may be lost, so the loop repeats it.
func (s *Scheduler) tellToStop(instance, runID string, attempt int, reason string) {
	if err := s.Bus.Signal(event.ControlSubject(instance), event.Control{Run: runID, Attempt: attempt, Reason: reason}); err != nil {
		s.Log.Warn("worker not told to stop", "run", runID, "attempt", attempt, "err", err)
	}
}

func decodeData(ev event.Event, v any) error {
	if err := json.Unmarshal(ev.Data, v); err != nil {
		return fmt.Errorf("%w: %s %s: %w", bus.ErrPoison, ev.Type, ev.ID, err)
	}
	return nil
}
