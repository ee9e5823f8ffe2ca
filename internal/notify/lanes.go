package notify

import (
	"context"
	"errors"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/forge"
)

// Bounds of the statuses in hand.
const (
	statusPending = 20_000          // delivered and not settled, of all forges
	laneWaiting   = 64              // of one forge that wait for one of parallel to be sent
	laneFull      = 5 * time.Second // after which one comes again that finds no room to wait
	laneSilence   = 5 * time.Minute // at most, between two attempts at a forge that fails
)

// A lane is what is under way to one forge. Each has its own, so that one which does not answer delays no
// other: what is for it goes back to its queue until the forge is to be tried again.
type lane struct {
	waiting  []bus.Message
	busy     int
	failures int       // in a row
	until    time.Time // when to try again after a failure
}

// lanes are those of all forges, by host. Only one attempt at a time is made at a forge that has failed.
type lanes struct {
	mu   sync.Mutex
	host map[string]*lane
}

// An unreached is an error of a forge, or of the way to it, and not of what it was asked.
type unreached struct{ error }

func (u unreached) Unwrap() error { return u.error }

// sendStatuses sets the statuses that are queued until ctx is done.
func (n *Notifier) sendStatuses(ctx context.Context) {
	all := &lanes{host: map[string]*lane{}}
	var sending sync.WaitGroup
	defer sending.Wait()
	queue := bus.Consumer{Stream: bus.StreamNotify, Name: "notify-statuses", Filter: event.StatusFilter, AckWait: ackWait, Pending: statusPending}
	for ctx.Err() == nil {
		err := n.Bus.Consume(ctx, queue, func(m bus.Message) {
			var w event.Notification
			if err := m.Decode(&w); err != nil {
				m.Settle(err)
				return
			}
			if all.enter(w.Host, m, time.Now()) {
				sending.Go(func() { n.serve(ctx, all, w.Host, m) })
			}
		})
		if err != nil {
			n.Log.Warn("queue of statuses cannot be read, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// enter reports whether a message is to be sent at once, by a sender of its own. If not it waits, or has been
// put back.
func (l *lanes) enter(host string, m bus.Message, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.host[host]
	if at == nil {
		at = &lane{}
		l.host[host] = at
	}
	room := parallel
	if at.failures > 0 {
		room = 1
	}
	switch wait := at.until.Sub(now); {
	case wait > 0:
		m.Later(wait)
	case at.busy < room:
		at.busy++
		return true
	case len(at.waiting) < laneWaiting:
		at.waiting = append(at.waiting, m)
	default:
		m.Later(laneFull)
	}
	return false
}

// leave notes what came of an attempt and returns the next message of the sender, if there is one.
func (l *lanes) leave(host string, failed bool, pause func(failures int) time.Duration, now time.Time) (bus.Message, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.host[host]
	switch {
	case !failed:
		at.failures, at.until = 0, time.Time{}
	case !now.Before(at.until): // and not one of several that were under way when the forge fell silent
		at.failures++
		at.until = now.Add(pause(at.failures))
	}
	if wait := at.until.Sub(now); wait > 0 {
		for _, m := range at.waiting {
			m.Later(wait)
		}
		at.waiting = nil
	}
	if len(at.waiting) == 0 {
		at.busy--
		if at.busy == 0 && at.failures == 0 {
			delete(l.host, host)
		}
		return bus.Message{}, false
	}
	next := at.waiting[0]
	at.waiting = at.waiting[1:]
	return next, true
}

// serve sends a message of a lane, and those that wait there.
func (n *Notifier) serve(ctx context.Context, all *lanes, host string, m bus.Message) {
	for more := true; more; {
		var pause time.Duration
		failed := n.serveOne(ctx, m, &pause)
		m, more = all.leave(host, failed, func(failures int) time.Duration {
			return max(min(n.Backoff(failures), laneSilence), pause)
		}, time.Now())
	}
}

// serveOne sets one status and settles its message. It reports whether the forge failed, and how long it asks not
// to be asked.
func (n *Notifier) serveOne(ctx context.Context, m bus.Message, pause *time.Duration) (failed bool) {
	var w event.Notification
	err := m.Decode(&w)
	if err == nil {
		err = n.sendStatus(ctx, w.Run)
	}
	var u unreached
	var refused *forge.Error
	failed = errors.As(err, &u)
	if errors.As(err, &refused) {
		*pause = refused.Again
	}
	attempt, aerr := m.Attempt()
	switch {
	case err == nil, errors.Is(err, bus.ErrPoison):
		m.Settle(err)
	case ctx.Err() != nil:
		m.Later(0)
		return false
	case aerr != nil:
		m.Settle(aerr)
	case errors.Is(err, errFinal) || time.Since(w.Since) > n.GiveUp:
		n.Log.Error("status of a commit given up", "run", w.Run, "host", w.Host, "tries", attempt, "err", err)
		m.Settle(nil)
	default:
		n.Log.Warn("status of a commit not set, it will be tried again", "run", w.Run, "host", w.Host, "tries", attempt, "err", err)
		m.Later(max(min(n.Backoff(attempt), laneSilence), *pause))
	}
	return failed
}
