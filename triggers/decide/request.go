package decide

import (
	"fmt"
	"time"

	"kiln/internal/cron"
	"kiln/internal/task"
)

// A Request is somebody's wish for a run. Its key makes it one request, however often it is sent.
type Request struct {
	Key     string
	By      string
	RerunOf string // run that is to be repeated
	Force   bool   // also if the task is disabled
	// Pin is what the run uses: the observed state of the default track, the commit that was asked for, or
	// what the repeated run was pinned to.
	Pin Snapshot
}

// Ask decides a request on its own track, of which state is the state.
func Ask(t *task.Task, state State, r Request, runID string, now time.Time) Outcome {
	d := &Decision{Kind: Run, Time: now, Track: Track{TrackRequest, r.Key}.Key(), Class: ClassManual, Lane: ClassManual,
		Request: r.Key, By: r.By, RerunOf: r.RerunOf}
	switch {
	case state.Known:
		d.Kind, d.Run, d.Reason = Duplicate, state.Run, "the request was decided before"
		return Outcome{Decision: d, State: state}
	case t.Status == task.Disabled && !r.Force:
		d.Kind, d.Reason = Disabled, fmt.Sprintf("task %q is disabled; enable it, or repeat the request with force", t.Name)
		return Outcome{Decision: d, State: State{Known: true}, Store: true}
	}
	pin := r.Pin.clone()
	d.Run, d.Pin, d.Reason = runID, &pin, "asked for by "+r.By
	if r.RerunOf != "" {
		d.Reason = fmt.Sprintf("repetition of run %s, asked for by %s", r.RerunOf, r.By)
	}
	next := State{Known: true, Observed: pin.clone(), Considered: pin.clone(), Attempted: pin.clone(), Run: runID}
	return Outcome{Decision: d, State: next, Store: true}
}

// onTime is how late an occurrence may be decided and still count as not missed.
const onTime = 2 * time.Minute

// setBack is how far the clock may be set back without an occurrence being decided twice. Beyond it the
// clock is taken to have been wrong before: the timer would not be due for as long.
const setBack = 25 * time.Hour

// A Tick is the clock's message that a timer is due.
type Tick struct {
	Timer    string // name
	Armed    time.Time
	Schedule cron.Schedule
	Location *time.Location
	Pin      Snapshot // the observed state of the default track
}

// Fire decides a tick on the timer's own track, of which state is the state. The outcome's Hold is when the
// timer is due next: arm it for that time before the tick is done with. It is zero if there is none.
//
// However many occurrences have passed since, one run at most is due, for the latest. An occurrence that
// is not later than the last one decided, as after the clock was set back, is a duplicate.
func Fire(t *task.Task, state State, k Tick, runID string, now time.Time) Outcome {
	d := &Decision{Time: now, Track: Track{TrackTimer, k.Timer}.Key(), Class: ClassTimer, Lane: ClassTimer, Trigger: k.Timer}
	out := Outcome{Decision: d, State: state}
	timer, ok := t.Timer(k.Timer)
	if !ok {
		d.Kind, d.Reason = Disabled, fmt.Sprintf("task %q has no timer %q any more", t.Name, k.Timer)
		return out
	}
	last := state.Occurrence
	if last.Sub(now) > setBack {
		last = time.Time{}
	}
	// Later than the last one decided, so that no occurrence is decided twice.
	from := later(k.Armed.Add(-time.Second), last)
	latest, missed := k.Schedule.Missed(from, now, k.Location)
	out.Hold = k.Schedule.Next(later(now, last), k.Location)
	if missed == 0 {
		d.Kind, d.Reason = Unchanged, "the timer is not due; its schedule has changed, or the clock was set back"
		if !k.Armed.After(last) {
			d.Kind, d.Run, d.Reason = Duplicate, state.Run, "this occurrence was decided before"
		}
		return out
	}
	d.Occurrence, d.Missed = latest, missed-1
	next := state.clone()
	next.Known, next.Occurrence = true, latest
	out.State, out.Store = next, true
	switch late := now.Sub(latest) > onTime; {
	case t.Status == task.Disabled:
		d.Kind, d.Reason = Disabled, fmt.Sprintf("task %q is disabled", t.Name)
	case timer.Status == task.Disabled:
		d.Kind, d.Reason = Disabled, fmt.Sprintf("timer %q is disabled", k.Timer)
	case late && timer.CatchUp == task.CatchUpNone:
		d.Kind, d.Filter = Filtered, FilterCatchUp
		d.Reason = fmt.Sprintf("timer %q was due at %s, and missed times are left out", k.Timer, latest.Format(time.RFC3339))
	default:
		d.Kind, d.Run, d.Reason = Run, runID, fmt.Sprintf("timer %q was due at %s", k.Timer, latest.Format(time.RFC3339))
		if d.Missed > 0 {
			d.Reason += fmt.Sprintf(", and %d times before", d.Missed)
		}
		pin := k.Pin.clone()
		d.Pin = &pin
		if old := state.Run; old != "" {
			d.Supersedes = []string{old}
		}
		out.State.Run, out.State.Attempted, out.State.Considered, out.State.Observed = runID, pin.clone(), pin.clone(), pin.clone()
	}
	return out
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
