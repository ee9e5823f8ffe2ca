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
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Found = append(r.Found, Found{d.Task, d.Made})
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
