package scheduler

import (
	"container/heap"
	"slices"
	"strings"

	"kiln/triggers/decide"
)

// laneWeights are the lanes in order of precedence, and the share of the starts that each gets while
// all of them have runs that wait.
var laneWeights = [...]struct {
	class  decide.Class
	weight uint64
}{
	{decide.ClassManual, 16},
	{decide.ClassCommit, 8},
	{decide.ClassPull, 4},
	{decide.ClassBase, 3},
	{decide.ClassTimer, 2},
	{decide.LaneReconcile, 1},
}

// strideUnit is a common multiple of the weights.
const strideUnit = 48

// laneOf returns the number of a run's lane. A name that is not known is that of a newer version's lane,
// and waits in the last one.
func laneOf(name string) int {
	if name == "" {
		return 0
	}
	for i, l := range laneWeights {
		if string(l.class) == name {
			return i
		}
	}
	return len(laneWeights) - 1
}

// A pool is the queue of the runs that wait for the workers of one pool. Of its lanes that are not
// empty each is served in proportion to its weight (stride scheduling), so none starves; a lane that
// was empty gains nothing by it.
type pool struct {
	lanes [len(laneWeights)]lane
	clock uint64 // the pass of the lane that was served last
	turn  uint64 // when the pool was served last, counted in starts
}

// A lane is one queue of a pool, oldest run first.
type lane struct {
	line line
	pass uint64 // when it is its turn: that of the lowest pass
}

func (p *pool) add(e *entry) {
	l := &p.lanes[laneOf(e.run.Lane)]
	if len(l.line) == 0 {
		l.pass = max(l.pass, p.clock)
	}
	l.line.add(e)
}

// next returns the run whose turn it is, or nil if none waits. It stays where it is.
func (p *pool) next() *entry {
	var due *lane
	for i := range p.lanes {
		if l := &p.lanes[i]; len(l.line) > 0 && (due == nil || l.pass < due.pass) {
			due = l
		}
	}
	if due == nil {
		return nil
	}
	return due.line[0]
}

// serve takes out what next has returned and charges its lane.
func (p *pool) serve(e *entry) {
	n := laneOf(e.run.Lane)
	l := &p.lanes[n]
	p.clock = l.pass
	l.pass += strideUnit / laneWeights[n].weight
	e.leave()
}

// size is how many runs wait.
func (p *pool) size() int {
	n := 0
	for i := range p.lanes {
		n += len(p.lanes[i].line)
	}
	return n
}

// A line is runs in order of their age, as a heap: the oldest is the first. An entry is in one line at
// most, and knows its place in it.
type line []*entry

func (q *line) add(e *entry) {
	e.line = q
	heap.Push((*byAge)(q), e)
}

// leave takes the entry out of the line that it waits in, if it does.
func (e *entry) leave() {
	if e.line == nil {
		return
	}
	heap.Remove((*byAge)(e.line), e.place)
	e.line = nil
}

// ordered returns the runs of the line, oldest first.
func (q line) ordered() []*entry {
	return slices.SortedFunc(slices.Values(q), compareAge)
}

// position returns the place of e in the line as it is served, from 1.
func (q line) position(e *entry) int {
	n := 1
	for _, other := range q {
		if compareAge(other, e) < 0 {
			n++
		}
	}
	return n
}

// compareAge orders by creation and, of runs that were created at once, by ID.
func compareAge(a, b *entry) int {
	if c := a.run.Created.Compare(b.run.Created); c != 0 {
		return c
	}
	return strings.Compare(a.run.ID, b.run.ID)
}

// byAge is a line as the heap functions want it.
type byAge line

func (q byAge) Len() int           { return len(q) }
func (q byAge) Less(i, j int) bool { return compareAge(q[i], q[j]) < 0 }

func (q byAge) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *byAge) Push(x any) {
	e, ok := x.(*entry)
	if !ok {
		return
	}
	e.place = len(*q)
	*q = append(*q, e)
}

func (q *byAge) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return e
}
