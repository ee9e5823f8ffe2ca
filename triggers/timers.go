package triggers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"kiln/internal/bus"
	"kiln/internal/cron"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

func timerTrack(name string) decide.Track { return decide.Track{Kind: decide.TrackTimer, Name: name} }

// alarm looks at a track whose alarm went off.
func (d *Decider) alarm(ctx context.Context, a event.Alarm) error {
	e := d.cat.task(a.TaskUID)
	if e == nil {
		return nil // deleted: nothing is due any more
	}
	if a.Timer != "" {
		return d.fire(ctx, e, a)
	}
	track, ok := parseTrack(a.Track)
	if !ok {
		return fmt.Errorf("%w: alarm of unknown track %q", bus.ErrPoison, a.Track)
	}
	return d.look(ctx, &occasion{origin: decide.FromEvent, alarm: true}, []target{{entry: e, track: track}})
}

// parseTrack reads the key of a track that refs, pull requests and images move.
func parseTrack(key string) (decide.Track, bool) {
	if key == string(decide.TrackDefault) {
		return decide.Track{Kind: decide.TrackDefault}, true
	}
	for _, kind := range []decide.TrackKind{decide.TrackBranch, decide.TrackTag, decide.TrackPull} {
		if n := len(kind) + 1; len(key) > n && key[:n] == string(kind)+":" {
			return decide.Track{Kind: kind, Name: key[n:]}, true
		}
	}
	return decide.Track{}, false
}

// fire decides a timer that went off, and sets it for the next time.
func (d *Decider) fire(ctx context.Context, e *entry, a event.Alarm) error {
	timer, ok := e.task.Timer(a.Timer)
	if !ok {
		return nil
	}
	schedule, zone, err := plan(timer)
	if err != nil {
		return fmt.Errorf("%w: task %q: timer %q: %w", bus.ErrPoison, e.task.Name, a.Timer, err)
	}
	in, pin, refused := d.wanted(ctx, e, event.RunRequested{})
	if errors.Is(refused, errNotRead) {
		return refused
	}
	tick := decide.Tick{Timer: a.Timer, Armed: a.At, Schedule: schedule, Location: zone, Pin: pin}
	for {
		next, err := d.tick(ctx, e, tick, in, refused)
		if errors.Is(err, bus.ErrConflict) && ctx.Err() == nil {
			continue
		}
		if err != nil || next.IsZero() || !armed(e.task, timer) {
			return err
		}
		return d.Clock.Set(ctx, event.Alarm{TaskUID: e.task.UID, Track: timerTrack(a.Timer).Key(), Timer: a.Timer, At: next})
	}
}

// tick decides a tick once. It returns when the timer is due next.
func (d *Decider) tick(ctx context.Context, e *entry, k decide.Tick, in task.Inputs, refused error) (next time.Time, err error) {
	last, seq, err := d.last(ctx, e.task.UID, timerTrack(k.Timer))
	if err != nil {
		return time.Time{}, err
	}
	now := time.Now().UTC()
	id, err := d.ids.New(now, rand.Reader)
	if err != nil {
		return time.Time{}, err
	}
	out := decide.Fire(e.task, last.State, k, id, now)
	if !out.Store {
		return out.Hold, nil
	}
	dec := event.Decision{Task: e.task.Name, TaskUID: e.task.UID, Made: *out.Decision, State: out.State}
	if dec.Made.Kind == decide.Run {
		spec, err := run.Spec{}, refused
		if err == nil {
			spec, err = e.task.Spec(in)
		}
		if err != nil {
			dec.Made.Kind, dec.Made.Reason, dec.Made.Run = decide.Blocked, err.Error(), ""
			dec.Made.Supersedes, dec.State.Run = nil, last.State.Run
		} else {
			dec.Run = newRun(e.task, &dec.Made, timerCause(e, &dec.Made, in), spec)
		}
	}
	_, err = d.Bus.Replace(ctx, event.DecisionSubject(e.task.UID, timerTrack(k.Timer).Key()), seq, dec)
	if err == nil {
		d.count(&dec)
	}
	return out.Hold, err
}

func timerCause(e *entry, made *decide.Decision, in task.Inputs) run.Cause {
	c := run.Cause{Kind: run.CauseTimer, Reason: made.Reason, Track: made.Track, Trigger: made.Trigger, Commit: in.Commit, Ref: in.Ref,
		Occurrence: made.Occurrence}
	if e.git() {
		c.Repository = e.context.URL
	}
	return c
}

// plan returns when a timer is due.
func plan(t task.Timer) (cron.Schedule, *time.Location, error) {
	s, err := cron.Parse(t.Schedule)
	if err != nil {
		return s, nil, err
	}
	if t.TimeZone == "" {
		return s, time.UTC, nil
	}
	zone, err := t.Location()
	return s, zone, err
}

func armed(t *task.Task, timer task.Timer) bool {
	return t.Status != task.Disabled && timer.Status != task.Disabled
}

// setTimers brings the alarms of a task's timers in line with their schedules. One that is overdue is left
// alone: it is about to go off, and says which times were missed.
func (d *Decider) setTimers(ctx context.Context, e *entry) error {
	timers := e.task.Triggers.Timers
	errs := make([]error, len(timers))
	each(len(timers), func(i int) {
		if err := d.setTimer(ctx, e, timers[i]); err != nil {
			errs[i] = fmt.Errorf("timer %q: %w", timers[i].Name, err)
		}
	})
	return errors.Join(errs...)
}

func (d *Decider) setTimer(ctx context.Context, e *entry, timer task.Timer) error {
	schedule, zone, err := plan(timer)
	if err != nil {
		return err
	}
	track := timerTrack(timer.Name)
	var set event.Alarm
	_, err = d.Bus.Last(ctx, bus.StreamTimers, event.ScheduleSubject(e.task.UID, track.Key()), &set)
	if err != nil && !errors.Is(err, bus.ErrNone) {
		return err
	}
	if !armed(e.task, timer) {
		if set.At.IsZero() {
			return nil
		}
		return d.Clock.Clear(ctx, e.task.UID, track.Key())
	}
	now := time.Now().UTC()
	last, _, err := d.last(ctx, e.task.UID, track)
	if err != nil {
		return err
	}
	if decided := last.State.Occurrence; decided.After(now) && decided.Sub(now) < 24*time.Hour {
		now = decided
	}
	next := schedule.Next(now, zone)
	if !set.At.IsZero() && (!set.At.After(now) || set.At.Equal(next)) {
		return nil
	}
	if next.IsZero() {
		return d.Clock.Clear(ctx, e.task.UID, track.Key())
	}
	if err := d.Clock.Set(ctx, event.Alarm{TaskUID: e.task.UID, Track: track.Key(), Timer: timer.Name, At: next}); err != nil {
		return err
	}
	if d.cat.task(e.task.UID) == nil { // deleted meanwhile: its alarms were taken back before this one was set
		return d.Clock.Clear(ctx, e.task.UID, track.Key())
	}
	return nil
}

// clearTimers takes back the alarms of timers that the task had and has no more.
func (d *Decider) clearTimers(ctx context.Context, old, now *task.Task) {
	for _, timer := range old.Triggers.Timers {
		if now != nil {
			if _, kept := now.Timer(timer.Name); kept {
				continue
			}
		}
		if err := d.Clock.Clear(ctx, old.UID, timerTrack(timer.Name).Key()); err != nil {
			d.Log.Warn("alarm not taken back, it will go off and change nothing", "task", old.Name, "err", err)
		}
	}
}
