package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	kstore "kiln/internal/store"
	"kiln/triggers/decide"
)

const (
	stormTasks    = 10_000
	stormRaw      = 3 * stormTasks // messages
	stormMust     = 4              // times the raw messages
	stormFirst    = 50             // milliseconds
	stormMemory   = 100            // MB
	stormWithin   = 3 * time.Minute
	foreverSleeps = "/bin/busybox sleep 3600"
)

// storm measures what one push of a base image makes of a server with 10,000 tasks that follow it. The
// tasks are written into the store while the server is down; it may run one run at a time, and the
// first one sleeps. Afterwards the server is killed, and the times are read that its message store gave
// the decisions and the records. The raw messages go to a store of their own, configured alike, in this process.
func storm(ctx context.Context, l *lab) ([]result, error) {
	k, base, err := l.stormServer(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := l.rawMessages(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(k.quiet(ctx), k.forgetPeak()); err != nil {
		return nil, err
	}
	before, _, err := k.memory()
	if err != nil {
		return nil, err
	}
	sent, err := base.move(ctx)
	if err != nil {
		return nil, err
	}
	answered := time.Now()
	if err := awaitLast(ctx, k, taskName(stormTasks-1)); err != nil {
		return nil, err
	}
	now, peak, err := k.memory()
	if err != nil {
		return nil, err
	}
	k.kill()
	d, err := openDepot(ctx, k.data, true)
	if err != nil {
		return nil, err
	}
	defer d.close()
	s, err := d.stormTimes(ctx)
	if err != nil {
		return nil, err
	}
	took := max(s.decided.Sub(sent), s.recorded.Sub(sent))
	return []result{
		{What: "decisions and records of 10,000 runs / 30,000 raw messages", Unit: "x", Value: took.Seconds() / raw.Seconds(), Must: stormMust,
			Note: fmt.Sprintf("raw %.1f s; since the push was sent: last decision %.1f s, last record %.1f s", raw.Seconds(), s.decided.Sub(sent).Seconds(), s.recorded.Sub(sent).Seconds())},
		{What: "push answered to first run assigned", Unit: "ms", Value: millis(s.assigned.Sub(answered)), Must: stormFirst,
			Note: fmt.Sprintf("since it was sent %.1f ms; begun by the worker %.1f ms after the answer", millis(s.assigned.Sub(sent)), millis(s.begun.Sub(answered)))},
		{What: "growth of RSS", Unit: "MB", Value: max(peak-before, 0.1), Must: stormMemory,
			Note: fmt.Sprintf("from %.0f MB to at most %.0f, and %.0f at the end", before, peak, now)},
	}, nil
}

func taskName(n int) string { return fmt.Sprintf("task-%05d", n) }

// stormServer starts a server whose tasks all follow one image of its registry.
func (l *lab) stormServer(ctx context.Context) (*kilnServer, *movingBase, error) {
	address, err := l.startBuildkitd(ctx)
	if err != nil {
		return nil, nil, err
	}
	host, err := freeAddress(ctx) // the tasks name it
	if err != nil {
		return nil, nil, err
	}
	flags := []string{"--listen", host, "--max-runs", "1", "--reconcile-every", "24h", "--grace", "0s"}
	k, err := l.startKiln(ctx, address, flags...)
	if err != nil {
		return nil, nil, err
	}
	base, err := l.newMovingBase(ctx, k)
	if err != nil {
		return nil, nil, err
	}
	if err := k.stop(); err != nil {
		return nil, nil, err
	}
	if err := fillTasks(ctx, k.data, base.ref, stormTasks); err != nil {
		return nil, nil, err
	}
	if k, err = l.startKiln(ctx, address, flags...); err != nil {
		return nil, nil, err
	}
	return k, base, k.quiet(ctx)
}

// fillTasks stores n tasks that follow an image.
func fillTasks(ctx context.Context, data, image string, n int) error {
	d, err := openDepot(ctx, data, true)
	if err != nil {
		return err
	}
	defer d.close()
	acks := make([]bus.Ack, n)
	created := time.Now().UTC()
	for i := range acks {
		t := followerOf(taskName(i), image, foreverSleeps)
		t.UID, t.Created, t.Updated = unique(), created, created
		t.Normalize()
		if acks[i], err = d.ReplaceAsync("$KV.tasks."+kstore.TaskKey(t.Name), 0, t); err != nil {
			return err
		}
	}
	return settled(ctx, acks)
}

// rawMessages publishes messages with IDs to a message store that is configured as the server's, and
// returns how long that takes.
func (l *lab) rawMessages(ctx context.Context) (time.Duration, error) {
	dir, err := l.mkdir("raw")
	if err != nil {
		return 0, err
	}
	d, err := openDepot(ctx, dir, false)
	if err != nil {
		return 0, err
	}
	defer d.close()
	acks := make([]bus.Ack, stormRaw)
	begin := time.Now()
	for i := range acks {
		acks[i], err = d.PublishAsync(event.ImageSubject(event.TypeImagePushed, fmt.Sprint("r", i)), fmt.Sprint("raw-", i), event.Image{Repository: "app", Tag: "v1"})
		if err != nil {
			return 0, err
		}
	}
	err = settled(ctx, acks)
	return time.Since(begin), err
}

// awaitLast waits until a task has a run, and then until the server has nothing to do.
func awaitLast(ctx context.Context, k *kilnServer, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stormWithin, fmt.Errorf("task %q has no run after %s", name, stormWithin))
	defer cancel()
	c := k.client()
	for {
		runs, err := c.TaskRuns(ctx, name, apiclient.RunsQuery{Limit: 1})
		if err != nil {
			return err
		}
		if len(runs) > 0 {
			return k.quiet(ctx)
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return err
		}
	}
}

// stormTimes are when things were stored, the last of a kind; the first assignment excepted.
type stormTimes struct {
	decided, recorded, assigned, begun time.Time
}

// stormTimes reads when the decisions and records were stored. Each task must have one of each.
func (d *depot) stormTimes(ctx context.Context) (stormTimes, error) {
	var s stormTimes
	due := map[string]string{} // task to run
	err := d.each(ctx, bus.StreamDecisions, event.SubjectDecisions, func(m jetstream.Msg, at time.Time) error {
		var dec event.Decision
		if err := json.Unmarshal(m.Data(), &dec); err != nil || dec.Made.Kind != decide.Run {
			return err
		}
		if due[dec.TaskUID] != "" {
			return fmt.Errorf("task %s has two runs", dec.Task)
		}
		due[dec.TaskUID], s.decided = dec.Made.Run, at
		return nil
	})
	if err != nil {
		return s, err
	}
	records := 0
	err = d.each(ctx, "KV_"+kstore.BucketRuns, "$KV.runs.>", func(m jetstream.Msg, at time.Time) error {
		var r run.Run
		if err := json.Unmarshal(m.Data(), &r); err != nil {
			return err
		}
		if due[r.TaskUID] != r.ID {
			return fmt.Errorf("run %s of task %s was not decided", r.ID, r.Task)
		}
		records++
		if len(r.Attempts) == 0 {
			s.recorded = at
		} else if first := r.Attempts[0].Assigned; s.assigned.IsZero() || first.Before(s.assigned) {
			s.assigned, s.begun = first, r.Started
		}
		return nil
	})
	if err == nil && (len(due) != stormTasks || records != stormTasks || s.assigned.IsZero()) {
		err = fmt.Errorf("%d runs were decided and %d recorded, want %d, and one assigned", len(due), records, stormTasks)
	}
	return s, err
}
