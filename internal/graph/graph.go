// Package graph knows which tasks build which images from which, and so what a moved image affects.
//
// An edge says "task T builds X from Y", at run time (Y is the base of the image) or at build time (Y
// was used by another stage). From the images that moved it finds the tasks to run, bases before those
// who build on them, each once. Tasks that are built on each other in a circle are never started by each
// other's images; the circle is named instead. A task is never started by its own image.
//
// The package is pure. Results do not depend on the order in which tasks were added. A Graph is not safe
// for concurrent use.
package graph

import "slices"

// Kind says what an image is to the task that uses it.
type Kind string

// Kinds of an edge.
const (
	Runtime   Kind = "Runtime"   // base of the image that is built
	Buildtime Kind = "Buildtime" // used by another stage, or to copy from
)

// An Edge is an image that a task builds from.
type Edge struct {
	Base   Name
	Kind   Kind
	Digest string // that the last build used; empty if not known yet
}

// Follow says which bases start a task when they move.
type Follow string

// Values of Follow. The empty one is FollowNone.
const (
	FollowNone    Follow = ""
	FollowRuntime Follow = "Runtime"
	FollowAll     Follow = "All"
)

// A Task is a node of the graph.
type Task struct {
	ID     string
	Builds []Name // what it pushes under names that others can build from
	Bases  []Edge
	Follow Follow
}

// Follows reports whether a moved base starts the task, as far as its kind goes: an edge that is pinned
// to a digest cannot move.
func (t Task) Follows(e Edge) bool {
	switch {
	case e.Base.Digest() != "":
		return false
	case t.Follow == FollowAll:
		return true
	}
	return t.Follow == FollowRuntime && e.Kind == Runtime
}

// A Graph is a set of tasks. The zero Graph is empty and ready for use.
type Graph struct {
	tasks    map[string]*node
	users    map[Name][]*node // tasks that build from an image, each once
	builders map[Name][]*node // tasks that build it, each once
}

type node struct{ Task }

// Set adds a task or replaces the one with its ID. The graph keeps a copy.
func (g *Graph) Set(t Task) {
	g.Remove(t.ID)
	if g.tasks == nil {
		g.tasks, g.users, g.builders = map[string]*node{}, map[Name][]*node{}, map[Name][]*node{}
	}
	t.Builds, t.Bases = slices.Clone(t.Builds), slices.Clone(t.Bases)
	n := &node{t}
	g.tasks[t.ID] = n
	for _, b := range t.Builds {
		g.builders[b] = include(g.builders[b], n)
	}
	for _, e := range t.Bases {
		g.users[e.Base] = include(g.users[e.Base], n)
	}
}

// Remove takes a task out; it does nothing if there is none with that ID.
func (g *Graph) Remove(id string) {
	n := g.tasks[id]
	if n == nil {
		return
	}
	delete(g.tasks, id)
	for _, b := range n.Builds {
		exclude(g.builders, b, n)
	}
	for _, e := range n.Bases {
		exclude(g.users, e.Base, n)
	}
}

// Task returns the task with an ID.
func (g *Graph) Task(id string) (Task, bool) {
	n := g.tasks[id]
	if n == nil {
		return Task{}, false
	}
	return n.Task, true
}

// Users returns the IDs of the tasks that build from an image, whether or not they follow it, sorted.
func (g *Graph) Users(image Name) []string { return ids(g.users[image]) }

// Builders returns the IDs of the tasks that build an image, sorted.
func (g *Graph) Builders(image Name) []string { return ids(g.builders[image]) }

// Images returns the images that some task builds from and that can move, sorted: what has to be watched.
func (g *Graph) Images() []Name {
	var names []Name
	for name, users := range g.users {
		if name.Digest() == "" && slices.ContainsFunc(users, func(n *node) bool { return n.follows(name) }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// follows reports whether a moved image starts the task.
func (n *node) follows(image Name) bool {
	return slices.ContainsFunc(n.Bases, func(e Edge) bool { return e.Base == image && n.Follows(e) })
}

func include(list []*node, n *node) []*node {
	if len(list) > 0 && list[len(list)-1] == n { // added a moment ago
		return list
	}
	return append(list, n)
}

func exclude(lists map[Name][]*node, image Name, n *node) {
	rest := slices.DeleteFunc(lists[image], func(o *node) bool { return o == n })
	if len(rest) == 0 {
		delete(lists, image)
		return
	}
	lists[image] = rest
}

func ids(nodes []*node) []string {
	list := make([]string, len(nodes))
	for i, n := range nodes {
		list[i] = n.ID
	}
	slices.Sort(list)
	return list
}
