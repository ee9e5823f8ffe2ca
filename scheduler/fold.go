package scheduler

import (
	"slices"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
)

// report folds a worker's report into its run. Reports of other attempts than the current one, and of
// runs that have ended, change nothing.
func (c *core) report(rep event.Report, now time.Time) {
	e := c.runs[rep.Run]
	if e == nil || !e.assigned() || rep.Attempt != e.run.Attempt {
		return
	}
	fold(&e.run, rep)
	e.dirty = true
	c.mark(e)
	switch {
	case rep.Final == event.HandedBack:
		c.lose(e, rep.Reason, rep.Blameless, now)
	case rep.Final == run.Failed && e.run.CancelBy != "":
		c.finish(e, run.Canceled, "canceled by "+e.run.CancelBy, now)
	case rep.Final != "":
		c.finish(e, rep.Final, rep.Reason, rep.Time)
	}
}

// fold applies a report of the current attempt to r. It is idempotent, and a step that has ended in
// this attempt does not come back, so a report that is delivered again does no harm.
func fold(r *run.Run, rep event.Report) {
	if !rep.Begun.IsZero() && r.State == run.Started {
		r.State = run.Running
		if r.Started.IsZero() {
			r.Started = rep.Begun
		}
	}
	for _, s := range rep.Steps {
		i := slices.IndexFunc(r.Steps, func(o run.Step) bool { return o.ID == s.ID })
		switch {
		case i < 0:
			r.Steps = append(r.Steps, s)
		case r.Steps[i].State.Done() && r.Steps[i].Attempt == s.Attempt:
		default:
			r.Steps[i] = s
		}
	}
	for _, img := range rep.Images {
		r.Images = run.WithImage(r.Images, img)
	}
	for _, b := range rep.Bases {
		if !slices.Contains(r.Bases, b) {
			r.Bases = append(r.Bases, b)
		}
	}
	if r.Cause.Commit == "" {
		r.Cause.Commit = rep.Commit // of a ref that the worker has resolved: later attempts use it again
	}
	r.LogEnd = max(r.LogEnd, rep.LogEnd)
}
