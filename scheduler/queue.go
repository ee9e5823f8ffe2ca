package scheduler

import (
	"slices"
	"strings"
	"time"

	"kiln/internal/run"
)

// A poolKey says what workers a queue is for.
type poolKey struct {
	name     string
	platform string // that the runs ask for; empty is any
}

// defaultPool is the pool of runs and workers that name none.
const defaultPool = "default"

func poolName(name string) string {
	if name == "" {
		return defaultPool
	}
	return name
}

// A quota counts the runs of one task that are executed, and keeps those that must wait because there
// are as many as the task allows.
type quota struct {
	held   int
	parked line
}

// limited reports whether as many runs of e's task are executed as e allows.
func (c *core) limited(e *entry) bool {
	if e.run.TaskUID == "" || e.run.Spec.Concurrency <= 0 {
		return false
	}
	q := c.tasks[e.run.TaskUID]
	return q != nil && q.held >= e.run.Spec.Concurrency
}

func (c *core) quota(uid string) *quota {
	q := c.tasks[uid]
	if q == nil {
		q = &quota{}
		c.tasks[uid] = q
	}
	return q
}

// hold counts a run that a worker has or is to get.
func (c *core) hold(e *entry) {
	c.held++
	if uid := e.run.TaskUID; uid != "" {
		c.quota(uid).held++
	}
	if m := c.workers[e.attempt().Instance]; m != nil {
		m.busy++
	}
}

// release is the reverse of hold.
func (c *core) release(e *entry) {
	c.held--
	if uid := e.run.TaskUID; uid != "" {
		c.quota(uid).held--
		c.freed[uid] = true
	}
	if m := c.workers[e.attempt().Instance]; m != nil && m.busy > 0 {
		m.busy--
	}
}

// enqueue has a run wait for its turn, unless it is to be approved first.
func (c *core) enqueue(e *entry) {
	if e.unapproved() {
		return
	}
	key := poolKey{poolName(e.run.Spec.Pool), e.run.Spec.Platform}
	p := c.pools[key]
	if p == nil {
		p = &pool{}
		c.pools[key] = p
	}
	p.add(e)
}

// withdraw takes a run out of the queue. Another run of its task may take its place.
func (c *core) withdraw(e *entry) {
	e.leave()
	if e.run.TaskUID != "" {
		c.freed[e.run.TaskUID] = true
	}
}

// unpark puts runs back into their lanes whose task may have another one executed.
func (c *core) unpark() {
	for uid := range c.freed {
		delete(c.freed, uid)
		q := c.tasks[uid]
		if q == nil {
			continue
		}
		for n := q.held; len(q.parked) > 0; n++ {
			e := q.parked.oldest(func(e *entry) bool { return n < e.run.Spec.Concurrency })
			if e == nil {
				break
			}
			e.leave()
			c.enqueue(e)
			c.explain(e)
		}
		if q.held == 0 && len(q.parked) == 0 {
			delete(c.tasks, uid)
		}
	}
}

// oldest returns the oldest run of the line for which ok holds, or nil.
func (q line) oldest(ok func(*entry) bool) *entry {
	if len(q) == 0 || ok(q[0]) {
		return first(q)
	}
	var found *entry
	for _, e := range q {
		if ok(e) && (found == nil || compareAge(e, found) < 0) {
			found = e
		}
	}
	return found
}

func first(q line) *entry {
	if len(q) == 0 {
		return nil
	}
	return q[0]
}

// full reports whether the server executes as many runs as it may.
func (c *core) full() bool { return c.maxRuns > 0 && c.held >= c.maxRuns }

// assign gives waiting runs to workers with a free slot.
func (c *core) assign(now time.Time) {
	c.unpark()
	for !c.full() {
		p, m := c.due()
		if p == nil {
			return
		}
		e := p.next()
		p.serve(e)
		c.turn++
		p.turn = c.turn
		r := &e.run
		r.Attempt++
		r.Attempts = append(r.Attempts, run.Attempt{N: r.Attempt, Worker: m.Name, Instance: m.Instance, Assigned: now})
		r.State, r.Reason = run.Started, ""
		c.hold(e)
		e.dirty, e.send = true, true
		c.mark(e)
	}
}

// due returns the pool that is to be served next, and the worker that gets its next run. Of several
// pools it is the one that was served longest ago, which counts if the server as a whole is limited.
func (c *core) due() (*pool, *member) {
	var p *pool
	var m *member
	for key, candidate := range c.pools {
		if candidate.size() == 0 || p != nil && p.turn <= candidate.turn {
			continue
		}
		if free := c.pick(key); free != nil && c.ready(candidate) {
			p, m = candidate, free
		}
	}
	return p, m
}

// ready brings a run to the head of the pool that may be executed, and reports whether there is one.
func (c *core) ready(p *pool) bool {
	for {
		e := p.next()
		if e == nil {
			return false
		}
		if !c.limited(e) {
			return true
		}
		e.leave()
		c.quota(e.run.TaskUID).parked.add(e)
		c.explain(e)
	}
}

// pick returns the worker with the most free slots of those that runs of a queue may be given to, or nil. If
// there are workers that execute the runs' platform, it is one of them; else any: a worker builds a foreign
// platform too, unless a RUN needs emulation, which the build itself finds out.
func (c *core) pick(key poolKey) *member {
	var best, foreign *member
	native := false
	for _, m := range c.workers {
		if poolName(m.Pool) != key.name || m.closed() != "" {
			continue
		}
		into := &foreign
		if executes(m.Platforms, key.platform) {
			into, native = &best, true
		}
		if m.free() > 0 && (*into == nil || m.free() > (*into).free() || m.free() == (*into).free() && m.Name < (*into).Name) {
			*into = m
		}
	}
	if native {
		return best
	}
	return foreign
}

// free is how many more runs the worker takes.
func (m *member) free() int { return m.Parallel - m.busy }

// closed is why a worker is given no runs, empty if it is given some.
func (m *member) closed() string {
	switch {
	case m.drained:
		return "is drained"
	case m.silent:
		return "is not heard of"
	}
	return m.Unfit
}

// executes reports whether a worker that tells its platforms executes one, or each of several, separated by commas.
func executes(have []string, want string) bool {
	for p := range strings.SplitSeq(want, ",") {
		if p != "" && len(have) > 0 && !slices.Contains(have, p) {
			return false
		}
	}
	return true
}
