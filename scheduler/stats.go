package scheduler

import (
	"context"
	"slices"
	"strings"
	"time"

	"kiln/internal/run"
)

// Stats say what the scheduler has in hand.
type Stats struct {
	Lanes      []LaneStats // every lane of every pool that is known
	Pools      []PoolStats
	Unapproved int // runs that wait for somebody's approval
	Assigned   int // runs that workers have
}

// LaneStats describe the runs that wait in one lane of a pool, for their turn or because of a limit.
type LaneStats struct {
	Pool, Lane string
	Waiting    int
	Oldest     time.Time // when the oldest was created; zero if none waits
}

// PoolStats describe the workers of a pool.
type PoolStats struct {
	Pool             string
	Idle, Busy, Full int // workers: that have no run, that have some, that have as many as they take
	Drained          int // workers that take no more
	Slots, Used      int // runs that they take together, and that they have
}

// Stats asks the loop, and blocks until it answers.
func (s *Scheduler) Stats(ctx context.Context) (Stats, error) {
	return ask(ctx, s, func() Stats { return s.core.stats() })
}

// stats looks at every run that has not ended and at every worker.
func (c *core) stats() Stats {
	st := Stats{Assigned: c.held}
	lanes := map[string]*[len(laneWeights)]LaneStats{}
	lanesOf := func(pool string) *[len(laneWeights)]LaneStats {
		if lanes[pool] == nil {
			lanes[pool] = &[len(laneWeights)]LaneStats{}
		}
		return lanes[pool]
	}
	for _, e := range c.runs {
		switch {
		case e.run.State != run.Queued:
		case e.unapproved():
			st.Unapproved++
		default:
			l := &lanesOf(poolName(e.run.Spec.Pool))[laneOf(e.run.Lane)]
			l.Waiting++
			if l.Oldest.IsZero() || e.run.Created.Before(l.Oldest) {
				l.Oldest = e.run.Created
			}
		}
	}
	pools := map[string]*PoolStats{}
	for _, m := range c.workers {
		name := poolName(m.Pool)
		lanesOf(name)
		if pools[name] == nil {
			pools[name] = &PoolStats{Pool: name}
		}
		pools[name].add(m)
	}
	for key := range c.pools {
		lanesOf(key.name)
	}
	for name, of := range lanes {
		for i, l := range of {
			l.Pool, l.Lane = name, string(laneWeights[i].class)
			st.Lanes = append(st.Lanes, l)
		}
	}
	for _, p := range pools {
		st.Pools = append(st.Pools, *p)
	}
	slices.SortStableFunc(st.Lanes, func(a, b LaneStats) int { return strings.Compare(a.Pool, b.Pool) })
	slices.SortFunc(st.Pools, func(a, b PoolStats) int { return strings.Compare(a.Pool, b.Pool) })
	return st
}

func (p *PoolStats) add(m *member) {
	p.Slots += m.Parallel
	p.Used += m.busy
	switch {
	case m.drained:
		p.Drained++
	case m.busy == 0:
		p.Idle++
	case m.busy < m.Parallel:
		p.Busy++
	default:
		p.Full++
	}
}
