// Package scheduler executes decisions: it queues runs, assigns them to workers and owns their state.
//
// A decision becomes one run, however often it is delivered: the run's ID is part of the decision.
// The scheduler is the only writer of a run's record. It stores every change before it acts on it, and
// acknowledges a message only when its effect is stored, so it may be killed at any moment and resumes
// from JetStream. Before it hands an attempt to a worker it raises the run's fence in the registry:
// whatever an older attempt still does, it can publish nothing.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/triggers/decide"
)

// A Fence keeps older attempts of a run from publishing.
type Fence interface {
	// RaiseFence durably refuses publications of attempts below attempt.
	RaiseFence(ctx context.Context, run string, attempt int) error
	// FinishRun refuses every further publication of the run and forgets it.
	FinishRun(ctx context.Context, run string) error
}

// A Scheduler turns decisions into runs. Its fields are set before Run is called and not changed after.
type Scheduler struct {
	Bus     *bus.Bus
	Store   *store.Store
	Fence   Fence
	Secrets secret.Identity // opens the secrets of requests
	// Token mints the registry token of the run's current attempt.
	Token func(run.Run) (string, error)
	// Active lists the runs that were not final when the process started.
	Active   func(context.Context) ([]string, error)
	LeaseTTL time.Duration
	Log      *slog.Logger

	core   *core
	inbox  chan item
	sealed sealedToken
}

// An item is one fact for the loop: apply changes the core, settle is called once the change of the run
// is stored.
type item struct {
	run    string // empty if it is about none
	apply  func(now time.Time) error
	settle func(error)
}

// maxBatch is how many facts are applied before their effects are stored.
const maxBatch = 256

// Run schedules until ctx is done. It returns nil then, and an error only if it could not start.
func (s *Scheduler) Run(ctx context.Context) error {
	s.core, s.inbox = newCore(), make(chan item, maxBatch)
	if err := s.resume(ctx); err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.loop(ctx) })
	g.Go(func() error { return s.watchLeases(ctx) })
	g.Go(func() error { return s.watchWorkers(ctx) })
	g.Go(func() error {
		return s.Bus.Consume(ctx, bus.Consumer{Stream: bus.StreamDecisions, Name: "scheduler", Filter: event.SubjectDecisions}, s.onDecision(ctx))
	})
	g.Go(func() error {
		return s.Bus.Consume(ctx, bus.Consumer{Stream: bus.StreamReports, Name: "scheduler", Filter: event.SubjectReports}, s.onReport(ctx))
	})
	g.Go(func() error {
		return s.Bus.Consume(ctx, bus.Consumer{Stream: bus.StreamEvents, Name: "scheduler", Filter: event.CancelFilter}, s.onCancel(ctx))
	})
	return g.Wait()
}

// resume reads the runs that have not ended. An attempt under way has a lease time to show itself.
func (s *Scheduler) resume(ctx context.Context) error {
	ids, err := s.Active(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		r, rev, err := s.Store.Runs.Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if !r.State.Final() {
			s.core.adopt(r, rev, time.Now().Add(s.LeaseTTL))
		}
	}
	return nil
}

// loop applies facts and stores their effects, one batch after the other.
func (s *Scheduler) loop(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var batch []item
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.core.tick(time.Now())
		case it := <-s.inbox:
			batch = s.drain(it)
		}
		now, errs := time.Now().UTC(), make([]error, len(batch))
		for i, it := range batch {
			errs[i] = it.apply(now)
		}
		s.core.assign(now)
		failed := s.flush(ctx)
		for _, err := range failed {
			if ctx.Err() == nil {
				s.Log.Error("run state not stored, trying again", "err", err)
			}
		}
		for i, it := range batch {
			it.settle(errors.Join(errs[i], failed[it.run]))
		}
	}
}

func (s *Scheduler) drain(first item) []item {
	batch := []item{first}
	for len(batch) < maxBatch {
		select {
		case it := <-s.inbox:
			batch = append(batch, it)
		default:
			return batch
		}
	}
	return batch
}

// put hands a fact to the loop.
func (s *Scheduler) put(ctx context.Context, it item) {
	select {
	case s.inbox <- it:
	case <-ctx.Done():
	}
}

// observe hands over a fact that needs no settling.
func (s *Scheduler) observe(ctx context.Context, apply func(now time.Time)) {
	s.put(ctx, item{apply: func(now time.Time) error { apply(now); return nil }, settle: func(error) {}})
}

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
		s.put(ctx, item{run: d.Run.ID, settle: m.Settle, apply: func(now time.Time) error {
			s.core.admit(*d.Run, now)
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
		s.put(ctx, item{run: rep.Run, settle: m.Settle, apply: func(now time.Time) error {
			s.core.report(rep, now)
			return nil
		}})
	}
}

func (s *Scheduler) onCancel(ctx context.Context) func(bus.Message) {
	return func(m bus.Message) {
		var ev event.Event
		var want event.CancelRequested
		err := m.Decode(&ev)
		if err == nil {
			err = decodeData(ev, &want)
		}
		if err != nil {
			m.Settle(err)
			return
		}
		s.put(ctx, item{run: want.Run, settle: m.Settle, apply: func(now time.Time) error {
			e := s.core.runs[want.Run]
			if e == nil {
				return s.unknownRun(ctx, want.Run, ev.Time, now)
			}
			s.core.cancel(e, want.By, now)
			return nil
		}})
	}
}

// unknownRun decides what to do with a wish about a run that is not active: nothing if it has ended,
// wait a while if its decision may still be on the way.
func (s *Scheduler) unknownRun(ctx context.Context, id string, asked, now time.Time) error {
	if _, _, err := s.Store.Runs.Get(ctx, id); err == nil {
		return nil
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
					s.tellToStop(e.Value.Instance, id, n, "because the attempt was given up")
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
