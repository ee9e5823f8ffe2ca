// Package apiclient is kiln's HTTP API as a client sees it: requests, answers, errors, and a Client.
//
// The server (package api) imports these types, so the two cannot drift apart. All calls take a
// context, send the token as a Bearer header and return *Error for every answer that is not a 2xx.
// A server that cannot be reached is ErrUnreachable.
package apiclient

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"kiln/internal/run"
)

// Paths of the API.
const (
	// PathRuns: POST Submit -> 201 run.Run; GET, see RunsQuery, -> Runs.
	PathRuns     = "/api/v1/runs"
	PathContexts = "/api/v1/contexts" // see package source for the upload protocol
	PathStatus   = "/api/v1/status"   // GET -> Status
)

// RunPath is the path of one run: GET -> run.Run.
func RunPath(id string) string { return PathRuns + "/" + id }

// CancelPath is where a run is cancelled: POST -> 202 run.Run. Cancelling a final run changes nothing.
func CancelPath(id string) string { return RunPath(id) + "/cancel" }

// RerunPath is where a run is repeated: POST Rerun -> 201 run.Run.
func RerunPath(id string) string { return RunPath(id) + "/rerun" }

// LogPath is where a run's log is streamed: GET ?follow=1, see StreamLog.
func LogPath(id string) string { return RunPath(id) + "/log" }

// A Rerun asks for a repetition of a run: POST /api/v1/runs/{id}/rerun.
type Rerun struct {
	Key string `json:"key,omitempty"` // as in Submit
	// Fresh has the run's task use the source and base images of now. Otherwise it uses the same commit and
	// base images again.
	Fresh bool `json:"fresh,omitempty"`
}

// A Submit asks for a run: POST /api/v1/runs. The answer is the queued run.
type Submit struct {
	// Key makes the request idempotent: a second one with the same key answers with the same run.
	// Empty means the server mints one.
	Key  string   `json:"key,omitempty"`
	Spec run.Spec `json:"spec"`
	// Secrets are values of a task file's template, or what --secret of a build names, by name; after
	// run.SecretArg, of build arguments of a build. The server seals them before it stores anything.
	Secrets map[string]string `json:"secrets,omitempty"`
}

// Runs is a page of runs, newest first: GET /api/v1/runs.
type Runs struct {
	Runs []run.Run `json:"runs"`
}

// Status describes a running server: GET /api/v1/status.
type Status struct {
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Registry string    `json:"registry"` // canonical host of the co-located registry
	DataDir  string    `json:"dataDir"`
	Checks   []Check   `json:"checks"`
}

// A Check is one thing kiln needs.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// Codes of an Error.
const (
	CodeInvalid        = "invalid"         // 422: the request is wrong; Problems says where
	CodeContextMissing = "context_missing" // 409: upload the context first
	CodeUnauthorized   = "unauthorized"    // 401
	CodeForbidden      = "forbidden"       // 403
	CodeNotFound       = "not_found"       // 404
	CodeConflict       = "conflict"        // 409
	CodeTooLarge       = "too_large"       // 413
	CodeUnavailable    = "unavailable"     // 503: try again later
	CodeDiskFull       = "disk_full"       // 507
	CodeTarget         = "target"          // 502: a target of notifications refused, or did not answer
	CodeForge          = "forge"           // 502: a git forge refused, or did not answer
	CodeInternal       = "internal"        // 500
)

// An Error is the body of every answer that is not a 2xx, under the key "error".
type Error struct {
	Status   int       `json:"-"`
	Code     string    `json:"code"`
	Message  string    `json:"message"`
	Remedy   string    `json:"remedy,omitempty"`
	Problems []Problem `json:"problems,omitempty"`
}

// A Problem is one mistake in a document that the caller sent.
type Problem struct {
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Step     string `json:"step,omitempty"`
	Property string `json:"property,omitempty"`
	Message  string `json:"message"`
	Warning  bool   `json:"warning,omitempty"`
}

// String returns file:line:col: step "x": property: message.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		fmt.Fprintf(&b, "%s:", p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", p.Line, max(1, p.Column))
		}
		b.WriteByte(' ')
	}
	if p.Step != "" {
		fmt.Fprintf(&b, "step %q: ", p.Step)
	}
	if p.Property != "" {
		fmt.Fprintf(&b, "%s: ", p.Property)
	}
	b.WriteString(p.Message)
	return b.String()
}

func (e *Error) Error() string {
	if len(e.Problems) == 0 {
		return e.Message
	}
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// ErrUnreachable is returned when no server answers at the address.
var ErrUnreachable = errors.New("server not reachable")

// Stream event names of GET /api/v1/runs/{id}/log?follow=1, a server-sent event stream. Every "log"
// event carries an id; sending the last one back as Last-Event-ID resumes the stream after it. While
// nothing happens the server sends a comment line every StreamBeat, so that a dead peer is noticed.
const (
	StreamLog = "log" // data: event.LogChunk
	StreamRun = "run" // data: run.Run, at the start, at each change of state, and last of all when final
	StreamEnd = "end" // no more will come; without follow, or after the final run
)

// StreamBeat is the longest silence of a healthy stream.
const StreamBeat = 15 * time.Second
