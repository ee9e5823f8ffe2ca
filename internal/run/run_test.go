package run_test

import (
	"crypto/rand"
	"testing"
	"time"

	"kiln/internal/run"
)

func TestIDsAreUniqueSortAndAreValidTags(t *testing.T) {
	seen, last := map[string]bool{}, ""
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 2000 {
		id, err := run.NewID(at.Add(time.Duration(i)*time.Second), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if seen[id] || !run.ValidID(id) || id <= last {
			t.Fatalf("ID %q after %q: not new, not valid or not in order", id, last)
		}
		seen[id], last = true, id
	}
	for _, bad := range []string{"", "r1", "R00000000000", "r0000000000.", "r000000000000"} {
		if run.ValidID(bad) {
			t.Errorf("ValidID(%q) = true", bad)
		}
	}
}

func TestMinterMintsNoIDTwice(t *testing.T) {
	var m run.Minter
	seen := map[string]bool{}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 100_000 {
		now := at
		if i%2 == 1 {
			now = at.Add(-time.Minute) // the clock is set back and forth
		}
		id, err := m.New(now, rand.Reader)
		if err != nil || seen[id] || !run.ValidID(id) {
			t.Fatalf("ID %q, %v: not new or not valid", id, err)
		}
		seen[id] = true
	}
	first, err := m.New(at.Add(time.Second), rand.Reader)
	if err != nil || seen[first] {
		t.Fatalf("ID %q of the next second, %v: not new", first, err)
	}
	for id := range seen {
		if id[:7] >= first[:7] {
			t.Fatalf("ID %q is not before %q of the next second", id, first)
		}
	}
}

func TestFinalStatesAreNeverLeft(t *testing.T) {
	all := []run.State{run.Queued, run.Started, run.Running, run.Succeeded, run.Failed, run.Canceled, run.Error, run.Timeout}
	for _, s := range all {
		reachable := false
		for _, to := range all {
			if s.Final() && s.CanBecome(to) {
				t.Errorf("%s can become %s", s, to)
			}
			reachable = reachable || to.CanBecome(s) || run.State("").CanBecome(s)
		}
		if !reachable {
			t.Errorf("%s cannot be reached", s)
		}
	}
}
