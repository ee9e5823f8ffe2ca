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

// flush stores what has changed and then acts on it. What fails stays marked and is tried again.
func (s *Scheduler) flush(ctx context.Context) error {
	var errs []error
	for _, e := range s.core.runs {
		if !e.dirty && !e.send && !e.stop {
			continue
		}
		if err := s.flushRun(ctx, e); err != nil {
			errs = append(errs, fmt.Errorf("run %s: %w", e.run.ID, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Scheduler) flushRun(ctx context.Context, e *entry) error {
	g, gctx := errgroup.WithContext(ctx)
	if e.send {
		g.Go(func() error { return s.Fence.RaiseFence(gctx, e.run.ID, e.run.Attempt) })
	}
	if e.dirty {
		g.Go(func() error { return s.save(gctx, e) })
	}
	if err := g.Wait(); err != nil {
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
	}
	if e.stop {
		a := e.attempt()
		s.tellToStop(a.Instance, e.run.ID, a.N, "by "+e.run.CancelBy)
		e.stop = false
	}
	return nil
}

// save stores the record. A new run that is stored already was decided twice: the stored one holds.
func (s *Scheduler) save(ctx context.Context, e *entry) error {
	var err error
	if e.rev == 0 {
		e.rev, err = s.Store.Runs.Create(ctx, e.run.ID, e.run)
	} else {
		e.rev, err = s.update(ctx, e)
	}
	if errors.Is(err, store.ErrConflict) {
		stored, rev, getErr := s.Store.Runs.Get(ctx, e.run.ID)
		if getErr != nil {
			return getErr
		}
		s.Log.Warn("run is stored already, its stored state holds", "run", e.run.ID, "status", stored.State)
		s.core.replace(e, stored, rev, time.Now().Add(s.LeaseTTL))
		err = nil
	}
	if err != nil {
		return err
	}
	e.dirty = false
	s.Log.Info("run state stored", "run", e.run.ID, "status", e.run.State, "attempt", e.run.Attempt, "reason", e.run.Reason)
	return nil
}

func (s *Scheduler) update(ctx context.Context, e *entry) (uint64, error) {
	rev, err := s.Store.Runs.Update(ctx, e.run.ID, e.run, e.rev)
	if err != nil {
		return e.rev, err
	}
	return rev, nil
}

// dispatch sends the current attempt to its worker: a first lease, so that its silence is noticed,
// then the assignment.
func (s *Scheduler) dispatch(ctx context.Context, e *entry) error {
	a := e.attempt()
	m := s.core.workers[a.Instance]
	if m == nil { // it left meanwhile
		e.suspect = time.Now()
		return nil
	}
	as, err := s.assignment(e.run, m.Recipient)
	if err != nil {
		return err
	}
	lease := event.Lease{Attempt: a.N, Worker: a.Worker, Instance: a.Instance}
	if _, err := s.Store.Leases.Put(ctx, LeaseKey(e.run.ID, a.N), lease); err != nil {
		return err
	}
	id := LeaseKey(e.run.ID, a.N)
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
		if err := s.Store.Leases.Delete(ctx, LeaseKey(e.run.ID, a.N)); err != nil {
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
