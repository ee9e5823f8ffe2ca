package api

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/index"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/taskspec"
)

// decideWithin is how long a request waits for its decision.
const decideWithin = 10 * time.Second

// maxKey is the longest idempotency key, in bytes.
const maxKey = 256

// placeholderID stands for the run ID while a request is checked.
const placeholderID = "r00000000000"

func (s *Server) submit(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.Submit
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	if len(req.Spec.Secrets) > 0 {
		return invalid("spec.secrets is set by the server; send secrets beside the spec")
	}
	if err := s.checkSpec(r.Context(), req); err != nil {
		return err
	}
	if len(req.Secrets) > 0 {
		sealed, err := secret.Seal(s.Recipient, req.Secrets)
		if err != nil {
			return err
		}
		req.Spec.Secrets = sealed
	}
	return s.request(w, r, event.RunRequested{Key: req.Key, Spec: req.Spec})
}

// checkSpec refuses what could never run.
func (s *Server) checkSpec(ctx context.Context, req apiclient.Submit) error {
	if (req.Spec.Build == nil) == (req.Spec.TaskFile == nil) {
		return invalid("a run needs either a build or a task file")
	}
	if req.Spec.Build != nil && req.Spec.Context == "" {
		return invalid("a build needs a context")
	}
	if len(req.Key) > maxKey {
		return invalid("key is longer than %d bytes", maxKey)
	}
	warnings, err := s.Check(run.Run{ID: placeholderID, Created: time.Now().UTC(), Spec: req.Spec}, req.Secrets)
	var spec taskspec.Errors
	switch {
	case errors.As(err, &spec):
		e := invalid("the task is not valid")
		e.Problems = append(problems(spec, false), problems(warnings, true)...)
		return e
	case err != nil:
		return invalid("%s", err.Error())
	}
	if req.Spec.Context == "" {
		return nil
	}
	has, err := s.HasContext(ctx, req.Spec.Context)
	if err != nil {
		return err
	}
	if !has {
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeContextMissing,
			Message: "the context has not been uploaded", Remedy: "upload it, then submit again"}
	}
	return nil
}

// request publishes the wish for a run and answers with the run that was decided.
func (s *Server) request(w http.ResponseWriter, r *http.Request, req event.RunRequested) error {
	ctx, cancel := context.WithTimeout(r.Context(), decideWithin)
	defer cancel()
	if req.Key == "" {
		req.Key = rand.Text()
	}
	req.By = principal(r).Name
	decided := make(chan struct{}, 1)
	unsubscribe, err := s.Bus.Subscribe(event.DecidedSubject(req.Key), func([]byte) {
		select {
		case decided <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return err
	}
	defer unsubscribe()
	ev, err := event.New(event.Hash(req.Key), "/api/v1/runs", event.TypeRunRequested, time.Now().UTC(), req)
	if err != nil {
		return err
	}
	_, err = s.Bus.Create(ctx, event.RequestSubject(req.Key), ev, 0)
	repeated := errors.Is(err, bus.ErrConflict)
	if err != nil && !repeated {
		return err
	}
	decision, err := s.awaitDecision(ctx, req.Key, decided, repeated)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, public(s.latest(ctx, *decision.Run)))
	return nil
}

// awaitDecision waits for the decider's hint and reads the decision; without a hint it looks by itself.
func (s *Server) awaitDecision(ctx context.Context, key string, decided <-chan struct{}, now bool) (event.Decision, error) {
	look := time.NewTicker(500 * time.Millisecond)
	defer look.Stop()
	for {
		if !now {
			select {
			case <-decided:
			case <-look.C:
			case <-ctx.Done():
				return event.Decision{}, ctx.Err()
			}
		}
		now = false
		var d event.Decision
		_, err := s.Bus.Last(ctx, bus.StreamDecisions, event.DecisionSubject(event.QuickTask, key), &d)
		if err == nil && d.Run != nil {
			return d, nil
		}
		if err != nil && !errors.Is(err, bus.ErrNone) {
			return d, err
		}
	}
}

// latest is the stored record of a run, or the run as it was decided while there is none yet.
func (s *Server) latest(ctx context.Context, decided run.Run) run.Run {
	if r, _, err := s.Store.Runs.Get(ctx, decided.ID); err == nil {
		return r
	}
	return decided
}

// public is a run without what no client needs.
func public(r run.Run) run.Run {
	r.Spec.Secrets = nil
	return r
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit := 20
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 1000 {
			return invalid("limit %q: want a number from 1 to 1000", v)
		}
		limit = n
	}
	runs, err := s.Index.List(r.Context(), index.Query{Prefix: q.Get("prefix"), Before: q.Get("before"), Limit: limit})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, apiclient.Runs{Runs: runs})
	return nil
}

// find returns the run that the path names.
func (s *Server) find(r *http.Request) (run.Run, error) {
	id := r.PathValue("id")
	if !run.ValidID(id) {
		return run.Run{}, &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: "no run " + strconv.Quote(id), Remedy: "list the runs with `kiln runs`"}
	}
	found, _, err := s.Store.Runs.Get(r.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return found, &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: "no run " + strconv.Quote(id), Remedy: "list the runs with `kiln runs`"}
	}
	return found, err
}

func (s *Server) show(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, public(found))
	return nil
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	if found.State.Final() {
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict,
			Message: "run " + found.ID + " has ended already: " + string(found.State)}
	}
	ev, err := event.New(rand.Text(), "/api/v1/runs/"+found.ID+"/cancel", event.TypeCancelRequested, time.Now().UTC(),
		event.CancelRequested{Run: found.ID, By: principal(r).Name})
	if err != nil {
		return err
	}
	if _, err := s.Bus.Publish(r.Context(), event.CancelSubject(found.ID), ev.ID, ev); err != nil {
		return err
	}
	writeJSON(w, http.StatusAccepted, public(found))
	return nil
}

func (s *Server) rerun(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	if found.Spec.Context != "" {
		has, err := s.HasContext(r.Context(), found.Spec.Context)
		if err != nil {
			return err
		}
		if !has {
			return invalid("the context of run %s is no longer stored; submit it again from its directory", found.ID)
		}
	}
	var req apiclient.Rerun
	if r.ContentLength != 0 {
		if err := decodeBody(r, &req); err != nil {
			return err
		}
	}
	if len(req.Key) > maxKey {
		return invalid("key is longer than %d bytes", maxKey)
	}
	return s.request(w, r, event.RunRequested{Key: req.Key, RerunOf: found.ID, Spec: found.Spec})
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) error {
	writeJSON(w, http.StatusOK, s.Status(r.Context()))
	return nil
}

func principal(r *http.Request) auth.Principal {
	p, _ := r.Context().Value(principalKey{}).(auth.Principal)
	return p
}

// decodeBody decodes a JSON body; fields that the API does not know are refused.
func decodeBody(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		return invalid("request body: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}
