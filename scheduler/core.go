package scheduler

import (
	"cmp"
	"fmt"
	"slices"
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
)

// core is the scheduler's state and its rules, without any I/O: facts and the time go in, and the
// entries it marks say what has to be stored, sent and cleaned up.
type core struct {
	runs    map[string]*entry
	workers map[string]*member // by instance
	queue   []string           // IDs of runs that wait, oldest first
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
}

// A member is a worker that is alive.
type member struct {
	event.Worker
	busy int
}

func newCore() *core {
	return &core{runs: map[string]*entry{}, workers: map[string]*member{}}
}

// adopt takes over a stored run.
func (c *core) adopt(r run.Run, rev uint64, suspect time.Time) {
	e := &entry{run: r, rev: rev}
	c.runs[r.ID] = e
	switch {
	case r.State == run.Queued:
		c.enqueue(r.ID)
	case e.assigned():
		e.suspect = suspect
		if m := c.workers[e.attempt().Instance]; m != nil {
			m.busy++
		}
	}
}

// admit takes in the run of a new decision. A run that is already known is left alone.
func (c *core) admit(r run.Run, now time.Time) {
	if _, known := c.runs[r.ID]; known {
		return
	}
	r.State, r.Created, r.Reason = run.Queued, now, "waiting for a worker"
	if r.Spec.Timeout <= 0 {
		r.Spec.Timeout = defaultTimeout
	}
	c.runs[r.ID] = &entry{run: r, dirty: true}
	c.enqueue(r.ID)
}

// replace gives way to the stored record of a run that was decided twice.
func (c *core) replace(e *entry, stored run.Run, rev uint64, suspect time.Time) {
	if e.assigned() {
		c.release(e.attempt().Instance)
	}
	c.queue = slices.DeleteFunc(c.queue, func(id string) bool { return id == e.run.ID })
	delete(c.runs, e.run.ID)
	c.adopt(stored, rev, suspect)
	*e = *c.runs[stored.ID]
	c.runs[stored.ID] = e
}

func (c *core) enqueue(id string) {
	c.queue = append(c.queue, id)
	slices.SortStableFunc(c.queue, func(a, b string) int {
		return cmp.Or(c.runs[a].run.Created.Compare(c.runs[b].run.Created), cmp.Compare(a, b))
	})
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
		m.Worker = w
		return
	}
	m := &member{Worker: w}
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
	c.release(a.Instance)
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
		e.run.State, e.run.Reason, e.dirty = run.Queued, "waiting for a worker after attempt "+fmt.Sprint(a.N)+" was lost: "+reason, true
		c.enqueue(e.run.ID)
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

func (c *core) release(instance string) {
	if m := c.workers[instance]; m != nil && m.busy > 0 {
		m.busy--
	}
}

// finish ends a run.
func (c *core) finish(e *entry, s run.State, reason string, now time.Time) {
	if !e.run.State.CanBecome(s) {
		return
	}
	if e.run.State == run.Queued {
		c.queue = slices.DeleteFunc(c.queue, func(id string) bool { return id == e.run.ID })
	}
	if a := e.attempt(); e.assigned() {
		if a.Outcome == "" {
			c.release(a.Instance)
			a.Ended, a.Outcome, a.Reason = now, string(s), reason
		}
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
			e.stop = !e.canceled.IsZero()
		}
	}
}

// assign gives waiting runs to workers with a free slot, oldest first.
func (c *core) assign(now time.Time) {
	c.queue = slices.DeleteFunc(c.queue, func(id string) bool {
		e := c.runs[id]
		m := c.pick()
		if m == nil {
			return false
		}
		m.busy++
		r := &e.run
		r.Attempt++
		r.Attempts = append(r.Attempts, run.Attempt{N: r.Attempt, Worker: m.Name, Instance: m.Instance, Assigned: now})
		r.State, r.Reason = run.Started, ""
		e.dirty, e.send = true, true
		return true
	})
}

// pick returns the worker with the most free slots, or nil. It does not look at a run's platform: a
// worker builds a foreign one too, unless a RUN needs emulation, which the build itself finds out.
func (c *core) pick() *member {
	var best *member
	for _, m := range c.workers {
		free := m.Parallel - m.busy
		if free > 0 && (best == nil || free > best.Parallel-best.busy || free == best.Parallel-best.busy && m.Name < best.Name) {
			best = m
		}
	}
	return best
}
