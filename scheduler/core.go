package scheduler

import (
	"fmt"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
)

const (
	maxLost        = 3                // lost attempts after which a run is given up
	cancelGrace    = 30 * time.Second // how long a worker may take to stop a cancelled attempt
	defaultTimeout = time.Hour        // of a run that names none
	timeoutGrace   = 2 * time.Minute  // how much longer than its time limit a worker may hold a run
	outcomeLost    = "lost"
	// supersededFor is how long it is kept in mind that a run is superseded which is not known yet.
	supersededFor = 10 * time.Minute
)

// core is the scheduler's state and its rules, without any I/O: facts and the time go in, and the
// entries it marks say what has to be stored, sent and cleaned up.
type core struct {
	maxRuns int // that may be executed at once; 0 means any number
	runs    map[string]*entry
	workers map[string]*member // by instance
	pools   map[poolKey]*pool
	drained map[string]bool   // workers that take no more runs, by name
	tasks   map[string]*quota // by UID
	freed   map[string]bool   // tasks whose parked runs are to be looked at
	held    int               // runs that are assigned
	turn    uint64            // counts the runs that were assigned
	last    time.Time         // when the last run was admitted
	alike   run.Run           // the run that was taken in last: the next may share with it

	superseded map[string]supersession // by the run that gives way

	urgent, changed []*entry // what is to be acted on: assignments, and the rest
}

// An entry is a run that has not ended, or whose end is not yet stored.
type entry struct {
	run      run.Run
	rev      uint64    // revision of the stored record; 0 before the first
	dirty    bool      // the record must be stored
	send     bool      // the current attempt must be sent to its worker, after the record is stored
	stop     bool      // the worker must be told to stop the attempt
	suspect  time.Time // when an attempt without a lease is lost; zero when it has one
	canceled time.Time // when cancellation was asked for in this process

	kind  waitKind // what its record says that it waits for
	line  *line    // that it waits in, if any
	place int      // in the line

	inUrgent, inChanged bool          // it is in that list of the core
	busy                bool          // an effect is under way
	settles             []func(error) // to be called when the present state has taken effect
}

// A supersession is a run that gives way to a newer one.
type supersession struct {
	by string
	at time.Time
}

// A member is a worker that is alive.
type member struct {
	event.Worker
	busy    int
	drained bool
	silent  bool // it has lost a run since it was last heard of
}

func newCore(maxRuns int) *core {
	return &core{maxRuns: maxRuns, runs: map[string]*entry{}, workers: map[string]*member{}, pools: map[poolKey]*pool{},
		drained: map[string]bool{}, tasks: map[string]*quota{}, freed: map[string]bool{}, superseded: map[string]supersession{}}
}

// mark has an entry acted on.
func (c *core) mark(e *entry) {
	switch {
	case e.busy: // it is marked again when that is done
	case e.send && !e.inUrgent:
		c.urgent, e.inUrgent = append(c.urgent, e), true
	case !e.send && !e.inChanged:
		c.changed, e.inChanged = append(c.changed, e), true
	}
}

// pending reports whether there is anything to do about the entry.
func (e *entry) pending() bool { return e.dirty || e.send || e.stop || e.run.State.Final() }

// unapproved reports whether the run waits for somebody's approval.
func (e *entry) unapproved() bool { return e.run.NeedsApproval && e.run.ApprovedBy == "" }

// adopt takes over a stored run.
func (c *core) adopt(r run.Run, rev uint64, suspect time.Time) {
	share(&r, &c.alike)
	c.alike = r
	e := &entry{run: r, rev: rev}
	c.runs[r.ID] = e
	c.settleIn(e, suspect)
}

// settleIn puts an entry that was read from the store where it belongs.
func (c *core) settleIn(e *entry, suspect time.Time) {
	switch {
	case e.run.State == run.Queued:
		e.kind, _ = c.waiting(e)
		c.enqueue(e)
	case e.assigned():
		e.suspect = suspect
		c.hold(e)
	default: // its end is to be cleaned up
		c.mark(e)
	}
}

// admit takes in the run of a new decision. A run that is already known is left alone.
func (c *core) admit(r run.Run, now time.Time) {
	if _, known := c.runs[r.ID]; known {
		return
	}
	r.State, r.Created = run.Queued, c.after(now)
	if r.Spec.Timeout <= 0 {
		r.Spec.Timeout = defaultTimeout
	}
	share(&r, &c.alike)
	c.alike = r
	e := &entry{run: r, dirty: true}
	c.runs[r.ID] = e
	c.enqueue(e)
	c.explain(e)
	if s, ok := c.superseded[r.ID]; ok {
		delete(c.superseded, r.ID)
		c.supersede(r.ID, s.by, now)
	}
}

// after returns a time of creation that is later than that of the run before, for runs that are admitted
// at once are executed in that order.
func (c *core) after(now time.Time) time.Time {
	if ahead := c.last.Sub(now); ahead >= 0 && ahead < time.Second {
		now = c.last.Add(time.Nanosecond)
	}
	c.last = now
	return now
}

// supersede ends a run that a newer one makes superfluous, if it still waits. Its decision may come
// later than the one that supersedes it, after a restart.
func (c *core) supersede(id, by string, now time.Time) {
	e := c.runs[id]
	if e == nil {
		c.superseded[id] = supersession{by, now}
		return
	}
	if e.run.State == run.Queued {
		c.finish(e, run.Canceled, "superseded by run "+by, now)
	}
}

// approve lets a run proceed that waits for it.
func (c *core) approve(e *entry, by string) {
	if !e.unapproved() || e.run.State != run.Queued {
		return
	}
	e.run.ApprovedBy, e.dirty = by, true
	c.enqueue(e)
	c.explain(e)
	c.mark(e)
}

// replace gives way to the stored record of a run that was decided twice.
func (c *core) replace(e *entry, stored run.Run, rev uint64, suspect time.Time) {
	if e.assigned() {
		c.release(e)
	}
	c.withdraw(e)
	e.run, e.rev = stored, rev
	e.dirty, e.send, e.stop = false, false, false
	c.settleIn(e, suspect)
}

// attempt returns the run's current attempt.
func (e *entry) attempt() *run.Attempt {
	if len(e.run.Attempts) == 0 {
		return &run.Attempt{}
	}
	return &e.run.Attempts[len(e.run.Attempts)-1]
}

// assigned reports whether a worker is supposed to be at work on the run.
func (e *entry) assigned() bool { return e.run.State == run.Started || e.run.State == run.Running }

// join takes in a worker's registration. A new instance under a known name means that the process was
// restarted, so what its predecessor held is lost.
func (c *core) join(w event.Worker, now time.Time) {
	if m := c.workers[w.Instance]; m != nil {
		m.Worker, m.silent = w, false
		return
	}
	m := &member{Worker: w, drained: c.drained[w.Name]}
	c.workers[w.Instance] = m
	for _, e := range c.runs {
		if !e.assigned() {
			continue
		}
		switch a := e.attempt(); {
		case a.Instance == w.Instance:
			m.busy++
		case a.Worker == w.Name:
			c.lose(e, "the worker died and was started again", false, now)
		}
	}
	for id, old := range c.workers {
		if old.Name == w.Name && id != w.Instance {
			delete(c.workers, id)
		}
	}
}

// drain has the workers of a name get no more runs, or get some again.
func (c *core) drain(name string, drained bool) {
	if drained {
		c.drained[name] = true
	} else {
		delete(c.drained, name)
	}
	for _, m := range c.workers {
		if m.Name == name {
			m.drained = drained
		}
	}
}

// leave forgets a worker that no longer registers. Its runs are lost when their leases expire.
func (c *core) leave(instance string) { delete(c.workers, instance) }

// lose ends the current attempt without an outcome and queues the run again, unless it was to be
// cancelled or has lost too many attempts.
func (c *core) lose(e *entry, reason string, blameless bool, now time.Time) {
	if !e.assigned() {
		return
	}
	a := e.attempt()
	a.Ended, a.Outcome, a.Reason, a.Blameless = now, outcomeLost, reason, blameless
	c.release(e)
	e.suspect, e.send = time.Time{}, false
	for i := range e.run.Steps {
		if s := &e.run.Steps[i]; !s.State.Done() || s.Kind == "cmd" {
			s.State = run.StepPending
		}
	}
	switch lost := countLost(e.run.Attempts); {
	case e.run.CancelBy != "":
		c.finish(e, run.Canceled, "canceled by "+e.run.CancelBy, now)
	case lost >= maxLost:
		c.finish(e, run.Error, fmt.Sprintf("given up after %d lost attempts, the last because %s", lost, reason), now)
	default:
		e.run.State, e.kind = run.Queued, waitNone
		c.enqueue(e)
		c.explain(e)
	}
}

func countLost(attempts []run.Attempt) int {
	n := 0
	for _, a := range attempts {
		if a.Outcome == outcomeLost && !a.Blameless {
			n++
		}
	}
	return n
}

// finish ends a run.
func (c *core) finish(e *entry, s run.State, reason string, now time.Time) {
	if !e.run.State.CanBecome(s) {
		return
	}
	if e.run.State == run.Queued {
		c.withdraw(e)
	}
	if a := e.attempt(); e.assigned() && a.Outcome == "" {
		c.release(e)
		a.Ended, a.Outcome, a.Reason = now, string(s), reason
	}
	for i := range e.run.Steps {
		if st := &e.run.Steps[i]; !st.State.Done() {
			st.State = run.StepSkipped
			if !st.Started.IsZero() {
				st.State, st.Finished = run.StepCanceled, now
			}
		}
	}
	e.run.State, e.run.Reason, e.run.Finished = s, reason, now
	e.dirty, e.send, e.stop = true, false, false
	c.mark(e)
}

// cancel asks for the end of a run.
func (c *core) cancel(e *entry, by string, now time.Time) {
	if e.run.State.Final() {
		return
	}
	if e.run.CancelBy == "" {
		e.run.CancelBy, e.dirty = by, true
	}
	if e.run.State == run.Queued {
		c.finish(e, run.Canceled, "canceled by "+e.run.CancelBy, now)
		return
	}
	e.stop = true
	if e.canceled.IsZero() {
		e.canceled = now
	}
	c.mark(e)
}

// lease notes that an attempt's lease was refreshed. It returns false for an attempt that is no longer
// the current one: its worker is to be told.
func (c *core) lease(runID string, attempt int) bool {
	e := c.runs[runID]
	if e == nil || !e.assigned() || e.run.Attempt != attempt {
		return false
	}
	e.suspect = time.Time{}
	return true
}

// expire notes that an attempt's lease is gone.
func (c *core) expire(runID string, attempt int, now time.Time) {
	if e := c.runs[runID]; e != nil && e.assigned() && e.run.Attempt == attempt {
		if m := c.workers[e.attempt().Instance]; m != nil {
			m.silent = true
		}
		c.lose(e, "the worker was not heard of any more", false, now)
	}
}

// tick applies what only the passing of time brings about.
func (c *core) tick(now time.Time) {
	for _, e := range c.runs {
		if !e.assigned() {
			continue
		}
		switch a := e.attempt(); {
		case !e.suspect.IsZero() && now.After(e.suspect):
			c.lose(e, "the worker was not heard of any more", false, now)
		case e.run.CancelBy != "" && e.canceled.IsZero():
			c.cancel(e, e.run.CancelBy, now)
		case !e.canceled.IsZero() && now.Sub(e.canceled) > cancelGrace:
			c.finish(e, run.Canceled, "canceled by "+e.run.CancelBy+"; the worker did not answer", now)
		case now.Sub(a.Assigned) > e.run.Spec.Timeout+timeoutGrace:
			c.finish(e, run.Timeout, "time limit of the run exceeded; the worker did not answer", now)
		default:
			if e.stop = !e.canceled.IsZero(); e.stop {
				c.mark(e)
			}
		}
	}
	for id, s := range c.superseded {
		if now.Sub(s.at) > supersededFor {
			delete(c.superseded, id)
		}
	}
}
