package graph

import (
	"cmp"
	"slices"
	"strings"
)

// maxNamed is for how many refused edges of a wave a circle is looked up.
const maxNamed = 64

// A Wave is what moved images affect.
type Wave struct {
	// Tasks are to run, sorted by level and ID, so that each comes after its parents.
	Tasks []Member
	// Refused are edges that start nothing because they close a circle of tasks.
	Refused []Refusal
}

// A Member is a task of a wave.
type Member struct {
	ID string
	// Level is the length of the longest chain of parents: all of a level may run at the same time.
	Level int
	// Parents are the tasks of the wave whose images it builds from. It is ready when they are settled.
	Parents []string
	// Moved are the images it builds from among those that began the wave.
	Moved []Name
}

// A Refusal is an edge inside a circle.
type Refusal struct {
	ID   string // the task that is not started
	Base Name   // by this image
	// Cycle holds the tasks of a shortest circle, beginning with ID; each builds on an image of the next. It
	// is empty for all but the first refusals of a wave.
	Cycle []string
}

// Why says in one sentence why the edge starts nothing.
func (r Refusal) Why() string {
	switch len(r.Cycle) {
	case 0:
		return "tasks build on each other in a circle through " + string(r.Base)
	case 1:
		return r.ID + " builds " + string(r.Base) + " itself; a task is not started by its own image"
	}
	return "tasks build on each other in a circle: " + strings.Join(r.Cycle, " <- ") + " <- " + r.ID
}

// Affected returns the wave that begins when images have moved.
func (g *Graph) Affected(moved ...Name) Wave {
	w := walk{index: map[*node]int{}}
	images := slices.Clone(moved)
	slices.Sort(images)
	for _, image := range slices.Compact(images) {
		for _, n := range g.users[image] {
			if n.follows(image) {
				i := w.visit(n)
				w.moved[i] = append(w.moved[i], image)
			}
		}
		for _, n := range g.builders[image] { // not due, but perhaps in one circle with a user
			w.visit(n)
		}
	}
	for i := 0; i < len(w.nodes); i++ { // grows while it runs
		for _, image := range w.nodes[i].Builds {
			for _, n := range g.users[image] {
				if n.follows(image) {
					j := w.visit(n)
					w.out[i] = append(w.out[i], arc{j, image})
				}
			}
		}
	}
	return w.order(g)
}

// Cycle returns a shortest circle of tasks in which a task is started by an image, beginning with the
// task, or nil if there is none. Use it to refuse one decision without computing a wave.
func (g *Graph) Cycle(id string, base Name) []string {
	target := g.tasks[id]
	if target == nil || !target.follows(base) {
		return nil
	}
	// Who builds the base is reached from the target when the target's own images lead there.
	from := map[*node]*node{target: nil}
	queue := []*node{target}
	for i := 0; i < len(queue); i++ {
		n := queue[i]
		if slices.Contains(n.Builds, base) {
			return path(from, n)
		}
		for _, next := range g.started(n) {
			if _, seen := from[next]; !seen {
				from[next] = n
				queue = append(queue, next)
			}
		}
	}
	return nil
}

// started returns the tasks that a task's images start, by ID.
func (g *Graph) started(n *node) []*node {
	var next []*node
	for _, image := range n.Builds {
		for _, user := range g.users[image] {
			if user.follows(image) {
				next = append(next, user)
			}
		}
	}
	slices.SortFunc(next, func(a, b *node) int { return strings.Compare(a.ID, b.ID) })
	return next
}

// path returns the way back from a node to where the search began: the beginning, then from the end back.
func path(from map[*node]*node, end *node) []string {
	var list []string
	for n := end; n != nil; n = from[n] {
		list = append(list, n.ID)
	}
	return append(list[len(list)-1:], list[:len(list)-1]...)
}

// A walk is the part of the graph that a wave reaches, with small numbers for nodes.
type walk struct {
	index map[*node]int
	nodes []*node
	out   [][]arc // whom a node's images start
	moved [][]Name
}

// An arc leads to a node that is started by an image.
type arc struct {
	to    int
	image Name
}

// visit returns the number of a node, a new one if it was not reached before.
func (w *walk) visit(n *node) int {
	if i, ok := w.index[n]; ok {
		return i
	}
	i := len(w.nodes)
	w.index[n] = i
	w.nodes, w.out, w.moved = append(w.nodes, n), append(w.out, nil), append(w.moved, nil)
	return i
}

// order places the nodes that are due, each after its parents, and collects what circles refuse.
func (w *walk) order(g *Graph) Wave {
	o := ordering{walk: w, circle: w.components(), members: make([]Member, len(w.nodes))}
	waiting := make([]int, len(w.nodes)) // arcs from other circles whose beginning is not placed yet
	for i, arcs := range w.out {
		for _, a := range arcs {
			if o.circle[i] != o.circle[a.to] {
				waiting[a.to]++
			}
		}
	}
	var queue []int
	for i := range w.nodes {
		if waiting[i] == 0 {
			queue = append(queue, i)
		}
	}
	for k := 0; k < len(queue); k++ { // grows while it runs
		i := queue[k]
		due := o.place(g, i)
		for _, a := range w.out[i] {
			switch {
			case o.circle[i] == o.circle[a.to] && due:
				o.refuse(i, a.to, a.image)
			case o.circle[i] == o.circle[a.to]:
			default:
				if due {
					child := &o.members[a.to]
					child.Parents = append(child.Parents, w.nodes[i].ID)
					child.Level = max(child.Level, o.members[i].Level+1)
				}
				if waiting[a.to]--; waiting[a.to] == 0 {
					queue = append(queue, a.to)
				}
			}
		}
	}
	o.wave.sort()
	return o.wave
}

// An ordering is a wave in the making.
type ordering struct {
	*walk
	circle  []int // number of the circle that a node is in, alone or with others
	members []Member
	wave    Wave
}

// place adds a node whose parents are placed to the wave, and reports whether it is due.
func (o *ordering) place(g *Graph, i int) bool {
	m := &o.members[i]
	m.ID = o.nodes[i].ID
	for _, image := range o.moved[i] {
		if b := o.builderInCircle(g, o.circle, i, image); b >= 0 {
			o.refuse(b, i, image)
		} else {
			m.Moved = append(m.Moved, image)
		}
	}
	if len(m.Moved) == 0 && len(m.Parents) == 0 {
		return false
	}
	slices.Sort(m.Parents)
	m.Parents = slices.Compact(m.Parents)
	o.wave.Tasks = append(o.wave.Tasks, *m)
	return true
}

// refuse records that an image of one node does not start another.
func (o *ordering) refuse(from, to int, image Name) {
	r := Refusal{ID: o.nodes[to].ID, Base: image}
	if len(o.wave.Refused) < maxNamed {
		r.Cycle = o.closing(o.circle, from, to)
	}
	o.wave.Refused = append(o.wave.Refused, r)
}

// builderInCircle returns a builder of an image that is in one circle with node i, or -1.
func (w *walk) builderInCircle(g *Graph, circle []int, i int, image Name) int {
	for _, b := range g.builders[image] {
		if j := w.index[b]; circle[j] == circle[i] {
			return j
		}
	}
	return -1
}

// sort makes the wave independent of the order in which it was found.
func (w *Wave) sort() {
	slices.SortFunc(w.Tasks, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Level, b.Level), strings.Compare(a.ID, b.ID)) })
	slices.SortStableFunc(w.Refused, func(a, b Refusal) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), cmp.Compare(a.Base, b.Base), slices.Compare(b.Cycle, a.Cycle))
	})
	w.Refused = slices.CompactFunc(w.Refused, func(a, b Refusal) bool { return a.ID == b.ID && a.Base == b.Base })
}

// closing returns a shortest circle that an arc closes, beginning with the arc's end.
func (w *walk) closing(circle []int, from, to int) []string {
	back := map[int]int{to: -1}
	queue := []int{to}
	for k := 0; k < len(queue) && queue[k] != from; k++ {
		for _, a := range w.out[queue[k]] {
			if _, seen := back[a.to]; !seen && circle[a.to] == circle[to] {
				back[a.to] = queue[k]
				queue = append(queue, a.to)
			}
		}
	}
	list := []string{w.nodes[to].ID}
	for i := from; i != to && i >= 0; i = back[i] {
		list = append(list, w.nodes[i].ID)
	}
	return list
}

// components numbers the strongly connected components: nodes with equal numbers can start each other. It is
// Tarjan's algorithm, with a stack of its own because chains of tasks can be long.
func (w *walk) components() []int {
	n := len(w.nodes)
	number, low, component := make([]int, n), make([]int, n), make([]int, n)
	next := make([]int, n) // the arc to look at when a node is on top again
	var open, calls []int
	count, found := 0, 0
	for root := range n {
		if number[root] != 0 {
			continue
		}
		calls = append(calls[:0], root)
		for len(calls) > 0 {
			v := calls[len(calls)-1]
			if number[v] == 0 {
				count++
				number[v], low[v] = count, count
				open = append(open, v)
			}
			if next[v] < len(w.out[v]) {
				to := w.out[v][next[v]].to
				next[v]++
				if number[to] == 0 {
					calls = append(calls, to)
				} else if component[to] == 0 {
					low[v] = min(low[v], number[to])
				}
				continue
			}
			calls = calls[:len(calls)-1]
			if len(calls) > 0 {
				parent := calls[len(calls)-1]
				low[parent] = min(low[parent], low[v])
			}
			if low[v] == number[v] {
				found++
				for last := -1; last != v; {
					last = open[len(open)-1]
					open = open[:len(open)-1]
					component[last] = found
				}
			}
		}
	}
	return component
}
