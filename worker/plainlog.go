package worker

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"

	"kiln/internal/event"
)

// maxLine is how long a line becomes before it is printed in parts, in bytes.
const maxLine = 16 << 10

// A plainLog prints what a build says, line by line: "#3 RUN make", "#3 output", "#3 DONE 0.8s". It is safe
// for concurrent use. What cannot be written is lost.
type plainLog struct {
	mu       sync.Mutex
	w        io.Writer
	vertices map[string]*plainVertex
}

type plainVertex struct {
	n           int
	named, done bool
	line        []byte // begun
}

// add is a solve.LogFunc.
func (p *plainLog) add(entries ...event.LogEntry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range entries {
		switch {
		case e.Vertex != nil:
			p.vertex(e.Vertex)
		case e.Data != nil && e.VertexID == "":
			fmt.Fprintf(p.w, "%s\n", bytes.TrimRight(e.Data, "\n"))
		case e.Data != nil:
			p.data(p.of(e.VertexID), e.Data)
		}
	}
}

func (p *plainLog) of(id string) *plainVertex {
	if p.vertices == nil {
		p.vertices = map[string]*plainVertex{}
	}
	v := p.vertices[id]
	if v == nil {
		v = &plainVertex{n: len(p.vertices) + 1}
		p.vertices[id] = v
	}
	return v
}

func (p *plainLog) vertex(e *event.Vertex) {
	if e.Started == nil && e.Completed == nil && !e.Cached {
		return
	}
	v := p.of(e.ID)
	if !v.named {
		v.named = true
		fmt.Fprintf(p.w, "#%d %s\n", v.n, oneLine(e.Name))
	}
	if v.done || e.Completed == nil && !e.Cached {
		return
	}
	v.done = true
	if len(v.line) > 0 {
		p.data(v, []byte("\n"))
	}
	switch {
	case e.Error != "":
		fmt.Fprintf(p.w, "#%d ERROR: %s\n", v.n, oneLine(e.Error))
	case e.Cached:
		fmt.Fprintf(p.w, "#%d CACHED\n", v.n)
	case e.Started != nil:
		fmt.Fprintf(p.w, "#%d DONE %.1fs\n", v.n, e.Completed.Sub(*e.Started).Round(100*time.Millisecond).Seconds())
	}
}

// data prints whole lines.
func (p *plainLog) data(v *plainVertex, data []byte) {
	v.line = append(v.line, data...)
	for {
		line, rest, whole := bytes.Cut(v.line, []byte("\n"))
		if !whole && len(v.line) < maxLine {
			return
		}
		fmt.Fprintf(p.w, "#%d %s\n", v.n, line)
		v.line = rest
	}
}
