package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/scheduler"
)

func subscribe(b *bus.Bus, subject string, to chan<- event.Control) (func(), error) {
	return b.Subscribe(subject, func(data []byte) {
		var c event.Control
		if json.Unmarshal(data, &c) == nil {
			select {
			case to <- c:
			default: // it is repeated until it is heeded
			}
		}
	})
}

func TestDecidedRunIsAssignedAndItsEndIsStored(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	s.schedule(t)
	w := s.worker(t, "one", "i1")
	sealed, err := secret.Seal(s.identity.Recipient(), map[string]string{"password": "hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	s.decide(t, run.Run{ID: "ra", Spec: run.Spec{Context: "context://x", Secrets: sealed}})

	as := w.assigned(t, "ra", 1)
	r, _, err := s.store.Runs.Get(t.Context(), "ra")
	if err != nil || r.State != run.Started || r.Attempt != 1 || len(r.Attempts) != 1 || r.Attempts[0].Instance != "i1" {
		t.Errorf("stored when the worker has its assignment: %+v, %v, want attempt 1 Started on i1", r, err)
	}
	checkSealed(t, w, as)
	var lease event.Lease // it comes at the same time as the assignment
	err = s.store.Leases.Watch(t.Context(), event.LeaseKey("ra", 1), func(e *store.Entry[event.Lease]) bool {
		if e != nil {
			lease = e.Value
		}
		return e == nil
	})
	if err != nil || lease != (event.Lease{Attempt: 1, Worker: "one", Instance: "i1"}) {
		t.Errorf("lease %+v, %v", lease, err)
	}
	s.wantFence(t, "ra", 0, registry.ErrFenced)
	s.wantFence(t, "ra", 1, registry.ErrManifestUnknown)

	s.report(t, event.Report{Run: "ra", Attempt: 1, N: 1, Begun: time.Now(), Steps: []run.Step{{ID: "build", Kind: "build", State: run.StepRunning, Attempt: 1}}})
	s.await(t, "ra", in(run.Running))
	s.report(t, event.Report{Run: "ra", Attempt: 1, N: 2, Final: run.Succeeded, LogEnd: 9,
		Steps: []run.Step{{ID: "build", Kind: "build", State: run.StepSucceeded, Attempt: 1}}})
	r = s.await(t, "ra", in(run.Succeeded))
	if r.LogEnd != 9 || r.Finished.IsZero() || r.Started.IsZero() || r.Attempts[0].Outcome != string(run.Succeeded) ||
		len(r.Steps) != 1 || r.Steps[0].State != run.StepSucceeded {
		t.Errorf("stored end: %+v", r)
	}
	s.awaitNoLease(t, "ra", 1)
	s.wantFence(t, "ra", 1, registry.ErrFenced)

	s.decide(t, run.Run{ID: "rb"})
	w.assigned(t, "rb", 1) // its slot is free again
}

// checkSealed checks that an assignment tells the worker, and nobody else, its secrets.
func checkSealed(t *testing.T, w *testWorker, as event.Assignment) {
	t.Helper()
	var token event.Tokens
	if err := w.identity.Open(as.Token, &token); err != nil || token.Registry != "token of "+as.Run.ID {
		t.Errorf("token %q, %v", token, err)
	}
	var values event.Secrets
	if err := w.identity.Open(as.Secrets, &values); err != nil || values.Set["password"] != "hunter2" {
		t.Errorf("secrets %v, %v", values, err)
	}
	if as.Run.Spec.Secrets != nil {
		t.Error("the assignment also has the secrets that are sealed to the scheduler")
	}
	other, err := secret.NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if other.Open(as.Token, &token) == nil || other.Open(as.Secrets, &values) == nil {
		t.Error("another identity opens what is sealed to the worker")
	}
}

// A deafFence is a registry that cannot be told that runs have ended.
type deafFence struct{ scheduler.Fence }

func (deafFence) FinishRun(context.Context, string) error { return errors.New("away") }

// A toldFence tells of the runs that were finished in the registry.
type toldFence struct {
	scheduler.Fence
	finished chan string
}

func (f toldFence) FinishRun(ctx context.Context, run string) error {
	err := f.Fence.FinishRun(ctx, run)
	f.finished <- run
	return err
}

func TestSuccessorFinishesWhatHasEnded(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	reg := s.fence
	s.fence = deafFence{reg}
	stop := s.schedule(t)
	w := s.worker(t, "one", "i1")
	for _, id := range []string{"ra", "rb"} {
		s.decide(t, run.Run{ID: id})
		w.assigned(t, id, 1)
		if id == "ra" {
			s.report(t, event.Report{Run: id, Attempt: 1, N: 1, Final: run.Succeeded})
			s.await(t, id, in(run.Succeeded))
			s.wantFence(t, id, 1, registry.ErrManifestUnknown)
		}
	}
	stop()
	if err := reg.RaiseFence(t.Context(), "rc", 2); err != nil { // late, of a run whose record was removed meanwhile
		t.Fatal(err)
	}

	told := toldFence{reg, make(chan string, 8)}
	s.fence = told
	s.schedule(t)
	for _, want := range []string{"ra", "rc"} {
		select {
		case got := <-told.finished:
			if got != want {
				t.Errorf("run %s was finished, want %s", got, want)
			}
		case <-time.After(bound):
			t.Fatalf("run %s is not finished after %s", want, bound)
		}
	}
	s.wantFence(t, "ra", 1, registry.ErrFenced)
	s.wantFence(t, "rb", 1, registry.ErrManifestUnknown)
}

// A gate is a fence that is raised only after it was opened.
type gate struct {
	scheduler.Fence
	open chan struct{}
}

func (g gate) RaiseFence(ctx context.Context, run string, attempt int) error {
	select {
	case <-g.open:
		return g.Fence.RaiseFence(ctx, run, attempt)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func TestNothingIsAssignedBeforeTheFenceIsUp(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	g := gate{s.fence, make(chan struct{})}
	s.fence = g
	s.schedule(t)
	w := s.worker(t, "one", "i1")
	s.decide(t, run.Run{ID: "ra"})
	s.await(t, "ra", in(run.Started))
	var as event.Assignment
	if _, err := s.bus.Last(t.Context(), bus.StreamWork, event.WorkSubject("i1"), &as); !errors.Is(err, bus.ErrNone) || len(w.assignments) > 0 {
		t.Errorf("run %s is assigned (%v) before its fence is up", as.Run.ID, err)
	}
	close(g.open)
	w.assigned(t, "ra", 1)
	s.wantFence(t, "ra", 0, registry.ErrFenced)
}

func TestRestartedWorkerGetsAnotherAttempt(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	s.schedule(t)
	s.decide(t, run.Run{ID: "ra"})
	s.worker(t, "one", "i1").assigned(t, "ra", 1)
	s.wantFence(t, "ra", 1, registry.ErrManifestUnknown)

	w := s.worker(t, "one", "i2")
	w.assigned(t, "ra", 2)
	s.wantFence(t, "ra", 1, registry.ErrFenced)
	s.wantFence(t, "ra", 2, registry.ErrManifestUnknown)
	r, _, err := s.store.Runs.Get(t.Context(), "ra")
	if err != nil || len(r.Attempts) != 2 || r.Attempts[0].Outcome != "lost" || r.Attempts[1].Instance != "i2" {
		t.Errorf("stored %+v, %v, want a lost attempt and one on i2", r.Attempts, err)
	}

	s.report(t, event.Report{Run: "ra", Attempt: 1, N: 1, Final: run.Failed, Reason: "zombie"})
	s.report(t, event.Report{Run: "ra", Attempt: 2, N: 1, Final: run.Succeeded})
	s.await(t, "ra", func(r run.Run) bool { return r.State.Final() })
	if r := s.await(t, "ra", in(run.Succeeded)); r.Reason == "zombie" {
		t.Errorf("the lost attempt's report was heeded: %+v", r)
	}
}

func TestAttemptWithoutALeaseIsLost(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Second)
	s.schedule(t)
	w := s.worker(t, "one", "i1")
	s.keepAlive(t, w.Worker)
	s.decide(t, run.Run{ID: "ra"})
	first := w.assigned(t, "ra", 1)
	w.assigned(t, "ra", 2)
	s.wantFence(t, "ra", 1, registry.ErrFenced)

	lease := event.Lease{Attempt: 1, Worker: "one", Instance: "i1"}
	if _, err := s.store.Leases.Put(t.Context(), event.LeaseKey(first.Run.ID, 1), lease); err != nil {
		t.Fatal(err)
	}
	if c := receive(t, "control message", w.controls); c.Run != "ra" || c.Attempt != 1 {
		t.Errorf("control message %+v, want that attempt 1 of ra stops: it is not dead after all", c)
	}
}

func TestCanceledRun(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	s.schedule(t)
	t.Run("queued", func(t *testing.T) {
		s.decide(t, run.Run{ID: "ra"})
		s.await(t, "ra", in(run.Queued))
		s.cancel(t, "ra")
		if r := s.await(t, "ra", in(run.Canceled)); r.CancelBy != "kim" || r.Attempt != 0 {
			t.Errorf("stored %+v, want it canceled by kim without an attempt", r)
		}
	})
	t.Run("under way", func(t *testing.T) {
		w := s.worker(t, "one", "i1")
		s.decide(t, run.Run{ID: "rb"})
		w.assigned(t, "rb", 1)
		s.cancel(t, "rb")
		for range 2 { // it is repeated
			if c := receive(t, "control message", w.controls); c.Run != "rb" || c.Attempt != 1 {
				t.Errorf("control message %+v, want that attempt 1 of rb stops", c)
			}
		}
		s.report(t, event.Report{Run: "rb", Attempt: 1, N: 1, Final: run.Canceled, Reason: "canceled by kim"})
		if r := s.await(t, "rb", in(run.Canceled)); r.CancelBy != "kim" {
			t.Errorf("stored %+v, want it canceled by kim", r)
		}
		s.awaitNoLease(t, "rb", 1)
		s.wantFence(t, "rb", 1, registry.ErrFenced)
	})
}

func TestNewSchedulerGoesOnWithTheRunsInHand(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	stop := s.schedule(t)
	w := s.worker(t, "one", "i1")
	s.decide(t, run.Run{ID: "ra"})
	w.assigned(t, "ra", 1)
	s.decide(t, run.Run{ID: "rb"})
	s.await(t, "rb", in(run.Queued))
	stop()
	s.decide(t, run.Run{ID: "rc"})
	s.report(t, event.Report{Run: "ra", Attempt: 1, N: 1, Begun: time.Now()})

	s.schedule(t)
	s.await(t, "ra", in(run.Running))
	s.report(t, event.Report{Run: "ra", Attempt: 1, N: 2, Final: run.Succeeded})
	if r := s.await(t, "ra", in(run.Succeeded)); r.Attempt != 1 || len(r.Attempts) != 1 {
		t.Errorf("stored %+v, want one attempt: its worker was there all the time", r)
	}
	w.assigned(t, "rb", 1)
	s.report(t, event.Report{Run: "rb", Attempt: 1, N: 1, Final: run.Failed, Reason: "exit code 1"})
	if r := s.await(t, "rb", in(run.Failed)); r.Reason != "exit code 1" {
		t.Errorf("stored %+v", r)
	}
	w.assigned(t, "rc", 1)
}

// TestDecisionThatComesAgainAfterTheEndIsSettled has the decision about a run that has ended delivered again, as it
// is if the scheduler was killed before it could say that it had it.
func TestDecisionThatComesAgainAfterTheEndIsSettled(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	ended := run.Run{ID: "ra", State: run.Succeeded, Attempt: 1, Finished: time.Now().UTC()}
	if _, err := s.store.Runs.Create(t.Context(), ended.ID, ended); err != nil {
		t.Fatal(err)
	}
	s.decide(t, run.Run{ID: "ra"})
	s.schedule(t)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	stream, err := s.bus.JetStream().Stream(ctx, bus.StreamDecisions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		reader, err := stream.Consumer(ctx, "scheduler")
		if err == nil && reader.CachedInfo().AckFloor.Stream > 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the decision is delivered again and again")
		}
	}
	if r, _, err := s.store.Runs.Get(t.Context(), "ra"); err != nil || r.State != run.Succeeded {
		t.Errorf("run is %s (%v), want Succeeded", r.State, err)
	}
}
