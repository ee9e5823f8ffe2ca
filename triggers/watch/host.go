package watch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Bounds of waiting for a registry.
const (
	maxWait   = 6 * time.Hour    // however long it asks for
	busyWait  = 30 * time.Second // if it asks to wait and does not say how long; doubled each time
	brokePoll = 15 * time.Second // before it is polled again after it could not answer; doubled each time
	maxPause  = 10 * time.Minute
)

// A host is a registry. Its fields are guarded by the Watcher's mutex.
type host struct {
	name     string
	slots    chan struct{} // one for each request
	refs     int           // requests
	polling  int           // polls
	until    time.Time     // it wants no request before
	pause    time.Time     // it is not polled before
	busy     int           // times in a row that it has asked to wait
	broken   int           // times in a row that it could not answer
	sessions map[string]session
}

// hostOf returns the registry with a name. The Watcher is locked.
func (w *Watcher) hostOf(name string) *host {
	if h, ok := w.hosts[name]; ok {
		return h
	}
	if len(w.hosts) >= max(w.maxHosts, minIdle) {
		now := time.Now()
		for n, h := range w.hosts {
			if h.refs == 0 && h.polling == 0 && h.until.Before(now) && h.pause.Before(now) {
				delete(w.hosts, n)
			}
		}
		w.maxHosts = 2 * len(w.hosts)
	}
	h := &host{name: name, slots: make(chan struct{}, requestsPerHost), sessions: map[string]session{}}
	w.hosts[name] = h
	return h
}

// enter waits until the registry may be asked one more request. The error is a *BusyError if it has asked
// to wait. Leave ends the request.
func (w *Watcher) enter(ctx context.Context, name string) (*host, error) {
	w.mu.Lock()
	h := w.hostOf(name)
	h.refs++
	w.mu.Unlock()
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		w.unref(h)
		return nil, context.Cause(ctx)
	}
	w.mu.Lock()
	until := h.until
	w.mu.Unlock()
	if time.Now().Before(until) {
		w.leave(h)
		return nil, &BusyError{name, until}
	}
	return h, nil
}

func (w *Watcher) leave(h *host) {
	<-h.slots
	w.unref(h)
}

func (w *Watcher) unref(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h.refs--
}

// succeeded notes that a registry has answered.
func (w *Watcher) succeeded(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h.busy, h.broken, h.pause = 0, 0, time.Time{}
}

// failure notes that a registry has not answered the question, and says why.
func (w *Watcher) failure(h *host, p parts, res *http.Response, err error) error {
	status, wait := 0, time.Duration(0)
	if e, ok := errors.AsType[*transport.Error](err); ok {
		status = e.StatusCode
	}
	now := time.Now()
	if res != nil {
		wait = retryAfter(res, now)
	}
	switch {
	case status == http.StatusNotFound:
		w.succeeded(h)
		return fmt.Errorf("%w in registry %s", ErrNotFound, p.host)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		w.succeeded(h)
		w.signOut(h, p)
		return fmt.Errorf("registry %s refuses to show it; does it exist, and is there a credential for the registry? (%w)", p.host, err)
	case status == http.StatusTooManyRequests || wait > 0:
		return w.rest(h, now, wait)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	h.pause = now.Add(jitter(min(brokePoll<<min(h.broken, 10), maxPause)))
	h.broken++
	return fmt.Errorf("registry %s: %w", p.host, err)
}

// signOut forgets the session of a repository, so that the next request takes the credential anew.
func (w *Watcher) signOut(h *host, p parts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(h.sessions, p.repository)
}

// rest has a registry not asked for a while.
func (w *Watcher) rest(h *host, now time.Time, wait time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if wait <= 0 {
		wait = jitter(min(busyWait<<min(h.busy, 10), maxWait))
	}
	h.busy++
	if until := now.Add(wait); until.After(h.until) {
		h.until = until
	}
	return &BusyError{h.name, h.until}
}
