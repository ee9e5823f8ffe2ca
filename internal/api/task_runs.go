package api

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/taskspec"
)

// runTask asks for a run of a task.
func (s *Server) runTask(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.TaskRun
	if r.ContentLength != 0 {
		if err := decodeBody(r, &req); err != nil {
			return err
		}
	}
	t, _, err := s.task(r)
	if err != nil {
		return err
	}
	if err := mayAsk(principal(r), t, req); err != nil {
		return err
	}
	if err := s.checkAsk(&t, &req, r.Header.Get(apiclient.HeaderIdempotencyKey)); err != nil {
		return err
	}
	sealed, err := s.seal(req.Secrets)
	if err != nil {
		return err
	}
	return s.request(w, r, event.RunRequested{Key: req.Key, TaskUID: t.UID, Ask: event.TaskAsk{Commit: req.Commit, Set: req.Set,
		Args: req.Args, File: req.File, Target: req.Target, NoPush: req.NoPush, Force: req.Force},
		Spec: run.Spec{Secrets: sealed}})
}

// checkAsk refuses what has no meaning for the task.
func (s *Server) checkAsk(t *task.Task, req *apiclient.TaskRun, key string) error {
	if key != "" {
		if req.Key != "" && req.Key != key {
			return invalid("the body and the header %s have different keys", apiclient.HeaderIdempotencyKey)
		}
		req.Key = key
	}
	c, err := task.ParseContext(t.Context)
	if err != nil {
		return invalid("context: %s", err.Error())
	}
	build, inline := t.Step.Build != nil, t.Step.Inline != nil
	switch {
	case len(req.Key) > maxKey:
		return invalid("key is longer than %d bytes", maxKey)
	case req.Commit != "" && c.Kind != task.Git:
		return invalid("commit: the context of task %q is no git repository", t.Name)
	case req.Commit != "" && !isCommit(req.Commit):
		return invalid("commit: %q is not the full hash of a commit", req.Commit)
	case build && (len(req.Set) > 0 || len(req.Secrets) > 0):
		return invalid("task %q builds a Dockerfile, which takes no values; give build arguments instead", t.Name)
	case !build && (len(req.Args) > 0 || req.Target != ""):
		return invalid("task %q executes a task file, which takes no build arguments and no target; give values instead", t.Name)
	case !build && req.NoPush:
		return invalid("task %q executes a task file, whose push steps cannot be left out", t.Name)
	case inline && req.File != "":
		return invalid("task %q has its task file inside, so there is no other one to take", t.Name)
	}
	return s.checkAsked(*t, *req)
}

// checkAsked refuses a run that could not be executed, as far as that can be told without its source.
func (s *Server) checkAsked(t task.Task, req apiclient.TaskRun) error {
	if t.Step.File != nil || req.File != "" {
		return checkFile(&t, req.File)
	}
	_, err := s.try(&t, task.Inputs{Set: req.Set, Args: req.Args, Target: req.Target, NoPush: req.NoPush}, req.Secrets)
	var errs taskspec.Errors
	switch {
	case errors.As(err, &errs):
		return invalidTask(problems(errs, false))
	case errors.Is(err, run.ErrLimit):
		return err
	case err != nil:
		return invalid("%s", err.Error())
	}
	return nil
}

// checkFile refuses a path that cannot be one of the context.
func checkFile(t *task.Task, file string) error {
	if file == "" {
		return nil
	}
	if t.Step.Build != nil {
		b := *t.Step.Build
		b.Dockerfile = file
		t.Step.Build = &b
	} else {
		t.Step.File = &task.File{Path: file}
	}
	var errs taskspec.Errors
	if errors.As(t.Validate(), &errs) {
		return invalidTask(problems(errs, false))
	}
	return nil
}

func isCommit(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// seal seals secret values to the server; none are nil.
func (s *Server) seal(values map[string]string) ([]byte, error) {
	if len(values) == 0 {
		return nil, nil
	}
	return secret.Seal(s.Recipient, values)
}

// listTaskRuns lists the runs of a task, also of those that had its name before.
func (s *Server) listTaskRuns(w http.ResponseWriter, r *http.Request) error {
	return s.listRuns(w, r, r.PathValue("name"))
}

// rerunTask repeats a run of a task: with the commit and the base images that it had, or asking the task anew.
func (s *Server) rerunTask(w http.ResponseWriter, r *http.Request, found run.Run, req apiclient.Rerun) error {
	t, _, err := s.Store.Tasks.Get(r.Context(), store.TaskKey(found.Task))
	gone := errors.Is(err, store.ErrNotFound) || err == nil && t.UID != found.TaskUID
	switch {
	case gone:
		return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict,
			Message: fmt.Sprintf("task %q, which run %s was of, has been deleted", found.Task, found.ID),
			Remedy:  "create the task again and run it: kiln task run " + found.Task}
	case err != nil:
		return err
	}
	ask := event.RunRequested{Key: req.Key, RerunOf: found.ID, TaskUID: found.TaskUID}
	if !req.Fresh {
		ask.Pin, ask.Spec = &found.Cause, found.Spec
		ask.Spec.Pins = pins(found)
	}
	return s.request(w, r, ask)
}

// pins are the base images of a run by canonical name: those that it was to use, and those that it used.
func pins(r run.Run) map[string]string {
	all := map[string]string{}
	for _, base := range r.Bases {
		if name, err := graph.Canonical(base.Ref, nil); err == nil && name.Digest() == "" && base.Digest != "" {
			all[string(name)] = base.Digest
		}
	}
	maps.Copy(all, r.Spec.Pins)
	return all
}
