package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/store"
)

const (
	probeWithin = 2 * time.Second  // that a part may take to answer
	probeFresh  = time.Second      // for which its answer is given again
	indexWithin = 30 * time.Second // that a record may take into the index, as long as others go before it
)

// A probe looks at one part of a server, and tells what it has found.
type probe struct {
	name, remedy string
	look         func(context.Context) (string, error)
}

// A readiness is what probes have found lately. Each is under way once at most, whoever asks how often.
type readiness struct {
	mu      sync.Mutex
	found   map[string]*finding
	running sync.WaitGroup

	indexed struct { // how far the index was, and since when
		sync.Mutex
		position uint64
		since    time.Time
	}
}

// A finding is what a probe has found, and when.
type finding struct {
	mu    sync.Mutex
	at    time.Time
	check apiclient.Check
	next  chan struct{} // closed when there is another; nil while nobody looks
}

// checks has all probes look, at once, and returns what they find within a bound.
func (r *readiness) checks(ctx context.Context, probes []probe) []apiclient.Check {
	list := make([]apiclient.Check, len(probes))
	var g sync.WaitGroup
	for i, p := range probes {
		g.Go(func() { list[i] = r.ask(ctx, p) })
	}
	g.Wait()
	return list
}

func (r *readiness) ask(ctx context.Context, p probe) apiclient.Check {
	r.mu.Lock()
	if r.found == nil {
		r.found = map[string]*finding{}
	}
	f := r.found[p.name]
	if f == nil {
		f = &finding{}
		r.found[p.name] = f
	}
	r.mu.Unlock()

	f.mu.Lock()
	if f.next == nil && time.Since(f.at) < probeFresh {
		defer f.mu.Unlock()
		return f.check
	}
	if f.next == nil {
		f.next = make(chan struct{})
		r.running.Go(func() { f.look(p) })
	}
	next := f.next
	f.mu.Unlock()

	late := time.NewTimer(probeWithin + probeWithin/4)
	defer late.Stop()
	select {
	case <-next:
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.check
	case <-late.C:
	case <-ctx.Done():
	}
	return apiclient.Check{Name: p.name, Detail: fmt.Sprintf("no answer within %s", probeWithin), Remedy: p.remedy}
}

// look has a probe look and notes what it finds.
func (f *finding) look(p probe) {
	ctx, cancel := context.WithTimeout(context.Background(), probeWithin)
	defer cancel()
	detail, err := p.look(ctx)
	c := apiclient.Check{Name: p.name, OK: err == nil, Detail: detail}
	switch {
	case err != nil && ctx.Err() != nil:
		c.Detail, c.Remedy = fmt.Sprintf("no answer within %s", probeWithin), p.remedy
	case err != nil:
		c.Detail, c.Remedy = err.Error(), p.remedy
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.check, f.at = c, time.Now()
	close(f.next)
	f.next = nil
}

// probes look at all parts that this process has.
func (n *node) probes() []probe {
	list := n.stateProbes()
	if n.registry != nil && n.cfg.blobs != "" {
		list = append(list, probe{"storage of blobs", "see that it runs and that its credentials are valid", n.registry.CheckBlobs})
	}
	if n.builder != nil {
		list = append(list, probe{"build daemon", "see the server's log", func(ctx context.Context) (string, error) {
			info, err := n.builder.client.Info(ctx)
			return "BuildKit " + info.Version, err
		}})
	}
	return list
}

// stateProbes look at what this process keeps.
func (n *node) stateProbes() []probe {
	var list []probe
	if n.bus != nil {
		look := n.probeBus
		if n.onlyWorks() {
			look = n.probeRegistration
		}
		list = append(list, probe{"message store", "see that NATS runs and has room; it takes up work again by itself when it answers", look})
	}
	list = append(list, probe{"disk", "free space on the disk of the data directory", n.probeDisk})
	if n.registry != nil {
		list = append(list, probe{"registry", "free space on its disk, then see the server's log", func(ctx context.Context) (string, error) {
			return "takes and gives images", n.registry.Ping(ctx)
		}})
	}
	if n.index != nil && n.bus != nil {
		list = append(list, probe{"index", "start the server again; index.db can be deleted while it is stopped", n.probeIndex})
	}
	return list
}

func (n *node) probeBus(ctx context.Context) (string, error) {
	where := "of this server"
	if n.cfg.nats.others() {
		where = n.bus.Conn().ConnectedUrlRedacted()
	}
	return "takes messages: " + where, n.bus.Probe(ctx, event.Hash(n.identity.Recipient()))
}

// probeRegistration reports whether NATS answers, and has taken lately what the worker tells of itself: a process that
// does nothing but execute runs may write little else.
func (n *node) probeRegistration(ctx context.Context) (string, error) {
	if err := n.store.Workers.Reach(ctx); err != nil {
		return "", fmt.Errorf("message store: %w", err)
	}
	if w := n.works.Load(); w != nil && time.Since(w.Heard()) > n.store.LeaseTTL {
		return "", errors.New("the worker is not registered, and gets no runs")
	}
	return "takes messages: " + n.bus.Conn().ConnectedUrlRedacted(), nil
}

// probeDisk reports whether the disk of the data directory has the room that is kept in reserve.
func (n *node) probeDisk(context.Context) (string, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(n.cfg.data, &st); err != nil {
		return "", fmt.Errorf("%s: %w", n.cfg.data, err)
	}
	free := int64(st.Bavail) * st.Bsize
	if free < diskReserve {
		return "", fmt.Errorf("%d MB are free on the disk of %s, %d MB are kept in reserve: nothing more is taken", free>>20, n.cfg.data, diskReserve>>20)
	}
	return fmt.Sprintf("%d MB are free on the disk of %s", free>>20, n.cfg.data), nil
}

// probeIndex reports whether the index follows the records of runs. One that is built anew may take its time, as
// long as it goes on.
func (n *node) probeIndex(ctx context.Context) (string, error) {
	head, stored, err := n.bus.Head(ctx, "KV_"+store.BucketRuns, "$KV."+store.BucketRuns+".>")
	if errors.Is(err, bus.ErrNone) {
		return "has read all records", nil
	}
	if err != nil {
		return "", err
	}
	at, now := n.index.Position(), time.Now()
	seen := &n.ready.indexed
	seen.Lock()
	defer seen.Unlock()
	if seen.since.IsZero() || at != seen.position {
		seen.position, seen.since = at, now
	}
	switch {
	case at >= head:
		return "has read all records", nil
	case now.Sub(seen.since) < indexWithin || now.Sub(stored) < indexWithin:
		return fmt.Sprintf("is reading records: %d of %d", at, head), nil
	}
	return "", fmt.Errorf("has stopped at record %d of %d, %s ago", at, head, now.Sub(seen.since).Round(time.Second))
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller may be gone
}
