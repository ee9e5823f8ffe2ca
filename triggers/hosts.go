package triggers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"kiln/internal/source/git"
)

const (
	lookUpWithin = 20 * time.Second // a server lists its refs
	fetchWithin  = 10 * time.Minute // a server sends a commit; much sooner it has to send something
	quietFor     = 5 * time.Second  // a server that says nothing for so long
	waitingMost  = inHand / 2       // is waited for by no more than these
	patience     = time.Second      // others wait for one of them to be answered
	hostsMost    = 1000             // servers that are remembered
)

// hosts remembers which servers of repositories do not answer, so that who waits for one of them takes no
// place from those who need another. One that did not answer is not asked for a while, then by one only,
// until it has answered. A server that refuses, or fails at once, costs nobody any time and is not
// remembered. Half of those who decide may wait for the same server, whatever it does. The zero value is ready
// for use.
type hosts struct {
	mu    sync.Mutex
	known map[string]*host // asked now, or in trouble
}

type host struct {
	asking int
	heard  time.Time // the last answer; before there was one, when it was first asked
	err    error     // why it is not asked before next; nil if it is
	next   time.Time
	pause  time.Duration
	probed bool          // somebody finds out whether it answers again
	left   chan struct{} // closed when somebody who asked has left; nil if nobody waits for that
}

// ask calls do, which asks the server of a repository, with a time limit. The error is git.ErrUnavailable if
// the server does not answer, or has not lately.
func (h *hosts) ask(ctx context.Context, location string, within time.Duration, do func(ctx context.Context) error) error {
	name, _, _ := strings.Cut(repositoryKey(location), "/")
	it, err := h.enter(ctx, name)
	if err != nil {
		return err
	}
	begun := time.Now()
	late := fmt.Errorf("%w: %s does not answer within %s", git.ErrUnavailable, name, within)
	limited, cancel := context.WithTimeoutCause(ctx, within, late)
	defer cancel()
	err = do(limited)
	silent := ctx.Err() == nil && errors.Is(err, git.ErrUnavailable) && time.Since(begun) > min(within/2, quietFor)
	h.leave(name, it, silent, ctx.Err() != nil, err)
	return err
}

// enter returns a server that may be asked. If many ask it already, it waits for one of them to leave.
func (h *hosts) enter(ctx context.Context, name string) (*host, error) {
	for {
		it, left, wait, err := h.tryEnter(name)
		if left == nil {
			return it, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-left:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// tryEnter is enter without waiting: what is to be waited for, and for how long, is returned.
func (h *hosts) tryEnter(name string) (it *host, left <-chan struct{}, wait time.Duration, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	it = h.known[name]
	if it == nil {
		if len(h.known) >= hostsMost {
			maps.DeleteFunc(h.known, func(_ string, it *host) bool { return it.asking == 0 })
		}
		if h.known == nil {
			h.known = map[string]*host{}
		}
		it = &host{heard: now}
		h.known[name] = it
	}
	since := now.Sub(it.heard)
	switch {
	case it.err != nil && (it.probed || now.Before(it.next)):
		return nil, nil, 0, fmt.Errorf("%w: %s has not answered lately and is not asked before %s (%v)", git.ErrUnavailable, name,
			it.next.UTC().Format(time.TimeOnly), it.err)
	case it.asking >= waitingMost && since >= patience:
		return nil, nil, 0, fmt.Errorf("%w: %s has not answered for %s, and %d look-ups wait for it", git.ErrUnavailable, name,
			since.Round(time.Second), it.asking)
	case it.asking >= waitingMost:
		if it.left == nil {
			it.left = make(chan struct{})
		}
		return nil, it.left, patience - since, nil
	}
	it.probed = it.err != nil
	it.asking++
	return it, nil, 0, nil
}

// leave notes how a server has answered. Who gave up by himself has found out nothing.
func (h *hosts) leave(name string, it *host, silent, gaveUp bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	it.asking--
	if it.left != nil {
		close(it.left)
		it.left = nil
	}
	switch {
	case silent:
		if it.err == nil || it.probed { // not once for each of those who waited at the same time
			it.pause = min(max(2*it.pause, retrySoonest), retryLatest)
		}
		it.err, it.probed, it.next = err, false, now.Add(it.pause)
	case gaveUp:
		it.probed = false
	default:
		it.heard, it.err, it.probed, it.pause = now, nil, false, 0
	}
	if it.asking == 0 && it.err == nil {
		delete(h.known, name)
	}
}
