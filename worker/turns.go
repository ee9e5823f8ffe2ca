package worker

import (
	"context"
	"slices"
	"sync"
)

// turns lets the steps of a worker's runs take turns: so many are executed at once, and among runs that
// wait the one with the fewest at work is next. A run's first step never waits for another run's steps:
// they leave room for one of each run that the worker may be given. The zero value has no limit.
type turns struct {
	mu      sync.Mutex
	steps   int            // at once; 0 is no limit
	runs    int            // at once
	busy    map[string]int // steps at work by run; a run without one is not in it
	total   int
	waiting []*turn // in order of arrival
}

type turn struct {
	run   string
	given chan struct{} // closed when it is this step's turn
}

// take waits for the turn of a step and returns what ends it. If it has to wait, it first calls wait.
func (t *turns) take(ctx context.Context, run string, wait func()) (done func(), err error) {
	t.mu.Lock()
	if t.steps <= 0 {
		t.mu.Unlock()
		return func() {}, nil
	}
	mine := &turn{run: run, given: make(chan struct{})}
	t.waiting = append(t.waiting, mine)
	t.give()
	t.mu.Unlock()
	done = func() { t.end(run) }
	select {
	case <-mine.given:
		return done, nil
	default:
		wait()
	}
	select {
	case <-mine.given:
		return done, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i := slices.Index(t.waiting, mine)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	t.mu.Unlock()
	if i < 0 {
		done() // it was given at the same moment
	}
	return nil, context.Cause(ctx)
}

func (t *turns) end(run string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total--
	if t.busy[run]--; t.busy[run] == 0 {
		delete(t.busy, run)
	}
	t.give()
}

// give lets as many go on as may. The caller holds the lock.
func (t *turns) give() {
	for {
		next := -1
		for i, w := range t.waiting {
			if t.may(w.run) && (next < 0 || t.busy[w.run] < t.busy[t.waiting[next].run]) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := t.waiting[next]
		t.waiting = slices.Delete(t.waiting, next, next+1)
		if t.busy == nil {
			t.busy = map[string]int{}
		}
		t.busy[w.run]++
		t.total++
		close(w.given)
	}
}

// may reports whether a step of the run may begin: of a run that has others at work only if there is
// then still room for one of each run that has none.
func (t *turns) may(run string) bool {
	free := t.steps - t.total
	if t.busy[run] > 0 {
		free -= max(0, t.runs-len(t.busy))
	}
	return free > 0
}
