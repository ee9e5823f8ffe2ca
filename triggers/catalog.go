package triggers

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/task"
)

// An entry is a task as it is stored. It is never changed, only replaced.
type entry struct {
	task    *task.Task
	hash    string // of its definition
	context task.Context
	repo    string // key of the repository; empty if the context is none
}

func newEntry(t task.Task) *entry {
	e := &entry{task: &t, hash: t.Hash()}
	c, err := task.ParseContext(t.Context)
	if err == nil {
		e.context = c
	}
	if c.Kind == task.Git {
		e.repo = repositoryKey(c.URL)
	}
	return e
}

func (e *entry) git() bool { return e.context.Kind == task.Git }

// A catalog is all tasks and what they are linked by. It is safe for concurrent use; the zero catalog is empty.
type catalog struct {
	mu      sync.RWMutex
	tasks   map[string]*entry // by UID
	keys    map[string]string // key of the record to UID
	repos   map[string]map[string]*entry
	links   map[string]event.Links // by UID
	graph   graph.Graph
	changed chan struct{} // closed at the next change of a task
}

// set replaces the task of a key. It returns what was there under another UID, or under this one.
func (c *catalog) set(key string, e *entry) (old *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tasks == nil {
		c.tasks, c.keys, c.repos = map[string]*entry{}, map[string]string{}, map[string]map[string]*entry{}
	}
	old = c.removeLocked(key, e.task.UID)
	c.tasks[e.task.UID], c.keys[key] = e, e.task.UID
	if e.repo != "" {
		if c.repos[e.repo] == nil {
			c.repos[e.repo] = map[string]*entry{}
		}
		c.repos[e.repo][e.task.UID] = e
	}
	c.linkLocked(e.task.UID)
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
	return old
}

// remove takes the task of a key out and returns it.
func (c *catalog) remove(key string) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.removeLocked(key, "")
}

// removeLocked takes the task of a key out. Links of the task with the UID that follows it stay.
func (c *catalog) removeLocked(key, next string) *entry {
	uid, ok := c.keys[key]
	if !ok {
		return nil
	}
	old := c.tasks[uid]
	delete(c.tasks, uid)
	delete(c.keys, key)
	if users := c.repos[old.repo]; users != nil {
		if delete(users, uid); len(users) == 0 {
			delete(c.repos, old.repo)
		}
	}
	c.graph.Remove(uid)
	if uid != next {
		delete(c.links, uid)
	}
	return old
}

// setLinks replaces the links of a task; nil takes them out.
func (c *catalog) setLinks(uid string, l *event.Links) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l == nil {
		delete(c.links, uid)
	} else {
		if c.links == nil {
			c.links = map[string]event.Links{}
		}
		c.links[uid] = *l
	}
	c.linkLocked(uid)
}

// linkLocked brings the node of a task in the graph up to date.
func (c *catalog) linkLocked(uid string) {
	e, ok := c.tasks[uid]
	if !ok {
		return
	}
	n := graph.Task{ID: uid, Follow: follow(e.task.Triggers.BaseImage)}
	l := c.links[uid]
	for _, name := range l.Builds {
		n.Builds = append(n.Builds, graph.Name(name))
	}
	for _, b := range l.Bases {
		n.Bases = append(n.Bases, graph.Edge{Base: graph.Name(b.Name), Kind: graph.Kind(b.Kind), Digest: b.Digest})
	}
	c.graph.Set(n)
}

func follow(t task.BaseImageTrigger) graph.Follow {
	switch {
	case t.Status == task.Disabled:
		return graph.FollowNone
	case t.Type == task.All:
		return graph.FollowAll
	}
	return graph.FollowRuntime
}

// task returns the task with a UID, or nil.
func (c *catalog) task(uid string) *entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.tasks[uid]
}

// next returns a channel that is closed when a task is added or changed.
func (c *catalog) next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

// all returns all tasks, sorted by name.
func (c *catalog) all() []*entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return sorted(maps.Values(c.tasks))
}

// of returns the tasks of repositories, sorted by name.
func (c *catalog) of(repositories ...string) []*entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	found := map[string]*entry{}
	for _, key := range repositories {
		maps.Copy(found, c.repos[key])
	}
	return sorted(maps.Values(found))
}

// users returns the tasks that are built from an image, sorted by name.
func (c *catalog) users(name graph.Name) []*entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var list []*entry
	for _, uid := range c.graph.Users(name) {
		list = append(list, c.tasks[uid])
	}
	return sorted(slices.Values(list))
}

// images returns the images that have to be watched.
func (c *catalog) images() []graph.Name {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.graph.Images()
}

// linksOf returns the links of a task.
func (c *catalog) linksOf(uid string) event.Links {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.links[uid]
}

// circle returns the names of the tasks of a circle that an image would close at a task.
func (c *catalog) circle(uid string, base graph.Name) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	ids := c.graph.Cycle(uid, base)
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = c.tasks[id].task.Name
	}
	return names
}

func sorted(list func(func(*entry) bool)) []*entry {
	return slices.SortedFunc(list, func(a, b *entry) int { return strings.Compare(a.task.Name, b.task.Name) })
}
