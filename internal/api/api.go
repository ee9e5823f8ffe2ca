// Package api serves kiln's HTTP API.
//
// It decides nothing: a request for a run becomes an event, and the answer is read from what the other
// components stored. Every route needs a token, and says what role; every body, list and stream is bounded. An answer that
// is not a 2xx carries an apiclient.Error. The wire types are those of package apiclient.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/audit"
	"kiln/internal/auth"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/taskspec"
)

// maxBody is the largest request in bytes, uploads of contexts apart.
const maxBody = 4 << 20

// A Server answers API requests. Its fields are set before Handler is called and not changed after.
type Server struct {
	Bus   *bus.Bus
	Store *store.Store
	Index *index.Index
	Keys  *auth.Keys
	// Recipient is the public key that secrets are sealed to before anything is stored.
	Recipient string
	// Contexts serves the upload of contexts.
	Contexts http.Handler
	// HasContext reports whether a context named in a request has been uploaded.
	HasContext func(ctx context.Context, ref string) (bool, error)
	// Check says what is wrong with a run before it is queued; taskspec.Errors point into its task file.
	Check func(r run.Run, secrets map[string]string) (taskspec.Warnings, error)
	// Waiting says, in a sentence, what each of these runs waits for, as far as they are queued.
	Waiting func(ctx context.Context, ids ...string) (map[string]string, error)
	// Publisher returns the ID of the run that published an image of the co-located registry.
	Publisher func(ctx context.Context, reference string) (string, error)
	// Reconcile looks at everything that a task follows and decides what has changed; Replay handles a
	// stored event again. A dry run stores nothing.
	Reconcile func(ctx context.Context, dryRun bool) (apiclient.Reconciled, error)
	Replay    func(ctx context.Context, seq uint64, dryRun bool) (apiclient.Reconciled, error)
	// KeepRuns is how long runs are kept after their end; 0 means for ever.
	KeepRuns time.Duration
	// Hooks is what is needed to keep hooks.
	Hooks HookConfig
	// TokenDeleted is told which token, by key and ID, is good for nothing any more.
	TokenDeleted func(key, id string)
	// TestTarget sends an event to a target of notifications, once.
	TestTarget func(ctx context.Context, t event.Target) error
	// Cache tells what the build daemon keeps, of the records that one of the filters matches; PruneCache
	// removes some of it.
	Cache      func(ctx context.Context, filters []string) (apiclient.Cache, error)
	PruneCache func(ctx context.Context, p apiclient.CachePrune) (apiclient.CachePruned, error)
	// Registry is what images are kept in.
	Registry *registry.Store
	// Collect frees the space of what nothing in it refers to; Purge deletes old images.
	Collect func(ctx context.Context, dryRun bool) (apiclient.Collected, error)
	// Import copies an image of a registry.
	Import func(ctx context.Context, im apiclient.Import) (apiclient.Imported, error)
	Purge  func(ctx context.Context, p apiclient.Purge) (apiclient.Purged, error)
	// Audit is told of all that was to change something, and of who was denied. Nil is told nothing.
	Audit *audit.Log
	// Backup writes a backup of the state.
	Backup func(ctx context.Context, w io.Writer, b apiclient.Backup) error
	// Status describes the server.
	Status func(context.Context) apiclient.Status
	Log    *slog.Logger

	ids run.Minter // of tasks
}

// wireError turns an error into what the client sees. What no case knows is ours and stays in the log.
func (s *Server) wireError(err error) *apiclient.Error {
	var e *apiclient.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &e):
		return e
	case errors.As(err, &tooLarge):
		return &apiclient.Error{Status: http.StatusRequestEntityTooLarge, Code: apiclient.CodeTooLarge,
			Message: fmt.Sprintf("request is larger than %d bytes", tooLarge.Limit)}
	case errors.Is(err, run.ErrLimit):
		return forbidden("%s", err.Error())
	case errors.Is(err, store.ErrNotFound):
		return &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound, Message: err.Error()}
	case errors.Is(err, bus.ErrFull):
		return &apiclient.Error{Status: http.StatusInsufficientStorage, Code: apiclient.CodeDiskFull,
			Message: "the server cannot store the request: " + err.Error(),
			Remedy:  "free space on the disk of the server's data directory, then try again"}
	case errors.Is(err, context.DeadlineExceeded):
		return &apiclient.Error{Status: http.StatusServiceUnavailable, Code: apiclient.CodeUnavailable,
			Message: "the server did not decide in time; the request is stored and will be", Remedy: "look for the run with `kiln runs`"}
	}
	if e := imageError(err); e != nil {
		return e
	}
	return &apiclient.Error{Status: http.StatusInternalServerError, Code: apiclient.CodeInternal,
		Message: "internal error", Remedy: "look into the server's log"}
}

func problems(errs []*taskspec.Error, warning bool) []apiclient.Problem {
	list := make([]apiclient.Problem, len(errs))
	for i, e := range errs {
		list[i] = apiclient.Problem{File: e.File, Line: e.Line, Column: e.Col, Step: e.Step, Property: e.Property,
			Message: e.Message, Warning: warning}
	}
	return list
}

func invalid(format string, args ...any) *apiclient.Error {
	return &apiclient.Error{Status: http.StatusUnprocessableEntity, Code: apiclient.CodeInvalid, Message: fmt.Sprintf(format, args...)}
}

func writeError(w http.ResponseWriter, e *apiclient.Error) {
	writeJSON(w, e.Status, map[string]*apiclient.Error{"error": e})
}

// writeJSON answers with v. An error means that the client is gone, which nobody is left to hear.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
