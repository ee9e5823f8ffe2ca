package triggers

import (
	"context"
	"errors"
	"sync"
	"time"

	"kiln/internal/bus"
)

// Bounds of the decisions that are ahead of the scheduler. The stream keeps twice as many of a track as
// may be: some may have been written by a process before this one.
const (
	maxAhead   = 32
	maxCounted = 50_000 // tracks
	aheadEvery = 50 * time.Millisecond
)

// errAhead is why a decision is not stored: the one that would be dropped for it has not been executed yet.
var errAhead = errors.New("the scheduler is behind; what is due is decided later")

// A backlog keeps a track from being decided further than the stream of decisions remembers before the
// scheduler has read it: what is dropped by then would be a run that never was. The zero value is ready to
// use. It is safe for concurrent use.
type backlog struct {
	mu    sync.Mutex
	ahead map[string]int // by subject: decisions since the scheduler was last known to have read all
}

// admit counts a decision that is about to be stored on a subject after the one with the sequence last. If
// too many are there it waits until the scheduler has settled that one; the error wraps errAhead if it takes
// too long.
func (b *backlog) admit(ctx context.Context, s *bus.Bus, subject string, last uint64) error {
	if b.count(subject) {
		return nil
	}
	if err := settled(ctx, s, last); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ahead[subject] = 1
	return nil
}

// count reports whether one more decision may be stored at once, and counts it.
func (b *backlog) count(subject string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ahead == nil {
		b.ahead = map[string]int{}
	}
	n := b.ahead[subject]
	if n >= maxAhead {
		return false
	}
	if n == 0 && len(b.ahead) >= maxCounted {
		for some := range b.ahead { // rarely, and as harmless as a restart: its count begins anew
			delete(b.ahead, some)
			break
		}
	}
	b.ahead[subject] = n + 1
	return true
}

// settled waits until the scheduler has settled the decision with a sequence.
func settled(ctx context.Context, s *bus.Bus, seq uint64) error {
	timed, cancel := context.WithTimeout(ctx, confirmWithin)
	defer cancel()
	tick := time.NewTicker(aheadEvery)
	defer tick.Stop()
	for {
		done, err := s.Settled(timed, bus.StreamDecisions, schedulerName, seq)
		if done || err != nil && timed.Err() == nil {
			return err
		}
		select {
		case <-tick.C:
		case <-timed.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return errAhead
		}
	}
}

// schedulerName is the durable name under which the scheduler reads decisions.
const schedulerName = "scheduler"
