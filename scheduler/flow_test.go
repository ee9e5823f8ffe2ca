package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/scheduler"
	"kiln/triggers/decide"
)

// told waits for the event that tells of a change of a run.
func (s *site) told(t testing.TB, typ, id string) run.Run {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	var changed event.RunChanged
	n := 0
	err := s.bus.Tail(ctx, bus.StreamEvents, event.RunSubject(typ, id), 0, true, func(_ uint64, data []byte) bool {
		var ev event.Event
		if err := errors.Join(json.Unmarshal(data, &ev), json.Unmarshal(ev.Data, &changed)); err != nil || ev.Type != typ || ev.Subject != id {
			t.Errorf("event %+v: %v", ev, err)
		}
		n++
		return false
	})
	if err != nil || n == 0 {
		t.Fatalf("no event %s of run %s within %s (%v)", typ, id, bound, err)
	}
	return changed.Run
}

func (s *site) approve(t testing.TB, id string) {
	t.Helper()
	ev, err := event.New("approve-"+id, "/test", event.TypeRunApproved, time.Now().UTC(), event.RunApproved{Run: id, By: "kim"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.bus.Publish(t.Context(), event.ApproveSubject(id), "", ev); err != nil {
		t.Fatal(err)
	}
}

func TestChangesOfRunsAreTold(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	s.schedule(t)
	sealed, err := secret.Seal(s.identity.Recipient(), map[string]string{"password": "hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	s.decide(t, run.Run{ID: "ra", Task: "web", TaskUID: "u1", Spec: run.Spec{Secrets: sealed}})
	if r := s.told(t, event.TypeRunQueued, "ra"); r.State != run.Queued || r.Spec.Secrets != nil {
		t.Errorf("queued: %+v", r)
	}
	s.worker(t, "one", "i1").assigned(t, "ra", 1)
	if r := s.told(t, event.TypeRunStarted, "ra"); r.State != run.Started {
		t.Errorf("started: %+v", r)
	}
	s.report(t, event.Report{Run: "ra", Attempt: 1, N: 1, Final: run.Succeeded, Bases: []run.Base{{Ref: "node:22", Digest: "sha256:1"}}})
	if r := s.told(t, event.TypeRunFinished, "ra"); r.State != run.Succeeded || r.Spec.Secrets != nil || len(r.Bases) != 1 {
		t.Errorf("finished: %+v", r)
	}
}

// TestEndThatWasStoredIsToldAfterARestart has a record whose scheduler died before it could tell.
func TestEndThatWasStoredIsToldAfterARestart(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	r := run.Run{ID: "ra", State: run.Failed, Attempt: 1, Finished: time.Now().UTC()}
	if _, err := s.store.Runs.Create(t.Context(), r.ID, r); err != nil {
		t.Fatal(err)
	}
	stop := s.schedule(t)
	s.told(t, event.TypeRunFinished, "ra")
	stop()
	s.schedule(t)
	s.decide(t, run.Run{ID: "rb", TaskUID: "u1"})
	s.told(t, event.TypeRunQueued, "rb")
	n := 0
	if err := s.bus.Tail(t.Context(), bus.StreamEvents, event.FinishedFilter, 0, false, func(uint64, []byte) bool { n++; return true }); err != nil || n != 1 {
		t.Errorf("told %d times (%v), want once", n, err)
	}
}

func TestRunWaitsForApproval(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	s.schedule(t)
	w := s.worker(t, "one", "i1")
	for _, id := range []string{"ra", "rb"} {
		s.decide(t, run.Run{ID: id, Task: "web", TaskUID: "u" + id, NeedsApproval: true})
		if r := s.await(t, id, in(run.Queued)); r.Reason != "waiting for approval" {
			t.Errorf("reason %q", r.Reason)
		}
	}
	s.cancel(t, "rb")
	s.await(t, "rb", in(run.Canceled))
	s.decide(t, run.Run{ID: "rc"})
	w.assigned(t, "rc", 1) // it does not wait for the others
	s.report(t, event.Report{Run: "rc", Attempt: 1, N: 1, Final: run.Succeeded})
	s.approve(t, "ra")
	if as := w.assigned(t, "ra", 1); as.Run.ApprovedBy != "kim" {
		t.Errorf("approved by %q, want kim", as.Run.ApprovedBy)
	}
}

func TestNewerRunOfATrackTakesTheOldOnesPlace(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	stop := s.schedule(t)
	s.decide(t, run.Run{ID: "ra", Task: "web", TaskUID: "u1", Lane: "commit"})
	s.await(t, "ra", in(run.Queued))
	r := run.Run{ID: "rb", Task: "web", TaskUID: "u1", Lane: "commit"}
	d := event.Decision{Made: decide.Decision{Kind: decide.Run, Supersedes: []string{"ra"}}, Run: &r}
	if _, err := s.bus.Create(t.Context(), event.DecisionSubject("u1", "rb"), d, 0); err != nil {
		t.Fatal(err)
	}
	if r := s.await(t, "ra", in(run.Canceled)); r.Reason != "superseded by run rb" || r.Finished.IsZero() {
		t.Errorf("stored %+v", r)
	}
	s.told(t, event.TypeRunFinished, "ra")
	s.await(t, "rb", in(run.Queued))
	stop()
	s.schedule(t)
	s.worker(t, "one", "i1").assigned(t, "rb", 1)
}

func TestQueueIsTold(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	sched, stop := s.start(t, func(*scheduler.Scheduler) {})
	w := s.worker(t, "one", "i1")
	for n := range 4 {
		s.decide(t, run.Run{ID: fmt.Sprint("r", n), Lane: "timer"})
		s.await(t, fmt.Sprint("r", n), func(r run.Run) bool { return r.State != "" })
	}
	w.assigned(t, "r0", 1)
	got, err := sched.Queue(t.Context(), "r0", "r3", "unknown")
	want := scheduler.Waiting{Run: "r3", Lane: "timer", Pool: "default", Position: 3, Reason: "waiting: 3rd in lane timer, 1 worker busy"}
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("Queue = %+v, %v, want %+v", got, err, want)
	}
	if all, err := sched.Queue(t.Context()); err != nil || len(all) != 3 || all[0].Run != "r1" {
		t.Errorf("Queue = %+v, %v, want r1, r2, r3", all, err)
	}
	stop()
	if _, err := sched.Queue(t.Context()); err == nil {
		t.Error("the queue of a scheduler that has stopped: no error")
	}
}

func TestNamedSecretsAreResolvedForTheWorker(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	s.start(t, func(sched *scheduler.Scheduler) {
		sched.Resolve = func(_ context.Context, r run.Run) (event.Secrets, error) {
			if r.ID == "rb" {
				return event.Secrets{}, fmt.Errorf("secret %q: %w", "npm-token", store.ErrNotFound)
			}
			return event.Secrets{Context: "of " + r.Spec.Refs.Context, Set: map[string]string{"password": "stored", "user": "kim"}}, nil
		}
	})
	w := s.worker(t, "one", "i1")
	sealed, err := secret.Seal(s.identity.Recipient(), map[string]string{"password": "hunter2"})
	if err != nil {
		t.Fatal(err)
	}
	s.decide(t, run.Run{ID: "rb", Spec: run.Spec{Refs: &run.SecretRefs{Set: map[string]string{"token": "npm-token"}}}})
	if r := s.await(t, "rb", in(run.Error)); !strings.Contains(r.Reason, `secret "npm-token"`) {
		t.Errorf("reason %q does not name the secret", r.Reason)
	}
	s.decide(t, run.Run{ID: "ra", Spec: run.Spec{Secrets: sealed, Refs: &run.SecretRefs{Context: "git-token"}}})
	as := w.assigned(t, "ra", 1)
	var got event.Secrets
	if err := w.identity.Open(as.Secrets, &got); err != nil || got.Context != "of git-token" || got.Set["password"] != "hunter2" || got.Set["user"] != "kim" {
		t.Errorf("secrets %+v, %v", got, err)
	}
	if as.Run.Spec.Secrets != nil {
		t.Error("the assignment also has the secrets that are sealed to the scheduler")
	}
}

// TestResolvingDelaysNobodyElse has the secrets of one run never come.
func TestResolvingDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	s.start(t, func(sched *scheduler.Scheduler) {
		sched.Resolve = func(ctx context.Context, _ run.Run) (event.Secrets, error) {
			<-ctx.Done()
			return event.Secrets{}, ctx.Err()
		}
	})
	w := s.worker(t, "one", "i1")
	two := s.worker(t, "two", "i2")
	s.decide(t, run.Run{ID: "ra", Spec: run.Spec{Refs: &run.SecretRefs{Context: "git-token"}}})
	s.await(t, "ra", in(run.Started))
	s.decide(t, run.Run{ID: "rb"})
	select {
	case as := <-w.assignments:
		t.Logf("worker one has %s", as.Run.ID)
	case as := <-two.assignments:
		t.Logf("worker two has %s", as.Run.ID)
	case <-time.After(bound):
		t.Fatal("the other run was not assigned")
	}
}

// TestManyDecisionsAtOnce has each made one run, in order.
func TestManyDecisionsAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	s.schedule(t)
	const n = 1000
	decideMany(t, s.bus, n)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	seen := map[string]bool{}
	err := s.store.Runs.Watch(ctx, ">", func(e *store.Entry[run.Run]) bool {
		if e != nil && e.Value.State == run.Queued {
			seen[e.Key] = true
		}
		return len(seen) < n
	})
	if err != nil || len(seen) != n {
		t.Fatalf("%d of %d runs are stored (%v)", len(seen), n, err)
	}
	s.worker(t, "one", "i1").assigned(t, "r000000", 1)
}
