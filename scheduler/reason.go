package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"kiln/internal/run"
	"kiln/triggers/decide"
)

// A Waiting says what a queued run waits for.
type Waiting struct {
	Run      string
	Lane     string // a decide.Class
	Pool     string
	Position int    // in the lane of the pool, from 1; 0 if the run waits for something else than its turn
	Reason   string // one sentence
}

// A waitKind is the kind of thing that a run waits for. A record is stored anew only when this changes:
// positions change with every run, and are told on demand.
type waitKind int

const (
	waitNone waitKind = iota
	waitTurn
	waitApproval
	waitTask
	waitServer
	waitPool
)

// waiting returns what a queued run waits for. Position is left out.
func (c *core) waiting(e *entry) (waitKind, string) {
	switch name := poolName(e.run.Spec.Pool); {
	case e.unapproved():
		return waitApproval, "waiting for approval"
	case c.limited(e):
		return waitTask, fmt.Sprintf("waiting: task %s already has %d of %d runs", e.run.Task, c.tasks[e.run.TaskUID].held, e.run.Spec.Concurrency)
	case c.open(name) == 0:
		if name == defaultPool {
			return waitPool, "waiting for a worker: " + c.lacking(name)
		}
		return waitPool, fmt.Sprintf("waiting for a worker of pool %s: %s", name, c.lacking(name))
	case c.full():
		return waitServer, fmt.Sprintf("waiting: the server already executes %d of %d runs", c.held, c.maxRuns)
	}
	return waitTurn, "waiting for a worker"
}

// open counts the workers of a pool that take runs.
func (c *core) open(name string) int {
	n := 0
	for _, m := range c.workers {
		if poolName(m.Pool) == name && m.closed() == "" {
			n++
		}
	}
	return n
}

// lacking says why no worker of a pool takes runs.
func (c *core) lacking(name string) string {
	var closed []string
	for _, m := range c.workers {
		if poolName(m.Pool) == name {
			closed = append(closed, m.Name+" "+m.closed())
		}
	}
	if len(closed) == 0 {
		return "none is registered"
	}
	slices.Sort(closed)
	if more := len(closed) - 3; more > 0 {
		closed = append(closed[:3], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(closed, ", ")
}

// explain writes into the record what the run waits for, if that is of another kind than before.
func (c *core) explain(e *entry) {
	kind, reason := c.waiting(e)
	if kind == e.kind {
		return
	}
	e.kind, e.run.Reason, e.dirty = kind, reason+e.lostBefore(), true
	c.mark(e)
}

// lostBefore is the end of the sentence about a run that waits for another attempt.
func (e *entry) lostBefore() string {
	if a := e.attempt(); a.Outcome == outcomeLost {
		return fmt.Sprintf("; attempt %d was lost: %s", a.N, a.Reason)
	}
	return ""
}

// place returns the full account of a queued run; position is that in its lane, as far as it matters.
func (c *core) place(e *entry, position int) Waiting {
	lane := laneWeights[laneOf(e.run.Lane)].class
	w := Waiting{Run: e.run.ID, Lane: string(lane), Pool: poolName(e.run.Spec.Pool)}
	kind, reason := c.waiting(e)
	if kind == waitTurn || kind == waitServer || kind == waitPool {
		w.Position = position
	}
	if kind == waitTurn {
		reason = turn(lane, position, c.open(w.Pool))
	}
	w.Reason = reason + e.lostBefore()
	return w
}

func turn(lane decide.Class, position, workers int) string {
	busy := fmt.Sprintf("%d workers busy", workers)
	if workers == 1 {
		busy = "1 worker busy"
	}
	return fmt.Sprintf("waiting: %s in lane %s, %s", ordinal(position), lane, busy)
}

func ordinal(n int) string {
	suffix := "th"
	if n%100 < 11 || n%100 > 13 {
		switch n % 10 {
		case 1:
			suffix = "st"
		case 2:
			suffix = "nd"
		case 3:
			suffix = "rd"
		}
	}
	return fmt.Sprint(n, suffix)
}

// places returns the accounts of the queued runs among ids.
func (c *core) places(ids []string) []Waiting {
	list := []Waiting{}
	for _, id := range ids {
		e := c.runs[id]
		if e == nil || e.run.State != run.Queued {
			continue
		}
		position := 0
		if e.line != nil {
			position = e.line.position(e)
		}
		list = append(list, c.place(e, position))
	}
	return list
}

// snapshot returns the accounts of all queued runs: pool by pool and lane by lane, then the others.
func (c *core) snapshot() []Waiting {
	list := []Waiting{}
	inLane := map[string]bool{}
	for _, p := range c.pools {
		for i := range p.lanes {
			for n, e := range p.lanes[i].line.ordered() {
				list = append(list, c.place(e, n+1))
				inLane[e.run.ID] = true
			}
		}
	}
	for id, e := range c.runs {
		if e.run.State == run.Queued && !inLane[id] {
			list = append(list, c.place(e, 0))
		}
	}
	return list
}
