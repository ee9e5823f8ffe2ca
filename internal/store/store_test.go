package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/run"
	"kiln/internal/store"
)

func open(t *testing.T, ttl time.Duration) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), natstest.Start(t).JetStream(), ttl)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestUpdateOfAStaleRevisionIsAConflict(t *testing.T) {
	t.Parallel()
	s := open(t, time.Minute)
	rev, err := s.Runs.Create(t.Context(), "ra", run.Run{ID: "ra"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Runs.Create(t.Context(), "ra", run.Run{ID: "ra"}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("second Create: %v, want ErrConflict", err)
	}
	if _, err := s.Runs.Update(t.Context(), "ra", run.Run{ID: "ra", State: run.Started}, rev); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Runs.Update(t.Context(), "ra", run.Run{ID: "ra", State: run.Failed}, rev); !errors.Is(err, store.ErrConflict) {
		t.Errorf("stale Update: %v, want ErrConflict", err)
	}
	if r, _, err := s.Runs.Get(t.Context(), "ra"); err != nil || r.State != run.Started {
		t.Errorf("Get = %s, %v, want Started", r.State, err)
	}
	if _, _, err := s.Runs.Get(t.Context(), "rb"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of nothing: %v, want ErrNotFound", err)
	}
}

func TestLeaseThatIsNotRefreshedWakesTheWatcher(t *testing.T) {
	t.Parallel()
	s := open(t, time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.Leases.Put(ctx, "ra.1", event.Lease{Attempt: 1}); err != nil {
		t.Fatal(err)
	}
	gone := false
	err := s.Leases.Watch(ctx, ">", func(e *store.Entry[event.Lease]) bool {
		gone = e != nil && e.Gone && e.Key == "ra.1"
		return !gone
	})
	if err != nil || !gone {
		t.Errorf("gone %v, %v: the lease did not expire", gone, err)
	}
}

// What an older version has stored is taken over, and only what is removed gets an end.
func TestRemovedRunLeavesNothingForEver(t *testing.T) {
	t.Parallel()
	js := natstest.Start(t).JetStream()
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: store.BucketRuns})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "ra", []byte(`{"id":"ra"}`)); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), js, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	_, rev, err := s.Runs.Get(t.Context(), "ra")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Runs.Remove(t.Context(), "ra", rev); err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), "KV_"+store.BucketRuns)
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.GetLastMsgForSubject(t.Context(), "$KV.runs.ra")
	if err != nil {
		t.Fatal(err)
	}
	if m.Header.Get(jetstream.MsgTTLHeader) == "" {
		t.Errorf("the mark of a removed run stays for ever: %v", m.Header)
	}
}
