package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/store"
	"kiln/triggers/decide"
)

func (s *Scheduler) onDecision(ctx context.Context) func(bus.Message) {
	return func(m bus.Message) {
		var d event.Decision
		if err := m.Decode(&d); err != nil {
			m.Settle(err)
			return
		}
		if d.Made.Kind != decide.Run || d.Run == nil {
			m.Settle(nil)
			return
		}
		runs := append([]string{d.Run.ID}, d.Made.Supersedes...)
		s.put(ctx, item{runs: runs, settle: m.Settle, apply: func(now time.Time) error {
			s.core.admit(*d.Run, now)
			for _, id := range d.Made.Supersedes {
				s.core.supersede(id, d.Run.ID, now)
			}
			return nil
		}})
	}
}

func (s *Scheduler) onReport(ctx context.Context) func(bus.Message) {
	return func(m bus.Message) {
		var rep event.Report
		if err := m.Decode(&rep); err != nil {
			m.Settle(err)
			return
		}
		s.put(ctx, item{runs: []string{rep.Run}, settle: m.Settle, apply: func(now time.Time) error {
			s.core.report(rep, now)
			return nil
		}})
	}
}

func (s *Scheduler) onCancel(ctx context.Context) func(bus.Message) {
	return wish(ctx, s, func(want event.CancelRequested) string { return want.Run },
		func(e *entry, want event.CancelRequested, now time.Time) { s.core.cancel(e, want.By, now) })
}

func (s *Scheduler) onApproval(ctx context.Context) func(bus.Message) {
	return wish(ctx, s, func(want event.RunApproved) string { return want.Run },
		func(e *entry, want event.RunApproved, _ time.Time) { s.core.approve(e, want.By) })
}

// wish handles events whose data T asks for something to be done about one run.
func wish[T any](ctx context.Context, s *Scheduler, about func(T) string, do func(*entry, T, time.Time)) func(bus.Message) {
	return func(m bus.Message) {
		var ev event.Event
		var want T
		err := m.Decode(&ev)
		if err == nil {
			err = decodeData(ev, &want)
		}
		if err != nil {
			m.Settle(err)
			return
		}
		id := about(want)
		s.put(ctx, item{runs: []string{id}, settle: m.Settle, apply: func(now time.Time) error {
			e := s.core.runs[id]
			if e == nil {
				return s.unknownRun(ctx, id, ev.Time, now)
			}
			do(e, want, now)
			return nil
		}})
	}
}

func decodeData(ev event.Event, v any) error {
	if err := json.Unmarshal(ev.Data, v); err != nil {
		return fmt.Errorf("%w: %s %s: %w", bus.ErrPoison, ev.Type, ev.ID, err)
	}
	return nil
}

// unknownRun decides what to do with a wish about a run that is not active: nothing if it has ended,
// wait a while if its decision may still be on the way.
func (s *Scheduler) unknownRun(ctx context.Context, id string, asked, now time.Time) error {
	if _, _, err := s.Store.Runs.Get(ctx, id); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if now.Sub(asked) > time.Minute {
		return fmt.Errorf("%w: no run %s", bus.ErrPoison, id)
	}
	return fmt.Errorf("run %s is not known yet", id)
}

func (s *Scheduler) watchWorkers(ctx context.Context) error {
	return s.Store.Workers.Watch(ctx, ">", func(e *store.Entry[event.Worker]) bool {
		switch {
		case e == nil:
		case e.Gone:
			s.observe(ctx, func(time.Time) { s.core.leave(e.Key) })
		default:
			s.observe(ctx, func(now time.Time) { s.core.join(e.Value, now) })
		}
		return true
	})
}

func (s *Scheduler) watchDrains(ctx context.Context) error {
	names := map[string]string{} // by key: what is gone tells no more
	return s.Store.Drains.Watch(ctx, ">", func(e *store.Entry[event.Drain]) bool {
		if e == nil {
			return true
		}
		name, drained := names[e.Key], !e.Gone
		if drained {
			name = e.Value.Worker
			names[e.Key] = name
		} else {
			delete(names, e.Key)
		}
		s.observe(ctx, func(time.Time) { s.core.drain(name, drained) })
		return true
	})
}

func (s *Scheduler) watchLeases(ctx context.Context) error {
	return s.Store.Leases.Watch(ctx, ">", func(e *store.Entry[event.Lease]) bool {
		if e == nil {
			return true
		}
		id, n, ok := splitLease(e.Key)
		switch {
		case !ok:
		case e.Gone:
			s.observe(ctx, func(now time.Time) { s.core.expire(id, n, now) })
		default:
			s.observe(ctx, func(time.Time) {
				if !s.core.lease(id, n) {
					s.tellToStop(e.Value.Instance, event.Control{Run: id, Attempt: n, Reason: "because the attempt was given up", Superseded: true})
				}
			})
		}
		return true
	})
}

func splitLease(key string) (runID string, attempt int, ok bool) {
	runID, rest, _ := strings.Cut(key, ".")
	attempt, err := strconv.Atoi(rest)
	return runID, attempt, err == nil
}
