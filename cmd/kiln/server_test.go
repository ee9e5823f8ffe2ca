package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/run"
)

const testToken = "t0ken"

// A contract is an HTTP server that keeps the API's contract as its types state it, and executes
// nothing: a run ends as the test says.
type contract struct {
	*httptest.Server
	end func(*run.Run) // decides how a run ends

	mu       sync.Mutex
	runs     []run.Run // by ID, ascending
	submits  []apiclient.Submit
	contexts map[string]bool
	missing  bool // contexts must be uploaded first
	hang     bool // runs go on until cancelled
	stubborn bool // and beyond
	canceled chan struct{}
	started  chan struct{} // gets a value when a run's log is first read
	refuse   *apiclient.Error
}

func newContract(t *testing.T) *contract {
	t.Helper()
	s := &contract{contexts: map[string]bool{}, canceled: make(chan struct{}), started: make(chan struct{}, 8)}
	s.end = func(r *run.Run) { r.State = run.Succeeded }
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+apiclient.PathRuns, s.submit)
	mux.HandleFunc("GET "+apiclient.PathRuns, s.list)
	mux.HandleFunc("GET "+apiclient.PathRuns+"/{id}", s.get)
	mux.HandleFunc("POST "+apiclient.PathRuns+"/{id}/cancel", s.cancel)
	mux.HandleFunc("POST "+apiclient.PathRuns+"/{id}/rerun", s.rerun)
	mux.HandleFunc("GET "+apiclient.PathRuns+"/{id}/log", s.log)
	mux.HandleFunc("PUT "+apiclient.PathContexts+"/{id}", s.upload)
	mux.HandleFunc("GET "+apiclient.PathStatus, s.status)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer "+testToken:
			fail(w, 401, apiclient.Error{Code: apiclient.CodeUnauthorized, Message: "the token is not known here"})
		case s.refuse != nil:
			fail(w, s.refuse.Status, *s.refuse)
		default:
			mux.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func fail(w http.ResponseWriter, status int, e apiclient.Error) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]apiclient.Error{"error": e})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func (s *contract) submit(w http.ResponseWriter, r *http.Request) {
	var in apiclient.Submit
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, 400, apiclient.Error{Code: apiclient.CodeInvalid, Message: err.Error()})
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.submits = append(s.submits, in)
	if id := strings.TrimPrefix(in.Spec.Context, "context://"); s.missing && id != "" && !s.contexts[id] {
		fail(w, 409, apiclient.Error{Code: apiclient.CodeContextMissing, Message: "upload the context first"})
		return
	}
	reply(w, 201, s.add(in.Spec, run.Cause{Kind: "manual"}))
}

func (s *contract) add(spec run.Spec, cause run.Cause) run.Run {
	r := run.Run{ID: fmt.Sprintf("r0000%02dabcde", len(s.runs)), State: run.Queued, Spec: spec, Cause: cause, Created: time.Now()}
	s.runs = append(s.runs, r)
	return r
}

func (s *contract) list(w http.ResponseWriter, r *http.Request) {
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	before, prefix := r.URL.Query().Get("before"), r.URL.Query().Get("prefix")
	s.mu.Lock()
	defer s.mu.Unlock()
	page := apiclient.Runs{Runs: []run.Run{}}
	for i := len(s.runs) - 1; i >= 0 && len(page.Runs) < limit; i-- {
		if (before == "" || s.runs[i].ID < before) && strings.HasPrefix(s.runs[i].ID, prefix) {
			page.Runs = append(page.Runs, s.runs[i])
		}
	}
	reply(w, 200, page)
}

func (s *contract) find(w http.ResponseWriter, r *http.Request) *run.Run {
	for i := range s.runs {
		if s.runs[i].ID == r.PathValue("id") {
			return &s.runs[i]
		}
	}
	fail(w, 404, apiclient.Error{Code: apiclient.CodeNotFound, Message: fmt.Sprintf("run %s: no such run", r.PathValue("id"))})
	return nil
}

func (s *contract) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.find(w, r); found != nil {
		reply(w, 200, *found)
	}
}

func (s *contract) cancel(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.find(w, r); found != nil {
		if !found.State.Final() && !s.stubborn {
			found.State, found.Reason = run.Canceled, "canceled by admin"
			close(s.canceled)
		}
		reply(w, 202, *found)
	}
}

func (s *contract) rerun(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.find(w, r); found != nil {
		reply(w, 201, s.add(found.Spec, run.Cause{Kind: "rerun", RerunOf: found.ID}))
	}
}

func (s *contract) upload(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contexts[r.PathValue("id")] = true
	reply(w, 201, struct{}{})
}

func (s *contract) status(w http.ResponseWriter, _ *http.Request) {
	reply(w, 200, apiclient.Status{Version: version(), Registry: "localhost:7070", DataDir: "/d", Checks: []apiclient.Check{
		{Name: "buildkit", OK: true, Detail: "v0.33.1"},
		{Name: "disk", Detail: "97% full", Remedy: "free some space in /d"},
	}})
}

func (s *contract) log(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	found := s.find(w, r)
	s.mu.Unlock()
	if found == nil {
		return
	}
	emit := func(name, id string, v any) {
		b, _ := json.Marshal(v)
		fmt.Fprintf(w, "id: %s\nevent: %s\ndata: %s\n\n", id, name, b)
		w.(http.Flusher).Flush()
	}
	emit(apiclient.StreamLog, "1", event.LogChunk{Attempt: 1, Step: "build", Entries: []event.LogEntry{
		{Stream: event.StreamStdout, Data: []byte("hello\n")},
	}})
	if s.hang {
		s.started <- struct{}{}
		select {
		case <-s.canceled:
		case <-r.Context().Done():
			return
		}
	}
	s.mu.Lock()
	if !found.State.Final() {
		s.end(found)
	}
	final := *found
	s.mu.Unlock()
	emit(apiclient.StreamRun, "", final)
	emit(apiclient.StreamEnd, "", struct{}{})
}

// A result is what a command left behind.
type result struct {
	code     int
	out, err string
}

// kiln runs a command line against s.
func (s *contract) kiln(ctx context.Context, args ...string) result {
	return kiln(ctx, map[string]string{envServer: s.URL, envToken: testToken, envData: os.DevNull}, args...)
}

func kiln(ctx context.Context, env map[string]string, args ...string) result {
	var out, errs bytes.Buffer
	code := execute(ctx, args, environment{
		In: strings.NewReader(""), Out: &out, Err: &errs,
		Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	})
	return result{code, out.String(), errs.String()}
}

// directory returns a new directory with files, given as name and content in turn.
func directory(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
