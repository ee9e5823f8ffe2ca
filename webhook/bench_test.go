package webhook_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/webhook"
)

const benchSecret = "a secret of the benchmark"

// connections is how many senders deliver at once.
const connections = 16

// BenchmarkIntake measures deliveries of an 8 KB push to a hook of GitHub's, each with an ID of its own,
// against a handler that does nothing but check the signature.
func BenchmarkIntake(b *testing.B) {
	body, err := os.ReadFile("testdata/github-push-8k.json")
	if err != nil {
		b.Fatal(err)
	}
	noop := func(context.Context, string, []byte) error { return nil }
	for _, c := range []struct {
		name    string
		publish func(b *testing.B) func(context.Context, string, []byte) error
	}{
		{"noop", func(*testing.B) func(context.Context, string, []byte) error { return noop }},
		{"jetstream", func(b *testing.B) func(context.Context, string, []byte) error {
			return webhook.Publisher(startBus(b, true))
		}},
		{"jetstream-sync-always", func(b *testing.B) func(context.Context, string, []byte) error {
			return webhook.Publisher(startBus(b, false))
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			h := benchHandler(c.publish(b))
			deliver(b, http.HandlerFunc(bare), body, 2000) // warms up
			deliver(b, h, body, 2000)
			// In turns, so that what else the machine does meets both.
			var ours, peer series
			for b.Loop() {
				peer.add(deliver(b, http.HandlerFunc(bare), body, 4000))
				ours.add(deliver(b, h, body, 4000))
			}
			b.ReportMetric(ours.rate(), "deliveries/s")
			b.ReportMetric(peer.rate(), "bare/s")
			b.ReportMetric(ours.rate()/peer.rate(), "ratio")
			b.ReportMetric(float64(ours.p99())/float64(peer.p99()), "p99-ratio")
			b.ReportMetric(float64(ours.p99())/1e6, "p99-ms")
		})
	}
}

// bare is the least that a receiver does.
func bare(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 25<<20))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if !hmac.Equal([]byte(sign(body)), []byte(r.Header.Get("X-Hub-Signature-256"))) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func sign(body []byte) string {
	m := hmac.New(sha256.New, []byte(benchSecret))
	m.Write(body)
	return "sha256=" + hex.EncodeToString(m.Sum(nil))
}

func benchHandler(publish func(context.Context, string, []byte) error) *webhook.Handler {
	return &webhook.Handler{Publish: publish, Hooks: func(_ context.Context, id string) (webhook.Hook, error) {
		return webhook.Hook{ID: id, Provider: "github", Secret: benchSecret, Enabled: true}, nil
	}}
}

func startBus(b *testing.B, relaxed bool) *bus.Bus {
	b.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := bus.StartServer(bus.ServerConfig{Dir: b.TempDir(), Relaxed: relaxed, Log: log})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Shutdown)
	nc, err := s.Connect("bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	opened, err := bus.Open(b.Context(), nc, log)
	if err != nil {
		b.Fatal(err)
	}
	return opened
}

// A series is the latencies of deliveries and how long all of them took.
type series struct {
	each []time.Duration
	took time.Duration
}

func (s *series) add(o series) { s.each, s.took = append(s.each, o.each...), s.took+o.took }

func (s *series) rate() float64 { return float64(len(s.each)) / s.took.Seconds() }

func (s *series) p99() time.Duration {
	slices.Sort(s.each)
	return s.each[len(s.each)*99/100]
}

var benchIDs atomic.Int64

// deliver has n deliveries made to a handler.
func deliver(b *testing.B, h http.Handler, body []byte, n int) series {
	s := httptest.NewServer(h)
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}}
	defer client.CloseIdleConnections()
	signature := sign(body)
	results := make([][]time.Duration, connections)
	start := time.Now()
	var senders sync.WaitGroup
	for i := range connections {
		senders.Go(func() {
			for range n / connections {
				r, err := http.NewRequest(http.MethodPost, s.URL+"/hooks/github/bench", bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("X-GitHub-Event", "push")
				r.Header.Set("X-GitHub-Delivery", fmt.Sprint(benchIDs.Add(1)))
				r.Header.Set("X-Hub-Signature-256", signature)
				began := time.Now()
				resp, err := client.Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				results[i] = append(results[i], time.Since(began))
				if resp.StatusCode != http.StatusAccepted {
					b.Errorf("status %d", resp.StatusCode)
					return
				}
			}
		})
	}
	senders.Wait()
	return series{each: slices.Concat(results...), took: time.Since(start)}
}
