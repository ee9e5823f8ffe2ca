package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	_ "embed" // the delivery
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/webhook"
)

//go:embed testdata/github-push-8k.json
var pushDelivery []byte

const (
	hookSecret  = "a secret of the benchmark"
	senders     = 16   // connections
	deliveries  = 4000 // of a round
	intakeMust  = 1 / 0.7
	intakeSync  = 1 / 0.2
	intakeRatio = 2 // of the p99

	storedWithin = 30 * time.Second // after a round
)

// intake measures deliveries of an 8 KB push by GitHub, each signed and with an ID of its own, beside a
// handler that does nothing but check the signature. Both are in this process, as is the sender, so all
// three share its processors and its garbage collector. After each round every delivery must be in the
// stream of events, once. The rounds are bursts: what is done of them afterwards, when the senders pause, is
// waited for, and not part of the time.
func intake(ctx context.Context, l *lab) ([]result, error) {
	var results []result
	for _, mode := range []struct {
		name    string
		relaxed bool
		must    float64
	}{{"default sync", true, intakeMust}, {"sync always", false, intakeSync}} {
		ours, peer, err := intakeWith(ctx, l, filepath.Join(l.dir, "hooks "+mode.name), mode.relaxed)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", mode.name, err)
		}
		a, b := summarize(ours.each), summarize(peer.each)
		results = append(results, result{What: "rate of a bare handler to the hook's, " + mode.name, Unit: "x", Value: peer.rate() / ours.rate(),
			Must: mode.must, Kiln: &a, Peer: &b, PeerName: "bare handler",
			Note: fmt.Sprintf("%.0f deliveries/s beside %.0f, the hook's rate is %.2f x; the last of %d is an event %.0f ms later",
				ours.rate(), peer.rate(), ours.rate()/peer.rate(), deliveries, ours.after.Seconds()*1000*deliveries/float64(len(ours.each)))})
		if mode.relaxed {
			results = append(results, result{What: "p99 of a delivery to the bare handler's, " + mode.name, Unit: "x", Value: a.P99 / b.P99,
				Must: intakeRatio, Kiln: &a, Peer: &b, PeerName: "bare handler", Note: fmt.Sprintf("p99 %.1f beside %.1f ms", a.P99, b.P99)})
		}
	}
	return results, nil
}

// A burst is deliveries made by all senders at once.
type burst struct {
	each  []time.Duration
	took  time.Duration
	after time.Duration // until all were events
}

func (b *burst) add(o burst) {
	b.each, b.took, b.after = append(b.each, o.each...), b.took+o.took, b.after+o.after
}

func (b *burst) rate() float64 { return float64(len(b.each)) / b.took.Seconds() }

// intakeWith lets the hook, on a store in dir, and the bare handler take turns.
func intakeWith(ctx context.Context, l *lab, dir string, relaxed bool) (ours, peer burst, err error) {
	log := slog.New(slog.DiscardHandler)
	s, err := bus.StartServer(bus.ServerConfig{Dir: dir, Relaxed: relaxed, Log: log})
	if err != nil {
		return ours, peer, err
	}
	defer s.Shutdown()
	nc, err := s.Connect("bench")
	if err != nil {
		return ours, peer, err
	}
	defer nc.Close()
	b, err := bus.Open(ctx, nc, log)
	if err != nil {
		return ours, peer, err
	}
	creator, err := b.Creator()
	if err != nil {
		return ours, peer, err
	}
	defer func() { err = errors.Join(err, creator.Close()) }()
	taken, err := webhook.NewIntake(ctx, b, creator, log)
	if err != nil {
		return ours, peer, err
	}
	running, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- taken.Run(running) }()
	defer func() { stop(); err = errors.Join(err, <-stopped, taken.Close()) }()
	hook := &webhook.Handler{Intake: taken, Publish: webhook.Publisher(creator), Hooks: func(_ context.Context, id string) (webhook.Hook, error) {
		return webhook.Hook{ID: id, Provider: "github", Secret: hookSecret, Enabled: true}, nil
	}}
	made := 0
	for round := range 1 + max(4, l.n/3) {
		p, err := deliver(ctx, http.HandlerFunc(bareHook), &made)
		if err != nil {
			return ours, peer, err
		}
		before := made
		o, err := deliver(ctx, hook, &made)
		if err != nil {
			return ours, peer, err
		}
		begin := time.Now()
		if err := stored(ctx, b, (made-before)*(round+1)); err != nil {
			return ours, peer, err
		}
		o.after = time.Since(begin)
		if round > 0 { // the first warms up
			ours.add(o)
			peer.add(p)
		}
	}
	return ours, peer, nil
}

// stored waits until no delivery waits to become an event; then there must be exactly want.
func stored(ctx context.Context, b *bus.Bus, want int) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(storedWithin); ; <-tick.C {
		waiting, err := messages(ctx, b, bus.StreamIntake)
		if err != nil {
			return err
		}
		got, err := messages(ctx, b, bus.StreamEvents)
		switch {
		case err != nil:
			return err
		case waiting == 0 && got == want:
			return nil
		case waiting == 0 || got > want || time.Now().After(end):
			return fmt.Errorf("%d events are stored of %d deliveries, %d batches wait", got, want, waiting)
		}
	}
}

// messages returns how many messages a stream has.
func messages(ctx context.Context, b *bus.Bus, stream string) (int, error) {
	st, err := b.JetStream().Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	return int(st.CachedInfo().State.Msgs), nil
}

// bareHook is the least that a receiver does.
func bareHook(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 25<<20))
	switch {
	case err != nil:
		w.WriteHeader(http.StatusBadRequest)
	case !hmac.Equal([]byte(signature(body)), []byte(r.Header.Get("X-Hub-Signature-256"))):
		w.WriteHeader(http.StatusNotFound)
	default:
		w.WriteHeader(http.StatusAccepted)
	}
}

func signature(body []byte) string {
	m := hmac.New(sha256.New, []byte(hookSecret))
	m.Write(body)
	return "sha256=" + hex.EncodeToString(m.Sum(nil))
}

// deliver has a round of deliveries made to a handler, numbered from made on.
func deliver(ctx context.Context, h http.Handler, made *int) (burst, error) {
	s := httptest.NewServer(h)
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: senders}}
	defer client.CloseIdleConnections()
	signed, first := signature(pushDelivery), *made
	*made += deliveries
	times := make([][]time.Duration, senders)
	g, ctx := errgroup.WithContext(ctx)
	begin := time.Now()
	for i := range senders {
		g.Go(func() error {
			for n := i; n < deliveries; n += senders {
				took, err := deliverOne(ctx, client, s.URL, signed, first+n)
				if err != nil {
					return err
				}
				times[i] = append(times[i], took)
			}
			return nil
		})
	}
	err := g.Wait()
	return burst{each: slices.Concat(times...), took: time.Since(begin)}, err
}

func deliverOne(ctx context.Context, client *http.Client, server, signed string, id int) (time.Duration, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, server+"/hooks/github/bench", bytes.NewReader(pushDelivery))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-GitHub-Event", "push")
	r.Header.Set("X-GitHub-Delivery", fmt.Sprint(id))
	r.Header.Set("X-Hub-Signature-256", signed)
	begin := time.Now()
	resp, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusAccepted {
		return 0, fmt.Errorf("delivery %d: %s", id, resp.Status)
	}
	return time.Since(begin), nil
}
