// Package scheduler executes decisions: it queues runs, assigns them to workers and owns their state.
//
// A decision becomes one run, however often it is delivered: the run's ID is part of the decision.
// The scheduler is the only writer of a run's record. It stores every change before it acts on it, and
// acknowledges a message only when its effect is stored, so it may be killed at any moment and resumes
// from JetStream. A run goes on when its task is deleted, be it queued or under way: it was decided.
// That a run is queued, started and finished is told in events, each of them once; none delays the run.
//
// Waiting runs are served by pool and by lane, in each lane in the order of their creation. Before it
// hands an attempt to a worker it raises the run's fence in the registry: whatever an older attempt still
// does, it can publish nothing. It removes the fence after it has stored the run's end, and the fences
// that a scheduler before it has left.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// A Fence keeps older attempts of a run from publishing.
type Fence interface {
	// RaiseFence durably refuses publications of attempts below attempt.
	RaiseFence(ctx context.Context, run string, attempt int) error
	// FinishRun refuses every further publication of the run and forgets it.
	FinishRun(ctx context.Context, run string) error
	// Fences lists runs that were not finished, in the order of their IDs from after on; none means that there are no more.
	Fences(ctx context.Context, after string) ([]string, error)
}

// A Scheduler turns decisions into runs. Its fields are set before Run is called and not changed after.
type Scheduler struct {
	Bus     *bus.Bus
	Store   *store.Store
	Fence   Fence
	Secrets secret.Identity // opens the secrets of requests
	// Tokens mints what the run's current attempt shows the registry; apart says that it publishes over the network.
	Tokens func(r run.Run, apart bool) (event.Tokens, error)
	// Active lists the runs that were not final when the process started.
	Active func(context.Context) ([]string, error)
	// Resolve returns the values of the secrets that the run names in Spec.Refs. It may block. An error
	// that wraps secret.ErrUnknown or store.ErrNotFound ends the run; others do after a minute. Nil means that
	// there are none.
	Resolve func(ctx context.Context, r run.Run) (event.Secrets, error)
	// ResolveAll has Resolve asked for runs, too, that name no secrets.
	ResolveAll bool

	// Ended is called with each run whose end was stored just now, once; nil means nobody asks. It must not block.
	Ended func(run.Run)

	MaxRuns  int // runs executed at once; 0 means as many as the workers take
	LeaseTTL time.Duration
	Log      *slog.Logger

	once    sync.Once
	inbox   chan item
	ended   chan struct{} // closed when Run has returned
	results chan result
	running sync.WaitGroup // effects, and what settles announcements
	sealed  sealedToken

	// Of the loop alone.
	core    *core
	effects int // under way
	failed  []*entry
}

// An item is one fact for the loop: apply changes the core, settle is called once the changes of the
// runs are stored.
type item struct {
	runs   []string
	apply  func(now time.Time) error
	settle func(error)
}

const (
	maxBatch = 256 // facts that are applied before they are acted on
	readers  = 32  // records that are read at once
	// ackWait is how long after a scheduler's death another one gets what that one had not settled.
	ackWait = 5 * time.Second
)

// prepare makes what Run and those who ask have in common.
func (s *Scheduler) prepare() {
	s.once.Do(func() { s.inbox, s.ended = make(chan item, maxBatch), make(chan struct{}) })
}

// Run schedules until ctx is done. It returns nil then, and an error only if it could not start. It is
// called once.
func (s *Scheduler) Run(ctx context.Context) error {
	s.prepare()
	s.core, s.results = newCore(s.MaxRuns), make(chan result, maxBatch)
	defer close(s.ended)
	if err := s.resume(ctx); err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.loop(ctx) })
	g.Go(func() error { return s.watchLeases(ctx) })
	g.Go(func() error { return s.watchWorkers(ctx) })
	g.Go(func() error { return s.watchDrains(ctx) })
	g.Go(func() error { return s.announce(ctx) })
	g.Go(func() error { return s.sweep(ctx) })
	for _, c := range []struct {
		consumer bus.Consumer
		handle   func(bus.Message)
	}{
		{bus.Consumer{Stream: bus.StreamDecisions, Name: "scheduler", Filter: event.SubjectDecisions, AckWait: ackWait}, s.onDecision(ctx)},
		{bus.Consumer{Stream: bus.StreamReports, Name: "scheduler", Filter: event.SubjectReports, AckWait: ackWait}, s.onReport(ctx)},
		{bus.Consumer{Stream: bus.StreamEvents, Name: "scheduler", Filter: event.CancelFilter, AckWait: ackWait}, s.onCancel(ctx)},
		{bus.Consumer{Stream: bus.StreamEvents, Name: "scheduler-approvals", Filter: event.ApproveFilter, AckWait: ackWait}, s.onApproval(ctx)},
	} {
		g.Go(func() error { return s.Bus.Consume(ctx, c.consumer, c.handle) })
	}
	err := g.Wait()
	s.running.Wait()
	return err
}

// Queue says what the queued runs among ids wait for; without ids what all do, in the order of their
// pools and lanes. Runs that are not queued are left out. It asks the loop, and blocks until it answers.
func (s *Scheduler) Queue(ctx context.Context, ids ...string) ([]Waiting, error) {
	return ask(ctx, s, func() []Waiting {
		if len(ids) > 0 {
			return s.core.places(ids)
		}
		return s.core.snapshot()
	})
}

// ask has the loop answer a question, and blocks until it does.
func ask[T any](ctx context.Context, s *Scheduler, question func() T) (T, error) {
	s.prepare()
	var none T
	answer := make(chan T, 1)
	it := item{settle: func(error) {}, apply: func(time.Time) error { answer <- question(); return nil }}
	select {
	case s.inbox <- it:
	case <-s.ended:
		return none, errEnded
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
	select {
	case v := <-answer:
		return v, nil
	case <-s.ended:
		return none, errEnded
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

var errEnded = errors.New("the scheduler has stopped")

// resume reads the runs that have not ended. An attempt under way has a lease time to show itself.
func (s *Scheduler) resume(ctx context.Context) error {
	ids, err := s.Active(ctx)
	if err != nil {
		return err
	}
	type stored struct {
		run run.Run
		rev uint64
	}
	found := make([]stored, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, id := range ids {
		g.Go(func() error {
			r, rev, err := s.Store.Runs.Get(gctx, id)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			found[i] = stored{r, rev}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	suspect := time.Now().Add(s.LeaseTTL)
	for _, f := range found {
		if f.rev > 0 && !f.run.State.Final() {
			s.core.adopt(f.run, f.rev, suspect)
		}
	}
	return nil
}

// loop applies facts and has their effects executed.
func (s *Scheduler) loop(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.core.tick(time.Now().UTC())
			s.retry()
		case r := <-s.results:
			s.conclude(r, time.Now().UTC())
		case it := <-s.inbox:
			s.apply(it, time.Now().UTC())
		}
		s.drain()
		s.core.assign(time.Now().UTC())
		s.act(ctx)
	}
}

// drain takes in what else there is to be known, up to a bound: what was learned is to be acted on.
func (s *Scheduler) drain() {
	for range maxBatch {
		select {
		case r := <-s.results:
			s.conclude(r, time.Now().UTC())
		case it := <-s.inbox:
			s.apply(it, time.Now().UTC())
		default:
			return
		}
	}
}

// apply changes the core by a fact, which is settled when the runs that it is about have no change left
// that is not stored.
func (s *Scheduler) apply(it item, now time.Time) {
	if err := it.apply(now); err != nil {
		it.settle(err)
		return
	}
	left := 0
	var failure error
	settled := func(err error) {
		failure = errors.Join(failure, err)
		if left--; left == 0 {
			it.settle(failure)
		}
	}
	for _, id := range it.runs {
		if e := s.core.runs[id]; e != nil && (e.busy || e.pending()) {
			left++
			e.settles = append(e.settles, settled)
		}
	}
	if left == 0 {
		it.settle(nil)
	}
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
