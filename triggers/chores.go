package triggers

import (
	"context"
	"sync"
	"time"
)

// Bounds of the pause before a chore that went wrong is done again.
const (
	retrySoonest = 2 * time.Second
	retryLatest  = 5 * time.Minute
)

// Chores are things to do by key, each at most once at a time. A chore that is added while it is being done
// is done again. The zero value is ready for use.
type chores struct {
	mu    sync.Mutex
	queue []string
	known map[string]*chore
	wake  chan struct{}
}

type chore struct {
	queued, busy, again bool
	failures            int
}

// add has the chore of a key done soon.
func (c *chores) add(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]*chore{}
	}
	it := c.known[key]
	if it == nil {
		it = &chore{}
		c.known[key] = it
	}
	switch {
	case it.busy:
		it.again = true
		return
	case it.queued:
		return
	}
	it.queued = true
	c.queue = append(c.queue, key)
	if c.wake != nil {
		close(c.wake)
		c.wake = nil
	}
}

// take returns the next key; it waits for one until ctx is done.
func (c *chores) take(ctx context.Context) (key string, ok bool) {
	for {
		c.mu.Lock()
		if len(c.queue) > 0 {
			key, c.queue = c.queue[0], c.queue[1:]
			c.known[key].queued, c.known[key].busy = false, true
			c.mu.Unlock()
			return key, true
		}
		if c.wake == nil {
			c.wake = make(chan struct{})
		}
		wake := c.wake
		c.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return "", false
		}
	}
}

// done says that the chore of a key was done, or is to be done again after a pause.
func (c *chores) done(key string, err error) {
	c.mu.Lock()
	it := c.known[key]
	it.busy = false
	again := it.again
	it.again = false
	if err == nil {
		it.failures = 0
		if !again {
			delete(c.known, key)
		}
	} else {
		it.failures++
	}
	pause := min(retrySoonest<<min(max(it.failures-1, 0), 16), retryLatest)
	c.mu.Unlock()
	switch {
	case again:
		c.add(key)
	case err != nil:
		time.AfterFunc(pause, func() { c.add(key) })
	}
}

// run does chores, several at a time, until ctx is done and those in hand have been done.
func (c *chores) run(ctx context.Context, parallel int, do func(ctx context.Context, key string) error) {
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for {
				key, ok := c.take(ctx)
				if !ok {
					return
				}
				c.done(key, do(ctx, key))
			}
		})
	}
	workers.Wait()
}
