package render

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
)

const self = "kiln" // the label of lines about the run itself

// A Plain display writes lines: "step | output", "step | #3 RUN make  0.8s" for a build's vertices
// and "step | => Succeeded  1.2s" for what kiln says of a step. A line is written when it is
// complete, so the lines of parallel steps alternate but never mix.
type Plain struct {
	w        *bufio.Writer
	vertices map[vertexKey]*vertexLine
	count    int // vertices numbered so far
	lines    map[lineKey]*liner
	attempt  int
	said     map[string]bool // announcements made or waiting
	spoke    map[string]bool // steps, by attempt, that have said something
	waiting  []announcement  // by time
	last     run.Run
}

type vertexKey struct {
	attempt  int
	step, id string
}

type lineKey struct {
	vertexKey
	stream int
}

type vertexLine struct {
	n             int
	started, done bool
}

// An announcement is a line about a step that is due before log entries of a later time.
type announcement struct {
	at          time.Time
	label, text string
}

// NewPlain returns a Plain that writes to w.
func NewPlain(w io.Writer) *Plain {
	return &Plain{
		w:        bufio.NewWriter(w),
		vertices: map[vertexKey]*vertexLine{},
		lines:    map[lineKey]*liner{},
		said:     map[string]bool{},
		spoke:    map[string]bool{},
	}
}

// Chunk writes the lines that c completes.
func (p *Plain) Chunk(c event.LogChunk) {
	defer p.w.Flush()
	label := labelOf(c.Step)
	for i, e := range c.Entries {
		if !e.Time.IsZero() {
			p.announceUntil(e.Time)
		}
		p.announceAttempt(c.Attempt)
		p.spoke[stepKey(c.Attempt, c.Step)] = true
		key := vertexKey{c.Attempt, c.Step, e.VertexID}
		switch {
		case e.Vertex != nil:
			key.id = e.Vertex.ID
			p.vertex(key, *e.Vertex, endsHere(*e.Vertex, c.Entries[i+1:]))
		case e.End:
			p.flushVertex(key, label)
		case e.Data != nil:
			p.data(lineKey{key, e.Stream}, label, e.Data)
		}
	}
}

// endsHere reports whether the vertex, now beginning, has ended in silence a moment later: then one
// line says both.
func endsHere(v event.Vertex, rest []event.LogEntry) bool {
	for _, e := range rest {
		switch {
		case e.Data != nil:
			return false
		case e.Vertex != nil && e.Vertex.ID == v.ID:
			return e.Vertex.Completed != nil
		}
	}
	return false
}

func labelOf(step string) string {
	if step == "" {
		return self
	}
	return Clean(step)
}

func (p *Plain) line(label, text string) { fmt.Fprintf(p.w, "%s | %s\n", label, text) }

// data writes output. What kiln says comes in whole sentences, which may lack a line's end.
func (p *Plain) data(k lineKey, label string, b []byte) {
	l := p.lines[k]
	if l == nil {
		l = &liner{}
		p.lines[k] = l
	}
	if k.stream != event.StreamKiln {
		l.write(b, func(s string) { p.line(label, s) })
		return
	}
	prefix := "=> "
	if k.id != "" {
		prefix = "=> warning: "
	}
	emit := func(s string) { p.line(label, prefix+s) }
	l.write(b, emit)
	l.flush(emit)
}

// vertex writes a vertex's line when it begins and another when it ends. Brief leaves out the first.
func (p *Plain) vertex(k vertexKey, v event.Vertex, brief bool) {
	if v.Started == nil && v.Completed == nil && !v.Cached {
		return
	}
	l := p.vertices[k]
	if l == nil {
		p.count++
		l = &vertexLine{n: p.count}
		p.vertices[k] = l
	}
	label, text := labelOf(k.step), fmt.Sprintf("#%d %s", l.n, Clean(v.Name))
	ended := v.Completed != nil || v.Cached
	switch {
	case ended && !l.done:
		l.done = true
		p.flushVertex(k, label)
		p.line(label, text+outcome(v))
	case !ended && !l.started && !l.done && !brief:
		l.started = true
		p.line(label, text)
	}
}

func outcome(v event.Vertex) string {
	s := ""
	if v.Started != nil && v.Completed != nil && !v.Cached {
		s = "  " + Took(*v.Started, *v.Completed)
	}
	switch {
	case v.Error != "":
		s += "  ERROR: " + Clean(v.Error)
	case v.Cached:
		s += "  CACHED"
	}
	return s
}

// flushVertex writes the lines of a vertex, or of a step's container, that have no end.
func (p *Plain) flushVertex(k vertexKey, label string) {
	for stream := event.StreamKiln; stream <= event.StreamStderr; stream++ {
		if l := p.lines[lineKey{k, stream}]; l != nil {
			l.flush(func(s string) { p.line(label, s) })
			delete(p.lines, lineKey{k, stream})
		}
	}
}

// Run writes what is new about the run and its steps. Lines about steps wait until the log has come
// as far, or until the next call.
func (p *Plain) Run(r run.Run) {
	defer p.w.Flush()
	if p.last.ID != "" {
		p.announceUntil(time.Time{})
	}
	for n, a := range r.Attempts {
		if n > 0 {
			p.plan(fmt.Sprintf("attempt %d", a.N), announcement{
				at: a.Assigned, label: self, text: attemptText(a.N, r.Attempts[n-1]),
			})
		}
	}
	for _, s := range r.Steps {
		key := stepKey(s.Attempt, s.ID)
		if !s.Started.IsZero() && !p.spoke[key] { // else it is late, and plain to see
			p.plan(key+"started", announcement{at: s.Started, label: labelOf(s.ID), text: "=> started"})
		}
		if s.State.Done() {
			p.plan(key+string(s.State), announcement{at: s.Finished, label: labelOf(s.ID), text: "=> " + stepOutcome(s)})
		}
	}
	slices.SortStableFunc(p.waiting, func(a, b announcement) int { return a.at.Compare(b.at) })
	if !r.State.Final() && (r.State != p.last.State || r.Reason != p.last.Reason) {
		p.line(self, "=> "+runState(r))
	}
	p.last = r
}

func stepKey(attempt int, step string) string { return fmt.Sprintf("step %d %s ", attempt, step) }

// plan puts an announcement on the waiting list, once. One without a time waits for the end.
func (p *Plain) plan(key string, a announcement) {
	if p.said[key] {
		return
	}
	p.said[key] = true
	if a.at.IsZero() {
		a.at = time.Unix(1<<40, 0)
	}
	p.waiting = append(p.waiting, a)
}

// announceUntil writes what waits for a time before t; a zero t means everything.
func (p *Plain) announceUntil(t time.Time) {
	n := 0
	for ; n < len(p.waiting) && (t.IsZero() || p.waiting[n].at.Before(t)); n++ {
		a := p.waiting[n]
		if a.label == self { // another attempt
			p.flushAll()
		}
		p.line(a.label, a.text)
	}
	p.waiting = slices.Delete(p.waiting, 0, n)
}

// announceAttempt says that a later attempt speaks, if the run has not said so.
func (p *Plain) announceAttempt(n int) {
	if n <= p.attempt {
		return
	}
	if p.attempt > 0 {
		p.flushAll()
	}
	p.attempt = n
	key := fmt.Sprintf("attempt %d", n)
	if n > 1 && !p.said[key] {
		p.said[key] = true
		p.line(self, attemptText(n, run.Attempt{}))
	}
}

func attemptText(n int, before run.Attempt) string {
	s := fmt.Sprintf("=> attempt %d", n)
	switch {
	case before.Reason != "":
		s += ", the one before ended: " + Clean(before.Reason)
	case before.Outcome != "":
		s += ", the one before was " + Clean(before.Outcome)
	}
	return s
}

func stepOutcome(s run.Step) string {
	text := string(s.State)
	switch {
	case s.Error != "":
		text += ": " + Clean(strings.TrimPrefix(s.Error, "step "+s.ID+": "))
	case s.ExitCode != nil && *s.ExitCode != 0:
		text += fmt.Sprintf(": exit code %d", *s.ExitCode)
	}
	if d := Took(s.Started, s.Finished); d != "" {
		text += "  " + d
	}
	return text
}

func runState(r run.Run) string {
	text := fmt.Sprintf("run %s %s", r.ID, r.State)
	if n := len(r.Attempts); n > 0 && r.State == run.Started {
		text += " on " + Clean(r.Attempts[n-1].Worker)
	}
	if r.Reason != "" {
		text += ": " + Clean(r.Reason)
	}
	return text
}

// Note writes a sentence of the program's own.
func (p *Plain) Note(s string) {
	p.line(self, "=> "+s)
	p.w.Flush()
}

// Close writes lines that have no end, announcements that still wait, and how the run ended.
func (p *Plain) Close() {
	p.flushAll()
	p.announceUntil(time.Time{})
	if p.last.State.Final() {
		text := fmt.Sprintf("=> run %s %s", p.last.ID, p.last.State)
		if d := Took(p.last.Started, p.last.Finished); d != "" {
			text += "  " + d
		}
		p.line(self, text)
	}
	p.w.Flush()
}

// flushAll writes every line that has no end, by step.
func (p *Plain) flushAll() {
	keys := make([]lineKey, 0, len(p.lines))
	for k := range p.lines {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b lineKey) int {
		return cmp.Or(cmp.Compare(a.step, b.step), cmp.Compare(a.attempt, b.attempt), cmp.Compare(a.id, b.id))
	})
	for _, k := range keys {
		p.flushVertex(k.vertexKey, labelOf(k.step))
	}
}
