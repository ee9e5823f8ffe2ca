package webhook_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"testing"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/webhook"
)

// TestFullStoreLosesNothing fills a real store: what is accepted stays, what is refused is accepted when the
// sender tries again and there is room.
func TestFullStoreLosesNothing(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	creator, err := b.Creator()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = creator.Close() })
	limit := func(size int64) {
		t.Helper()
		stream, err := b.JetStream().Stream(t.Context(), bus.StreamEvents)
		if err != nil {
			t.Fatal(err)
		}
		cfg := stream.CachedInfo().Config
		cfg.MaxBytes = size
		if _, err := b.JetStream().UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	s := newServer(t)
	s.Config.Handler = &webhook.Handler{Publish: webhook.Publisher(creator), Hooks: func(context.Context, string) (webhook.Hook, error) {
		return hookOf("github", testSecret, ""), nil
	}}
	deliver := func(n int) answer {
		body := githubPush(t, strconv.FormatInt(int64(n), 16), strconv.FormatInt(int64(n+1), 16))
		h := githubHeader("push", fmt.Sprint(n))
		h.Set("X-Hub-Signature-256", "sha256="+hexMAC(testSecret, body))
		return s.send(t, http.MethodPost, "/hooks/github/h1", h, body)
	}
	const deliveries = 12
	limit(4 << 10)
	var refused []int
	for n := range deliveries {
		switch got := deliver(n); {
		case got.status == http.StatusServiceUnavailable && got.header.Get("Retry-After") == "60":
			refused = append(refused, n)
		case got.status != http.StatusAccepted || len(refused) > 0:
			t.Fatalf("delivery %d: status %d, Retry-After %q, after %d refusals", n, got.status, got.header.Get("Retry-After"), len(refused))
		}
	}
	if len(refused) == 0 || len(refused) == deliveries {
		t.Fatalf("%d of %d deliveries refused, want some", len(refused), deliveries)
	}
	limit(4 << 20)
	for n := range deliveries { // those that were accepted too: their answer may have been lost
		if got := deliver(n); got.status != http.StatusAccepted {
			t.Errorf("delivery %d, again: status %d", n, got.status)
		}
	}
	stored := 0
	err = b.Tail(t.Context(), bus.StreamEvents, event.GitFilter, 0, false, func(uint64, []byte) bool { stored++; return true })
	if err != nil || stored != deliveries {
		t.Errorf("%d events stored, %v, want %d", stored, err, deliveries)
	}
}
