package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// sentinels counts the tags that drain has made.
var sentinels atomic.Int64

// drain returns the events that are waiting, and takes them. Events come in order, so that of a tag
// made now is the last.
func drain(t testing.TB, s *registry.Store) (got []registry.OutboxEvent) {
	t.Helper()
	tag := fmt.Sprint("s", sentinels.Add(1))
	if _, err := s.PutManifest(t.Context(), "sentinel", tag, ociIndex, []byte(`{"schemaVersion":2,"manifests":[]}`)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	err := s.Relay(ctx, func(_ context.Context, events []registry.OutboxEvent) error {
		for _, e := range events {
			if e.Repository == "sentinel" && e.Tag == tag {
				stop()
			} else if e.Repository != "sentinel" {
				got = append(got, e)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Fatal("the relay did not deliver what was recorded")
	}
	return got
}

func show(events []registry.OutboxEvent) (out []string) {
	for _, e := range events {
		s := e.Type + " " + e.Repository
		if e.Tag != "" {
			s += ":" + e.Tag
		}
		if e.Run != "" {
			s += fmt.Sprintf(" by %s/%d/%s", e.Run, e.Attempt, e.Step)
		}
		out = append(out, s)
	}
	return out
}

func TestEventsTellOfTagsAndManifestsOnly(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	m := image(t, r, "a", "layer")
	put := func(tag string) {
		want(t, r, http.StatusCreated, "PUT", "/v2/a/manifests/"+tag, m, "Content-Type", ociManifest)
	}
	put("1")
	put("1") // nothing changes
	put("2")
	d := stage(t, r, staging, "staged") // kiln's own: no event
	raise(t, r.Store, 1)
	for range 2 {
		p := publication(1, registry.Tag{Repository: "b", Tag: "u", Digest: d, Unique: true}, registry.Tag{Repository: "b", Tag: "latest", Digest: d})
		if _, err := r.Store.Publish(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/1", nil)
	desc, err := r.Store.Resolve(t.Context(), "a", "2")
	if err != nil {
		t.Fatal(err)
	}
	want(t, r, http.StatusAccepted, "DELETE", "/v2/a/manifests/"+desc.Digest, nil)
	events := drain(t, r.Store)
	wantEvents := []string{
		"image.pushed a:1", "image.pushed a:2",
		"image.pushed b:u by r1/1/build", "image.pushed b:latest by r1/1/build",
		"image.deleted a:1", "image.deleted a:2", "image.deleted a",
	}
	if got := show(events); !slices.Equal(got, wantEvents) {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wantEvents, "\n"))
	}
	for i, e := range events {
		if e.ID != fmt.Sprintf("%s.%d", r.Store.UUID(), i+1) || e.Digest == "" || e.MediaType != ociManifest || e.Time.IsZero() {
			t.Errorf("event %d: %+v", i, e)
		}
	}
}

func TestRelayRepeatsUntilDeliveredAndForgets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *registry.Store {
		t.Helper()
		s, err := registry.Open(dir, registry.Options{Reserve: -1})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	if _, err := s.PutManifest(t.Context(), "a", "1", ociIndex, []byte(`{"schemaVersion":2,"manifests":[]}`)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var ids []string
	err := s.Relay(ctx, func(_ context.Context, events []registry.OutboxEvent) error {
		ids = append(ids, events[0].ID)
		if err := s.Relay(ctx, nil); err == nil {
			t.Error("a second relay was allowed")
		}
		if len(ids) == 3 {
			cancel() // a crash before the delivery is known
		}
		return errors.New("refused")
	})
	if err != nil || len(ids) != 3 || ids[0] != ids[2] {
		t.Fatalf("deliveries %q, %v", ids, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	if got := drain(t, s); len(got) != 1 || got[0].ID != ids[0] {
		t.Fatalf("after reopening: %v, want the event %s", got, ids[0])
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	if got := drain(t, s); len(got) != 0 {
		t.Errorf("delivered events came again: %v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRelayWakesUpOnCommit(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	ctx, stop := context.WithCancel(t.Context())
	got := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- r.Store.Relay(ctx, func(_ context.Context, events []registry.OutboxEvent) error {
			for _, e := range events {
				got <- e.Tag
			}
			return nil
		})
	}()
	for i := range 5 {
		tag := fmt.Sprint("t", i)
		if _, err := r.Store.PutManifest(t.Context(), "a", tag, ociIndex, []byte(`{"schemaVersion":2,"manifests":[]}`)); err != nil {
			t.Fatal(err)
		}
		if e := <-got; e != tag {
			t.Errorf("event of %s, want %s", e, tag)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
