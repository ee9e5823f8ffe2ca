package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

const (
	timerTasks   = 1_000
	timersOfTask = 10
	timersMust   = 5 // seconds, for all to be set
	firedMust    = 2 // seconds after the minute
	untilFired   = 100 * time.Second
)

// timers measures how long it takes until 1,000 tasks with 10 timers each, created over the API by 16
// connections, have all their alarms set; and, in a minute in which one timer of each task goes off, how
// long until all of that is decided. The server may run one run at a time, and that one sleeps. At the end it is
// killed, and the times are read that its message store gave the alarms and decisions.
func timers(ctx context.Context, l *lab) ([]result, error) {
	address, err := l.startBuildkitd(ctx)
	if err != nil {
		return nil, err
	}
	k, err := l.startKiln(ctx, address, "--max-runs", "1", "--reconcile-every", "24h")
	if err != nil {
		return nil, err
	}
	base, err := l.pushBase(ctx, k.store)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	tick := begin.Add(untilFired).Truncate(time.Minute).UTC()
	if err := createTimers(ctx, k, base, tick); err != nil {
		return nil, err
	}
	answered := time.Since(begin)
	if err := pause(ctx, time.Until(tick.Add(firedMust*time.Second))); err != nil {
		return nil, err
	}
	if err := k.quiet(ctx); err != nil {
		return nil, err
	}
	k.kill()
	d, err := openDepot(ctx, k.data, true)
	if err != nil {
		return nil, err
	}
	defer d.close()
	set, err := d.lastAlarm(ctx)
	if err != nil {
		return nil, err
	}
	if set.After(tick) {
		return nil, fmt.Errorf("the last alarm was set %s after the tick that was to be measured", set.Sub(tick))
	}
	decided, recorded, err := d.fired(ctx, tick)
	if err != nil {
		return nil, err
	}
	return []result{
		{What: "creation of 10,000 timers", Unit: "s", Value: max(set.Sub(begin), answered).Seconds(), Must: timersMust,
			Note: fmt.Sprintf("1,000 tasks with 10 timers each; all requests answered after %.2f s, the last alarm set after %.2f s", answered.Seconds(), set.Sub(begin).Seconds())},
		{What: "tick to the last of 1,000 decisions", Unit: "s", Value: decided.Sub(tick).Seconds(), Must: firedMust,
			Note: fmt.Sprintf("the last record after %.2f s", recorded.Sub(tick).Seconds())},
	}, nil
}

// createTimers makes tasks of which one timer each goes off at tick, and the others much later.
func createTimers(ctx context.Context, k *kilnServer, base string, tick time.Time) error {
	later := tick.Add(-2 * time.Hour) // tomorrow
	c := k.client()
	c.HTTP = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: senders, DisableCompression: true}}
	defer c.HTTP.CloseIdleConnections()
	g, ctx := errgroup.WithContext(ctx)
	for i := range senders {
		g.Go(func() error {
			for n := i; n < timerTasks; n += senders {
				t := followerOf(taskName(n), base, foreverSleeps)
				for j := range timersOfTask {
					at := later.Add(time.Duration(j) * time.Minute)
					if j == 0 {
						at = tick
					}
					t.Triggers.Timers = append(t.Triggers.Timers, task.Timer{Name: fmt.Sprint("t", j), Schedule: fmt.Sprintf("%d %d * * *", at.Minute(), at.Hour())})
				}
				if _, err := c.CreateTask(ctx, t, false); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// lastAlarm returns when the last alarm was set of the timers that have not gone off. Those that have were
// set along with them.
func (d *depot) lastAlarm(ctx context.Context) (last time.Time, err error) {
	n := 0
	err = d.each(ctx, bus.StreamTimers, event.ScheduleFilter, func(m jetstream.Msg, at time.Time) error {
		var a event.Alarm
		if err := json.Unmarshal(m.Data(), &a); err != nil {
			return err
		}
		if a.Timer != "t0" {
			n, last = n+1, at
		}
		return nil
	})
	if want := timerTasks * (timersOfTask - 1); err == nil && n != want {
		err = fmt.Errorf("%d alarms are set, want %d", n, want)
	}
	return last, err
}

// fired returns when the last decision about a tick was stored, and the last record of a run that waits.
func (d *depot) fired(ctx context.Context, tick time.Time) (decided, recorded time.Time, err error) {
	due := map[string]bool{}
	err = d.each(ctx, bus.StreamDecisions, event.SubjectDecisions, func(m jetstream.Msg, at time.Time) error {
		var dec event.Decision
		if err := json.Unmarshal(m.Data(), &dec); err != nil || dec.Made.Kind != decide.Run {
			return err
		}
		if due[dec.TaskUID] || !dec.Made.Occurrence.Equal(tick) {
			return fmt.Errorf("task %s: a run for %s was not to be expected", dec.Task, dec.Made.Occurrence)
		}
		due[dec.TaskUID], decided = true, at
		return nil
	})
	if err == nil && len(due) != timerTasks {
		err = fmt.Errorf("%d timers of %d have gone off", len(due), timerTasks)
	}
	if err != nil {
		return decided, recorded, err
	}
	records := 0
	err = d.each(ctx, "KV_runs", "$KV.runs.>", func(m jetstream.Msg, at time.Time) error {
		var r run.Run
		err := json.Unmarshal(m.Data(), &r)
		if records++; len(r.Attempts) == 0 {
			recorded = at
		}
		return err
	})
	if err == nil && records != timerTasks {
		err = fmt.Errorf("%d runs are recorded of %d", records, timerTasks)
	}
	return decided, recorded, err
}
