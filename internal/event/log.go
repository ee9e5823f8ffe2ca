package event

import "time"

// Streams of a LogEntry.
const (
	StreamKiln   = 0 // kiln's own words about the step
	StreamStdout = 1
	StreamStderr = 2
)

// A LogEntry is one piece of a step's log: a chunk of output or a change of a build's progress.
// Exactly one of Data, Vertex, Status and End is set.
type LogEntry struct {
	Time   time.Time `json:"t"`
	Stream int       `json:"s,omitempty"`
	// VertexID is the build vertex that Data comes from; empty for a container's output.
	VertexID string        `json:"v,omitempty"`
	Data     []byte        `json:"d,omitempty"`
	Vertex   *Vertex       `json:"x,omitempty"`
	Status   *VertexStatus `json:"p,omitempty"`
	// End says that the step's containers have written all they will, and that a line of it has no end: it
	// is whole as it is.
	End bool `json:"e,omitempty"`
}

// A Vertex is a node of a build and its state, as BuildKit reports it. A later entry with the same
// ID replaces an earlier one.
type Vertex struct {
	ID        string     `json:"id"`
	Inputs    []string   `json:"in,omitempty"`
	Name      string     `json:"name"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"done,omitempty"`
	Cached    bool       `json:"cached,omitempty"`
	Error     string     `json:"err,omitempty"`
}

// A VertexStatus is the progress of one item (a layer, a transfer) of a vertex. Total and Current
// are bytes or counts, as Name suggests.
type VertexStatus struct {
	ID        string     `json:"id"`
	Vertex    string     `json:"v"`
	Name      string     `json:"name,omitempty"`
	Current   int64      `json:"cur,omitempty"`
	Total     int64      `json:"tot,omitempty"`
	Time      time.Time  `json:"t"`
	Started   *time.Time `json:"started,omitempty"`
	Completed *time.Time `json:"done,omitempty"`
}

// A LogChunk is one message of a run's log: consecutive entries of one step and attempt.
type LogChunk struct {
	Attempt int        `json:"a"`
	Step    string     `json:"step"` // empty for the run itself
	Entries []LogEntry `json:"e"`
}
