package watch

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/natstest"
	"kiln/internal/store"
)

// What is stored of an image goes when nobody has tracked it for a while, and no earlier; what others
// have stored stays.
func TestSweepRemovesWhatIsTrackedNoLonger(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	s, err := store.Open(t.Context(), b.JetStream(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	const kept, gone, own = graph.Name("a.invalid/x:1"), graph.Name("a.invalid/x:2"), graph.Name("kiln.example/x:1")
	for _, n := range []graph.Name{kept, gone, own} {
		if _, err := s.Images.Put(t.Context(), key(n), event.TrackedImage{Name: string(n), Next: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	w := &Watcher{Store: s, Bus: b, Registry: "kiln.example", Every: time.Hour, Log: slog.New(slog.DiscardHandler)}
	w.init()
	if err := w.recall(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Track([]graph.Name{kept, gone})
	if due, _ := w.due(time.Now()); len(due) != 0 {
		t.Errorf("%v are polled before their time", due)
	}
	w.sweep(t.Context())
	w.Track([]graph.Name{kept})
	w.sweep(t.Context())
	if left := names(t, s); len(left) != 3 {
		t.Errorf("stored are %v, want all three", left)
	}
	w.sweep(t.Context())
	if left := names(t, s); len(left) != 2 || left[gone] {
		t.Errorf("stored are %v, want all but %s", left, gone)
	}
}

func names(t *testing.T, s *store.Store) map[graph.Name]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	left := map[graph.Name]bool{}
	err := s.Images.Watch(ctx, ">", func(e *store.Entry[event.TrackedImage]) bool {
		if e != nil && !e.Gone {
			left[graph.Name(e.Value.Name)] = true
		}
		return e != nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// What is remembered of images and registries that nobody tracks is bounded.
func TestWhatNobodyTracksIsForgotten(t *testing.T) {
	t.Parallel()
	w := &Watcher{}
	w.init()
	tracked := w.imageOf("a.invalid/x:1")
	tracked.tracked = true
	for i := range 10_000 {
		n := graph.Name("h" + time.Duration(i).String() + ".invalid/x:1")
		w.imageOf(n)
		w.hostOf(split(n).host)
	}
	if len(w.images) > 2*minIdle || len(w.hosts) > 2*minIdle || w.imageOf("a.invalid/x:1") != tracked {
		t.Errorf("%d images and %d registries are remembered", len(w.images), len(w.hosts))
	}
}
