package render

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/opencontainers/go-digest"

	"kiln/internal/buildkit/progress"
	"kiln/internal/event"
	"kiln/internal/run"
)

// A Terminal display draws the run as buildx draws a build: one line per vertex, redrawn in place,
// with the last lines of what is being executed. A step that is not a build is a vertex too.
type Terminal struct {
	updates  chan *client.SolveStatus
	finished chan struct{}
	vertices map[digest.Digest]*client.Vertex // drawn so far
	logs     map[digest.Digest]*logState
	kinds    map[string]string // of steps, by ID
}

// NewTerminal returns a Terminal on f, or an error if f is none. Close must be called.
func NewTerminal(ctx context.Context, f *os.File) (*Terminal, error) {
	ui, err := progressui.NewDisplay(f, progressui.TtyMode, progressui.WithPhase("Running"))
	if err != nil {
		return nil, err
	}
	t := &Terminal{
		updates:  make(chan *client.SolveStatus, 64),
		finished: make(chan struct{}),
		vertices: map[digest.Digest]*client.Vertex{},
		logs:     map[digest.Digest]*logState{},
		kinds:    map[string]string{},
	}
	go func() {
		defer close(t.finished)
		// The display goes on while the run is being cancelled, so only Close ends it.
		_, _ = ui.UpdateFrom(context.WithoutCancel(ctx), t.updates)
	}()
	return t, nil
}

// Chunk draws a piece of the log.
func (t *Terminal) Chunk(c event.LogChunk) {
	at := func(id digest.Digest) digest.Digest { return vertexID(c.Attempt, c.Step, string(id)) }
	s := progress.SolveStatus(c.Entries)
	vertices := s.Vertexes
	s.Vertexes = nil
	for _, v := range vertices {
		v.Digest, v.Name, v.Error = at(v.Digest), vertexName(c, v.Name), Clean(v.Error)
		for i, in := range v.Inputs {
			v.Inputs[i] = at(in)
		}
		t.put(s, v)
	}
	for _, p := range s.Statuses {
		p.Vertex, p.ID, p.Name = at(p.Vertex), Clean(p.ID), Clean(p.Name)
	}
	for _, l := range s.Logs {
		l.Vertex = at(l.Vertex)
		l.Data = t.clean(l.Vertex, l.Data)
	}
	for _, w := range s.Warnings {
		w.Vertex, w.Short = at(w.Vertex), []byte(Clean(string(w.Short)))
	}
	for _, e := range c.Entries {
		if e.Data != nil && e.VertexID == "" {
			id := at("")
			t.begin(s, c.Attempt, c.Step, e.Time)
			s.Logs = append(s.Logs, &client.VertexLog{
				Vertex: id, Stream: e.Stream, Data: t.clean(id, e.Data), Timestamp: e.Time,
			})
		}
	}
	t.send(s)
}

// maxDrawn bounds the output of one vertex that is drawn, in bytes: all of it stays in memory.
const maxDrawn = 4 << 20

type logState struct {
	cleaner
	drawn int
}

func (t *Terminal) clean(id digest.Digest, b []byte) []byte {
	l := t.logs[id]
	if l == nil {
		l = &logState{}
		t.logs[id] = l
	}
	if l.drawn > maxDrawn {
		return nil
	}
	if l.drawn += len(b); l.drawn > maxDrawn {
		return []byte("\n[more output than is drawn; see the run's log]\n")
	}
	return l.cleaner.clean(nil, b)
}

func (t *Terminal) send(s *client.SolveStatus) {
	if len(s.Vertexes)+len(s.Statuses)+len(s.Logs)+len(s.Warnings) > 0 {
		t.updates <- s
	}
}

// put draws v in the place of an earlier state.
func (t *Terminal) put(s *client.SolveStatus, v *client.Vertex) {
	t.vertices[v.Digest] = v
	s.Vertexes = append(s.Vertexes, v)
}

// begin draws the vertex of a step, or of the run itself, that has nothing to do with a build.
func (t *Terminal) begin(s *client.SolveStatus, attempt int, step string, at time.Time) {
	id := vertexID(attempt, step, "")
	if t.vertices[id] != nil {
		return
	}
	what := t.kinds[step]
	switch {
	case step == "":
		what = "run"
	case what == "":
		what = "step"
	}
	t.put(s, &client.Vertex{Digest: id, Name: label(attempt, step) + what, Started: &at})
}

// end draws the end of a vertex; a vertex that is not there or has ended stays as it is.
func (t *Terminal) end(s *client.SolveStatus, id digest.Digest, at time.Time, problem string) {
	v := t.vertices[id]
	if v == nil || v.Completed != nil {
		return
	}
	ended := *v
	ended.Completed, ended.Error = &at, problem
	if ended.Started == nil {
		ended.Started = &at
	}
	t.put(s, &ended)
}

// Run draws the steps that are not builds, and how long the run waits.
func (t *Terminal) Run(r run.Run) {
	s := &client.SolveStatus{}
	queued := vertexID(0, "", "queued")
	if r.State == run.Queued {
		name := "[run] " + r.ID + " queued"
		if r.Reason != "" {
			name += ": " + Clean(r.Reason)
		}
		if v := t.vertices[queued]; v == nil || v.Name != name && v.Completed == nil {
			t.put(s, &client.Vertex{Digest: queued, Name: name, Started: &r.Created})
		}
	} else {
		t.end(s, queued, orNow(r.Started), "")
	}
	for _, step := range r.Steps {
		t.kinds[step.ID] = step.Kind
		id := vertexID(step.Attempt, step.ID, "")
		if step.Kind != "build" && !step.Started.IsZero() {
			t.begin(s, step.Attempt, step.ID, step.Started)
		}
		if step.State.Done() {
			t.end(s, id, orNow(step.Finished), stepProblem(step))
		}
	}
	t.send(s)
}

func stepProblem(s run.Step) string {
	switch {
	case s.State == run.StepSucceeded || s.State == run.StepSkipped:
		return ""
	case s.State == run.StepCanceled:
		return context.Canceled.Error() // drawn as canceled, not as an error
	}
	return stepOutcome(run.Step{State: s.State, Error: s.Error, ExitCode: s.ExitCode})
}

func orNow(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}

// Note draws a sentence of the program's own as a vertex that has ended.
func (t *Terminal) Note(text string) {
	s, now := &client.SolveStatus{}, time.Now()
	t.put(s, &client.Vertex{
		Digest: digest.Digest(fmt.Sprintf("note/%d", len(t.vertices))), Name: "[kiln] " + text, Started: &now, Completed: &now,
	})
	t.send(s)
}

// Close draws what has not ended as canceled and gives the terminal back.
func (t *Terminal) Close() {
	s, now := &client.SolveStatus{}, time.Now()
	for id, v := range t.vertices {
		problem := context.Canceled.Error()
		if ofRun := strings.Contains(string(id), "//"); ofRun {
			problem = ""
		}
		if v.Started != nil {
			t.end(s, id, now, problem)
		}
	}
	t.send(s)
	close(t.updates)
	<-t.finished
}

func vertexID(attempt int, step, id string) digest.Digest {
	return digest.Digest(fmt.Sprintf("%d/%s/%s", attempt, step, id))
}

func label(attempt int, step string) string {
	if step == "" {
		step = self
	}
	if attempt > 1 {
		step += fmt.Sprintf(" attempt %d", attempt)
	}
	return "[" + Clean(step) + "] "
}

// vertexName names a vertex as buildx does when there are several targets: [step 2/3] RUN make.
func vertexName(c event.LogChunk, name string) string {
	name = Clean(name)
	l := label(c.Attempt, c.Step)
	if rest, ok := strings.CutPrefix(name, "["); ok {
		return strings.TrimSuffix(l, "] ") + " " + rest
	}
	return l + name
}
