package triggers

import (
	"slices"
	"sync"

	"kiln/internal/event"
	"kiln/triggers/decide"
)

// maxProblems bounds the problems of a report.
const maxProblems = 100

// A Report is what looking at the world has found.
type Report struct {
	Looked   int      // tracks that were compared
	Found    []Found  // decisions that were made, or would be
	Problems []string // what could not be looked at, as sentences
}

// Found is a decision about a task.
type Found struct {
	Task     string // name
	Decision decide.Decision
}

// A report collects a Report. A nil one collects nothing.
type report struct {
	mu sync.Mutex
	Report
}

func (r *report) look() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Looked++
}

func (r *report) found(d *event.Decision) {
	if r == nil || d.Made.Origin == decide.FromBaseline {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Found = append(r.Found, Found{d.Task, d.Made})
}

// merge adds what another report says of tracks that this one says nothing of: a dry run may find the same twice.
func (r *report) merge(o *report) {
	known := map[string]bool{}
	key := func(f Found) string { return f.Task + " " + f.Decision.Track }
	r.mu.Lock()
	for _, f := range r.Found {
		known[key(f)] = true
	}
	for _, f := range o.Found {
		if !known[key(f)] {
			r.Found = append(r.Found, f)
		}
	}
	r.Looked += o.Looked
	r.mu.Unlock()
	for _, p := range o.Problems {
		r.problem(p)
	}
}

func (r *report) problem(sentence string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.Problems) < maxProblems && !slices.Contains(r.Problems, sentence) {
		r.Problems = append(r.Problems, sentence)
	}
}
