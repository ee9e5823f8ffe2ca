// Package clock sets alarms for tracks of tasks and tells when they go off.
//
// A track has at most one alarm: setting another replaces it. An alarm that was set is kept by JetStream:
// it survives restarts, and goes off at once if its time has passed meanwhile. It never goes off early,
// and in general within half a second of its time.
//
// An alarm comes at least once, and it may come although it was replaced or cleared while it was going
// off, or instead of the one that has just replaced it. Whoever handles an alarm therefore decides from
// the state of the track and the time it is, and sets the next alarm, if there is to be one, before it
// returns.
package clock

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
)

// keep is how long an alarm that went off waits to be handled, and how long one that was handled stays:
// as long as events do.
const keep = 30 * 24 * time.Hour

const (
	pending = 256              // alarms that are taken from the stream, and handled, at once
	ackWait = 30 * time.Second // after which an alarm comes again whose handler has died
)

// consumer is the name of the durable reader of alarms that went off.
const consumer = "triggers-alarms"

// A Clock sets alarms. Its fields are set before it is used and not changed after. It is safe for
// concurrent use.
type Clock struct {
	Bus *bus.Bus
	Log *slog.Logger
}

// Set has the alarm go off at a.At, in the past at once. It replaces the alarm of the same task and track.
func (c *Clock) Set(ctx context.Context, a event.Alarm) error {
	return c.Bus.Schedule(ctx, schedule(a))
}

// SetAsync is Set without waiting, for many. The alarm is set once the future has no error; an error is
// to be given to bus.MapError.
func (c *Clock) SetAsync(a event.Alarm) (bus.Ack, error) {
	return c.Bus.ScheduleAsync(schedule(a))
}

func schedule(a event.Alarm) bus.Schedule {
	return bus.Schedule{
		Subject: event.ScheduleSubject(a.TaskUID, a.Track), Target: event.AlarmSubject(a.TaskUID, a.Track),
		At: a.At, Keep: keep, Message: a,
	}
}

// Clear takes the alarm of a track back, if one is set. One that went off already still comes.
func (c *Clock) Clear(ctx context.Context, taskUID, track string) error {
	return c.Bus.Purge(ctx, bus.StreamTimers, event.ScheduleSubject(taskUID, track))
}

// Run hands alarms that went off to handle until ctx is done; it returns nil then, when all calls of
// handle have returned, and an error only if it could not start. Many alarms are handled at once, so that
// those that wait for a server hold up no others; those of one track one after the other. An alarm is
// settled when handle returns nil, otherwise it comes again; one whose error wraps bus.ErrPoison does not.
// As long as it waits or is handled it does not come again.
func (c *Clock) Run(ctx context.Context, handle func(ctx context.Context, a event.Alarm) error) error {
	var running sync.WaitGroup
	defer running.Wait()
	t := turns{of: map[string]*turn{}}
	return c.Bus.Consume(ctx, bus.Consumer{Stream: bus.StreamTimers, Name: consumer, Filter: event.AlarmFilter, AckWait: ackWait, Pending: pending},
		func(m bus.Message) {
			var a event.Alarm
			if err := m.Decode(&a); err != nil {
				m.Settle(err)
				return
			}
			running.Go(func() {
				stop := m.Keep(ackWait)
				err := t.take(ctx, m.Subject(), func() error { return handle(ctx, a) })
				stop()
				m.Settle(err)
			})
		})
}

// Turns are taken one after the other by those who name the same subject.
type turns struct {
	mu sync.Mutex
	of map[string]*turn
}

type turn struct {
	free  chan struct{} // of capacity 1
	users int
}

// take calls do when it is the subject's turn, unless ctx is done before.
func (t *turns) take(ctx context.Context, subject string, do func() error) error {
	t.mu.Lock()
	it := t.of[subject]
	if it == nil {
		it = &turn{free: make(chan struct{}, 1)}
		t.of[subject] = it
	}
	it.users++
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if it.users--; it.users == 0 {
			delete(t.of, subject)
		}
	}()
	select {
	case it.free <- struct{}{}:
		defer func() { <-it.free }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return errStopped
	}
	return do()
}

// errStopped has an alarm come again that arrived as Run was ending.
var errStopped = errors.New("the clock is stopping")
