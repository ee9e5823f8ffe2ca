// Package api serves kiln's HTTP API.
//
// It decides nothing: a request for a run becomes an event, and the answer is read from what the other
// components stored. Every route needs a token; every body, list and stream is bounded. An answer that
// is not a 2xx carries an apiclient.Error. The wire types are those of package apiclient.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"kiln/internal/apiclient"
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
	// Status describes the server.
	Status func(context.Context) apiclient.Status
	Log    *slog.Logger

	ids run.Minter // of tasks
}

// Handler returns the handler of everything under /api/.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+apiclient.PathRuns, s.route(s.submit))
	mux.HandleFunc("GET "+apiclient.PathRuns, s.route(s.list))
	mux.HandleFunc("GET "+apiclient.PathRuns+"/{id}", s.route(s.show))
	mux.HandleFunc("GET "+apiclient.PathRuns+"/{id}/log", s.route(s.log))
	mux.HandleFunc("POST "+apiclient.PathRuns+"/{id}/cancel", s.route(s.cancel))
	mux.HandleFunc("POST "+apiclient.PathRuns+"/{id}/rerun", s.route(s.rerun))
	mux.HandleFunc("GET "+apiclient.PathStatus, s.route(s.status))
	mux.HandleFunc("POST "+apiclient.PathRuns+"/{id}/approve", s.route(s.approve))
	mux.HandleFunc("GET "+apiclient.PathRuns+"/{id}/why", s.route(s.why))
	mux.HandleFunc("GET "+apiclient.PathWhy, s.route(s.whyImage))
	mux.HandleFunc("GET /api/v1/tasks/{name}/decisions", s.route(s.listDecisions))
	mux.HandleFunc("GET "+apiclient.PathEvents, s.route(s.listEvents))
	mux.HandleFunc("POST "+apiclient.PathEvents+"/{seq}/replay", s.route(s.replayEvent))
	mux.HandleFunc("POST "+apiclient.PathReconcile, s.route(s.reconcile))
	mux.HandleFunc("GET "+apiclient.PathCache, s.route(s.showCache))
	mux.HandleFunc("POST "+apiclient.PathCachePrune, s.route(s.pruneCache))
	s.handleTasks(mux)
	mux.HandleFunc(apiclient.PathContexts+"/", s.guard(s.Contexts.ServeHTTP))
	mux.HandleFunc(apiclient.PathContexts, s.guard(s.Contexts.ServeHTTP))
	s.routeHooks(mux)
	s.routeTokens(mux)
	s.routeTargets(mux)
	s.routeWebhooks(mux)
	s.routeImages(mux)
	s.routeWorkers(mux)
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: fmt.Sprintf("no route %s %s", r.Method, r.URL.Path)})
	})
	return mux
}

type principalKey struct{}

// guard lets only authenticated administrators pass.
func (s *Server) guard(next http.HandlerFunc) http.HandlerFunc {
	return s.guardFor(next, auth.RoleAdmin)
}

// guardFor lets only authenticated callers of some roles pass.
func (s *Server) guardFor(next http.HandlerFunc, roles ...auth.Role) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, err := s.Keys.FromRequest(r, time.Now())
		if err != nil && !errors.Is(err, auth.ErrToken) {
			writeError(w, s.wireError(err))
			return
		}
		if err != nil || p.Role == auth.RoleAnonymous {
			w.Header().Set("WWW-Authenticate", `Bearer realm="kiln"`)
			writeError(w, &apiclient.Error{Status: http.StatusUnauthorized, Code: apiclient.CodeUnauthorized,
				Message: "token is missing, wrong or expired",
				Remedy:  "set KILN_TOKEN to the content of " + auth.AdminTokenFile + " in the server's data directory"})
			return
		}
		if !slices.Contains(roles, p.Role) {
			writeError(w, &apiclient.Error{Status: http.StatusForbidden, Code: apiclient.CodeForbidden,
				Message: fmt.Sprintf("%s may not use this part of the API", p.Name)})
			return
		}
		next(w, r.WithContext(context.WithValue(r.Context(), principalKey{}, p)))
	}
}

// route guards a handler, bounds its body, answers with the error it returns and tells how long that took.
func (s *Server) route(h func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return timing(s.guard(s.answering(h)))
}

// timing tells how long a handler took.
func timing(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { next(&timed{ResponseWriter: w, begin: time.Now()}, r) }
}

// answering bounds the body that a handler gets, and answers with the error it returns.
func (s *Server) answering(h func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		err := h(w, r)
		if err == nil {
			return
		}
		e := s.wireError(err)
		if e.Status == http.StatusInternalServerError {
			s.Log.Error("request not answered", "method", r.Method, "path", r.URL.Path, "err", err)
		}
		writeError(w, e)
	}
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
