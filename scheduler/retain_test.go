package scheduler_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/scheduler"
)

func TestRunsPastRetentionAreRemovedAndNothingElseIs(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	now := time.Now().UTC()
	old, recent := now.Add(-100*24*time.Hour), now.Add(-time.Hour)
	for id, r := range map[string]run.Run{
		"rold":      {State: run.Succeeded, Created: old, Finished: old.Add(time.Minute)},
		"rfailed":   {State: run.Failed, Created: old, Finished: old.Add(time.Minute)},
		"rwaiting":  {State: run.Queued, Created: old},
		"rapproved": {State: run.Succeeded, Created: old, Finished: recent}, // it waited for months
		"rrecent":   {State: run.Succeeded, Created: recent, Finished: recent.Add(time.Minute)},
	} {
		r.ID = id
		if _, err := s.store.Runs.Put(ctx, id, r); err != nil {
			t.Fatal(err)
		}
		if _, err := s.bus.Publish(ctx, event.LogSubject(id, 0), "", "said"); err != nil {
			t.Fatal(err)
		}
		s.decide(t, r) // delivered again if the scheduler's place in the stream were lost
	}
	x := s.retain(t, 90*24*time.Hour)
	want := []string{"rapproved", "rrecent", "rwaiting"}
	for kept := []string(nil); !slices.Equal(kept, want); {
		runs, err := x.List(ctx, index.Query{Limit: 10})
		if err != nil {
			t.Fatalf("kept %q, want %q: %v", kept, want, err)
		}
		kept = nil
		for _, r := range runs {
			kept = append(kept, r.ID)
		}
		slices.Sort(kept)
	}
	for _, id := range []string{"rold", "rfailed"} {
		if _, _, err := s.store.Runs.Get(ctx, id); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("record of %s: %v, want none", id, err)
		}
		if s.logged(t, id) {
			t.Errorf("the log of %s is still there", id)
		}
	}
	for _, id := range want {
		if !s.logged(t, id) {
			t.Errorf("the log of %s is gone", id)
		}
	}
	for _, id := range append(want, "rold", "rfailed") {
		var d event.Decision
		if _, err := s.bus.Last(ctx, bus.StreamDecisions, event.DecisionSubject(event.QuickTask, id), &d); err != nil {
			t.Errorf("decision about %s: %v", id, err)
		}
	}
}

// A run that was executed and removed is not executed again by the scheduler of the next start.
func TestRemovedRunIsNotAdmittedAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	stop := s.schedule(t)
	s.decide(t, run.Run{ID: "rgone", State: run.Queued, Created: time.Now().UTC()})
	s.await(t, "rgone", func(r run.Run) bool { return r.State == run.Queued })
	s.cancel(t, "rgone")
	s.await(t, "rgone", func(r run.Run) bool { return r.State == run.Canceled && !r.Finished.IsZero() })
	stop()
	x := s.retain(t, time.Nanosecond)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	for left := 1; left > 0; {
		runs, err := x.List(ctx, index.Query{Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		left = len(runs)
	}
	s.schedule(t)
	s.decide(t, run.Run{ID: "rnext", State: run.Queued, Created: time.Now().UTC()})
	s.await(t, "rnext", func(r run.Run) bool { return r.State == run.Queued })
	if _, _, err := s.store.Runs.Get(ctx, "rgone"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the removed run is back: %v", err)
	}
}

// What was decided about a task outlives it for as long as runs do, and what was decided about one that exists
// stays.
func TestDecisionsAboutTasksThatAreGoneGoAsRunsDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		keep time.Duration
		want []string
	}{
		{"old", time.Nanosecond, []string{"there"}},
		{"recent", 90 * 24 * time.Hour, []string{"gone", "there"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, time.Minute)
			ctx, cancel := context.WithTimeout(t.Context(), bound)
			defer cancel()
			for _, uid := range []string{"gone", "there"} {
				for _, track := range []string{"a", "b"} {
					if _, err := s.bus.Publish(ctx, event.DecisionSubject(uid, track), "", event.Decision{TaskUID: uid}); err != nil {
						t.Fatal(err)
					}
				}
			}
			if _, err := s.store.Tasks.Put(ctx, store.TaskKey("there"), task.Task{Name: "there", UID: "there"}); err != nil {
				t.Fatal(err)
			}
			old := time.Now().UTC().Add(-100 * 24 * time.Hour)
			if _, err := s.store.Runs.Put(ctx, "rold", run.Run{ID: "rold", State: run.Failed, Created: old, Finished: old}); err != nil {
				t.Fatal(err)
			}
			x := s.retain(t, c.keep)
			for left := 1; left > 0; { // what is past retention is removed after the decisions
				runs, err := x.List(ctx, index.Query{Limit: 10})
				if err != nil {
					t.Fatal(err)
				}
				left = len(runs)
			}
			subjects, err := s.bus.Subjects(ctx, bus.StreamDecisions, event.DecisionFilter("*"))
			if err != nil {
				t.Fatal(err)
			}
			var kept []string
			for _, uid := range c.want {
				kept = append(kept, event.DecisionSubject(uid, "a"), event.DecisionSubject(uid, "b"))
			}
			slices.Sort(kept)
			if got := slices.Sorted(maps.Keys(subjects)); !slices.Equal(got, kept) {
				t.Errorf("decisions %q, want %q", got, kept)
			}
		})
	}
}

// retain removes what is past retention until t ends, and returns the index that it goes by.
func (s *site) retain(t *testing.T, keep time.Duration) *index.Index {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	x, err := index.Open(filepath.Join(t.TempDir(), "index"), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- x.Run(ctx, &s.store.Runs) }()
	k := &scheduler.Retention{Bus: s.bus, Store: s.store, Ended: x.Ended, Keep: keep, Log: log}
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done, x.Close()); err != nil {
			t.Error(err)
		}
	})
	return x
}

func (s *site) logged(t *testing.T, id string) bool {
	t.Helper()
	found := false
	err := s.bus.Tail(t.Context(), bus.StreamLogs, event.LogFilter(id), 0, false, func(uint64, []byte) bool { found = true; return true })
	if err != nil {
		t.Fatal(err)
	}
	return found
}
