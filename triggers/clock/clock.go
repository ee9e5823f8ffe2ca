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
	"hash/fnv"
	"log/slog"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
)

// keep is how long an alarm that went off waits to be handled, and how long one that was handled stays:
// as long as events do.
const keep = 30 * 24 * time.Hour

// Alarms that are handled at once, and that are taken from the stream before they are settled.
const (
	handlers = 16
	pending  = 256
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
// handle have returned, and an error only if it could not start. Several alarms are handled at once, those
// of one track one after the other. An alarm is settled when handle returns nil, otherwise it comes again;
// one whose error wraps bus.ErrPoison does not.
func (c *Clock) Run(ctx context.Context, handle func(ctx context.Context, a event.Alarm) error) error {
	tracks := make([]chan delivery, handlers)
	var running sync.WaitGroup
	for i := range tracks {
		tracks[i] = make(chan delivery, pending)
		running.Go(func() {
			for d := range tracks[i] {
				if ctx.Err() != nil {
					d.message.Settle(errStopped)
					continue
				}
				d.message.Settle(handle(ctx, d.alarm))
			}
		})
	}
	defer running.Wait()
	defer func() {
		for _, t := range tracks {
			close(t)
		}
	}()
	return c.Bus.Consume(ctx, bus.Consumer{Stream: bus.StreamTimers, Name: consumer, Filter: event.AlarmFilter, Pending: pending},
		func(m bus.Message) {
			var a event.Alarm
			if err := m.Decode(&a); err != nil {
				m.Settle(err)
				return
			}
			tracks[lane(m.Subject())] <- delivery{m, a}
		})
}

// A delivery is an alarm that went off.
type delivery struct {
	message bus.Message
	alarm   event.Alarm
}

// errStopped has an alarm come again that arrived as Run was ending.
var errStopped = errors.New("the clock is stopping")

// lane returns which handler alarms of a subject go to.
func lane(subject string) int {
	h := fnv.New32a()
	h.Write([]byte(subject))
	return int(h.Sum32() % handlers)
}
