// Package progress translates between BuildKit's progress of a build and entries of a step's log.
//
// The translation keeps names, order and times, so that a log can be drawn by BuildKit's own
// display, live or years later.
package progress

import (
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"kiln/internal/event"
)

// MaxData bounds the output in one log entry, in bytes. Longer output becomes several entries.
const MaxData = 32 << 10

// Entries returns what s says as log entries: vertices, then statuses, output and warnings. A
// warning is an entry of the stream event.StreamKiln with the vertex it is about. Vertices carry no
// time of their own and get now. The entries share no memory with s.
func Entries(s *client.SolveStatus, now time.Time) []event.LogEntry {
	out := make([]event.LogEntry, 0, len(s.Vertexes)+len(s.Statuses)+len(s.Logs)+len(s.Warnings))
	for _, v := range s.Vertexes {
		out = append(out, event.LogEntry{Time: now, Vertex: vertexEntry(v)})
	}
	for _, v := range s.Statuses {
		out = append(out, event.LogEntry{Time: v.Timestamp, Status: &event.VertexStatus{
			ID: v.ID, Vertex: v.Vertex.String(), Name: v.Name, Current: v.Current, Total: v.Total,
			Time: v.Timestamp, Started: copyTime(v.Started), Completed: copyTime(v.Completed),
		}})
	}
	for _, l := range s.Logs {
		out = AppendData(out, event.LogEntry{Time: l.Timestamp, Stream: l.Stream, VertexID: l.Vertex.String()}, l.Data)
	}
	for _, w := range s.Warnings {
		out = AppendData(out, event.LogEntry{Time: now, Stream: event.StreamKiln, VertexID: w.Vertex.String()}, w.Short)
	}
	return out
}

// AppendData appends entries like e for a copy of data, none longer than MaxData.
func AppendData(out []event.LogEntry, e event.LogEntry, data []byte) []event.LogEntry {
	for len(data) > 0 {
		n := min(len(data), MaxData)
		e.Data = append([]byte(nil), data[:n]...)
		out = append(out, e)
		data = data[n:]
	}
	return out
}

// SolveStatus is the inverse of Entries. It leaves out what does not come from BuildKit: kiln's own
// words and the output of containers.
func SolveStatus(entries []event.LogEntry) *client.SolveStatus {
	s := &client.SolveStatus{}
	for _, e := range entries {
		switch {
		case e.Vertex != nil:
			s.Vertexes = append(s.Vertexes, vertexOf(e.Vertex))
		case e.Status != nil:
			p := e.Status
			s.Statuses = append(s.Statuses, &client.VertexStatus{
				ID: p.ID, Vertex: digest.Digest(p.Vertex), Name: p.Name, Current: p.Current, Total: p.Total,
				Timestamp: p.Time, Started: copyTime(p.Started), Completed: copyTime(p.Completed),
			})
		case e.VertexID == "": // not of a build
		case e.Stream == event.StreamKiln:
			s.Warnings = append(s.Warnings, &client.VertexWarning{Vertex: digest.Digest(e.VertexID), Level: 1, Short: e.Data})
		default:
			s.Logs = append(s.Logs, &client.VertexLog{
				Vertex: digest.Digest(e.VertexID), Stream: e.Stream, Data: e.Data, Timestamp: e.Time,
			})
		}
	}
	return s
}

func vertexEntry(v *client.Vertex) *event.Vertex {
	out := &event.Vertex{
		ID: v.Digest.String(), Name: v.Name, Cached: v.Cached, Error: v.Error,
		Started: copyTime(v.Started), Completed: copyTime(v.Completed),
	}
	for _, d := range v.Inputs {
		out.Inputs = append(out.Inputs, d.String())
	}
	return out
}

func vertexOf(v *event.Vertex) *client.Vertex {
	out := &client.Vertex{
		Digest: digest.Digest(v.ID), Name: v.Name, Cached: v.Cached, Error: v.Error,
		Started: copyTime(v.Started), Completed: copyTime(v.Completed),
	}
	for _, d := range v.Inputs {
		out.Inputs = append(out.Inputs, digest.Digest(d))
	}
	return out
}

func copyTime(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	c := *t
	return &c
}
