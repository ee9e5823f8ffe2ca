package scheduler_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/natstest"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/scheduler"
	"kiln/triggers/decide"
)

// bound is how long anything may take.
const bound = time.Minute

// A site is everything that a scheduler works with: the message store, the records and the registry.
type site struct {
	bus      *bus.Bus
	store    *store.Store
	registry *registry.Store
	fence    scheduler.Fence
	identity secret.Identity
	leaseTTL time.Duration
}

func newSite(t testing.TB, leaseTTL time.Duration) *site {
	t.Helper()
	b := natstest.Start(t)
	s, err := store.Open(t.Context(), b.JetStream(), leaseTTL)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	reg := registrytest.Start(t).Store
	return &site{bus: b, store: s, registry: reg, fence: reg, identity: identity, leaseTTL: leaseTTL}
}

// schedule runs a new scheduler, with an index of its own, until the returned function is called,
// which waits for its end.
func (s *site) schedule(t testing.TB) (stop func()) {
	t.Helper()
	_, stop = s.start(t, func(*scheduler.Scheduler) {})
	return stop
}

// start is schedule for a scheduler that is set up further.
func (s *site) start(t testing.TB, set func(*scheduler.Scheduler)) (sched *scheduler.Scheduler, stop func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	x, err := index.Open(filepath.Join(t.TempDir(), "index"), log)
	if err != nil {
		t.Fatal(err)
	}
	sched = &scheduler.Scheduler{Bus: s.bus, Store: s.store, Fence: s.fence, Secrets: s.identity, Active: x.Active,
		Tokens: func(r run.Run, _ bool) (event.Tokens, error) { return event.Tokens{Registry: "token of " + r.ID}, nil }, LeaseTTL: s.leaseTTL, Log: log}
	set(sched)
	ctx, cancel := context.WithCancel(t.Context())
	indexed, scheduled := make(chan error, 1), make(chan error, 1)
	go func() { indexed <- x.Run(ctx, &s.store.Runs); close(indexed) }()
	go func() { scheduled <- sched.Run(ctx); close(scheduled) }()
	stop = func() {
		cancel()
		if err := errors.Join(<-scheduled, <-indexed, x.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return sched, stop
}

// decide stores the decision about a run.
func (s *site) decide(t testing.TB, r run.Run) {
	t.Helper()
	d := event.Decision{Made: decide.Decision{Kind: decide.Run, Time: time.Now().UTC()}, Run: &r}
	if _, err := s.bus.Create(t.Context(), event.DecisionSubject(event.QuickTask, r.ID), d, 0); err != nil {
		t.Fatal(err)
	}
}

func (s *site) report(t testing.TB, rep event.Report) {
	t.Helper()
	rep.Time = time.Now().UTC()
	if _, err := s.bus.Publish(t.Context(), event.ReportSubject(rep.Run), event.ReportID(rep), rep); err != nil {
		t.Fatal(err)
	}
}

func (s *site) cancel(t testing.TB, id string) {
	t.Helper()
	ev, err := event.New("cancel-"+id, "/test", event.TypeCancelRequested, time.Now().UTC(), event.CancelRequested{Run: id, By: "kim"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.bus.Publish(t.Context(), event.CancelSubject(id), "", ev); err != nil {
		t.Fatal(err)
	}
}

// await returns the record of a run as soon as ok says that it is the one.
func (s *site) await(t testing.TB, id string, ok func(run.Run) bool) run.Run {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	var last run.Run
	found := false
	err := s.store.Runs.Watch(ctx, id, func(e *store.Entry[run.Run]) bool {
		if e != nil {
			last = e.Value
			found = ok(last)
		}
		return !found
	})
	if err != nil || !found {
		t.Fatalf("run %s is not as expected after %s (%v): %+v", id, bound, err, last)
	}
	return last
}

func in(state run.State) func(run.Run) bool { return func(r run.Run) bool { return r.State == state } }

// awaitNoLease waits until an attempt has no lease.
func (s *site) awaitNoLease(t testing.TB, id string, attempt int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	gone := true
	err := s.store.Leases.Watch(ctx, event.LeaseKey(id, attempt), func(e *store.Entry[event.Lease]) bool {
		gone = e == nil && gone || e != nil && e.Gone
		return !gone
	})
	if err != nil || !gone {
		t.Fatalf("attempt %d of run %s still has its lease (%v)", attempt, id, err)
	}
}

// wantFence checks whether the registry accepts publications of an attempt. The manifest is not
// there, which an attempt is told that has passed the fence.
func (s *site) wantFence(t testing.TB, id string, attempt int, want error) {
	t.Helper()
	_, err := s.registry.Publish(t.Context(), registry.Publication{Run: id, Attempt: attempt, Step: "build", Tags: []registry.Tag{
		{Repository: "app", Tag: "v1", Digest: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}})
	if !errors.Is(err, want) {
		t.Errorf("publication of attempt %d of run %s: %v, want %v", attempt, id, err, want)
	}
}

// A testWorker is registered, and keeps what it is sent.
type testWorker struct {
	event.Worker
	identity    secret.Identity
	assignments chan event.Assignment
	controls    chan event.Control
}

func (s *site) worker(t testing.TB, name, instance string) *testWorker {
	t.Helper()
	identity, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	w := &testWorker{identity: identity, assignments: make(chan event.Assignment, 16), controls: make(chan event.Control, 64),
		Worker: event.Worker{Name: name, Instance: instance, Parallel: 1, Recipient: identity.Recipient()}}
	w.listen(t, s.bus)
	if _, err := s.store.Workers.Put(t.Context(), instance, w.Worker); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *testWorker) listen(t testing.TB, b *bus.Bus) {
	t.Helper()
	unsubscribe, err := subscribe(b, event.ControlSubject(w.Instance), w.controls)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(unsubscribe)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- b.Consume(ctx, bus.Consumer{Stream: bus.StreamWork, Name: "work-" + w.Instance, Filter: event.WorkSubject(w.Instance)},
			func(m bus.Message) {
				var as event.Assignment
				m.Settle(m.Decode(&as))
				w.assignments <- as
			})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// keepAlive refreshes the worker's registration until t ends.
func (s *site) keepAlive(t testing.TB, w event.Worker) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(s.leaseTTL / 4)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if _, err := s.store.Workers.Put(ctx, w.Instance, w); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func receive[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(bound):
		t.Fatalf("no %s within %s", what, bound)
		panic("unreachable")
	}
}

// assigned returns the next assignment and checks which it is.
func (w *testWorker) assigned(t testing.TB, id string, attempt int) event.Assignment {
	t.Helper()
	as := receive(t, "assignment", w.assignments)
	if as.Run.ID != id || as.Run.Attempt != attempt {
		t.Fatalf("worker %s is assigned attempt %d of run %s, want %d of %s", w.Instance, as.Run.Attempt, as.Run.ID, attempt, id)
	}
	return as
}
