package api

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/taskspec"
)

const (
	maxTasks = 5000    // on a page of the list
	maxTask  = 2 << 20 // bytes of a task, as it is stored
)

// anyCommit stands for the commit while a task is checked.
var anyCommit = strings.Repeat("0", 40)

func (s *Server) createTask(w http.ResponseWriter, r *http.Request) error {
	var t task.Task
	if err := decodeBody(r, &t); err != nil {
		return err
	}
	about(r, t.Name)
	if err := mayWrite(principal(r), &t); err != nil {
		return err
	}
	t.Limits = principal(r).Limits()
	warnings, err := s.checkTask(r.Context(), &t)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	id, err := s.ids.New(now, rand.Reader)
	if err != nil {
		return err
	}
	t.UID, t.Created, t.Updated = "t"+id[1:], now, now
	exists := &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict,
		Message: fmt.Sprintf("there is a task %q already", t.Name), Remedy: "kiln task update " + t.Name + ", or kiln apply"}
	key := store.TaskKey(t.Name)
	if dryRun(r) {
		_, _, err := s.Store.Tasks.Get(r.Context(), key)
		switch {
		case err == nil:
			return exists
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
		t.UID = ""
		return answerTask(w, http.StatusOK, t, 0, warnings)
	}
	revision, err := s.Store.Tasks.Create(r.Context(), key, t)
	if errors.Is(err, store.ErrConflict) {
		return exists
	}
	if err != nil {
		return err
	}
	w.Header().Set("Location", apiclient.TaskPath(t.Name))
	return answerTask(w, http.StatusCreated, t, revision, warnings)
}

func (s *Server) replaceTask(w http.ResponseWriter, r *http.Request) error {
	var t task.Task
	if err := decodeBody(r, &t); err != nil {
		return err
	}
	if t.Name == "" {
		t.Name = r.PathValue("name")
	}
	if task.NameKey(t.Name) != task.NameKey(r.PathValue("name")) {
		return invalid("the task is called %q, the path says %q; a task cannot be renamed: create another, and delete this one", t.Name, r.PathValue("name"))
	}
	old, revision, err := s.task(r)
	if err != nil {
		return err
	}
	if err := matches(r, old, revision); err != nil {
		return err
	}
	if err := mayWrite(principal(r), &t); err != nil {
		return err
	}
	if t.UID != "" && t.UID != old.UID {
		return changed(http.StatusConflict, old.Name, "was deleted, and created again, since it was read")
	}
	t.Normalize()
	t.Limits = limitsOf(principal(r), &t, &old)
	warnings, err := s.checkTask(r.Context(), &t)
	if err != nil {
		return err
	}
	t.UID, t.Created, t.Updated = old.UID, old.Created, time.Now().UTC()
	if t.Hash() == old.Hash() {
		return answerTask(w, http.StatusOK, old, revision, warnings)
	}
	if dryRun(r) {
		return answerTask(w, http.StatusOK, t, revision, warnings)
	}
	revision, err = s.Store.Tasks.Update(r.Context(), store.TaskKey(t.Name), t, revision)
	if errors.Is(err, store.ErrConflict) {
		return changed(http.StatusConflict, old.Name, "was changed by somebody else at the same time")
	}
	if err != nil {
		return err
	}
	return answerTask(w, http.StatusOK, t, revision, warnings)
}

func (s *Server) deleteTask(w http.ResponseWriter, r *http.Request) error {
	old, revision, err := s.task(r)
	if err != nil {
		return err
	}
	if err := matches(r, old, revision); err != nil {
		return err
	}
	err = s.Store.Tasks.Remove(r.Context(), store.TaskKey(old.Name), revision)
	if errors.Is(err, store.ErrConflict) {
		return changed(http.StatusConflict, old.Name, "was changed by somebody else at the same time")
	}
	if err != nil {
		return err
	}
	return answerTask(w, http.StatusOK, old, revision, nil)
}

func (s *Server) showTask(w http.ResponseWriter, r *http.Request) error {
	t, revision, err := s.task(r)
	if err != nil {
		return err
	}
	return answerTask(w, http.StatusOK, t, revision, nil)
}

func answerTask(w http.ResponseWriter, status int, t task.Task, revision uint64, warnings []apiclient.Problem) error {
	if revision > 0 {
		w.Header().Set("ETag", apiclient.ETag(revision))
	}
	writeJSON(w, status, apiclient.Task{Task: t, Revision: revision, Warnings: warnings})
	return nil
}

// task returns the task that the path names, and its revision.
func (s *Server) task(r *http.Request) (task.Task, uint64, error) {
	name := r.PathValue("name")
	t, revision, err := s.Store.Tasks.Get(r.Context(), store.TaskKey(name))
	if errors.Is(err, store.ErrNotFound) || err == nil && !principal(r).SeesTask(t.Name) {
		return task.Task{}, 0, &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: "no task " + strconv.Quote(name), Remedy: "list the tasks with `kiln task list`"}
	}
	return t, revision, err
}

// matches refuses a request that is about another revision of the task.
func matches(r *http.Request, t task.Task, revision uint64) error {
	want := r.Header.Get("If-Match")
	if want == "" {
		return nil
	}
	for tag := range strings.SplitSeq(want, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.Trim(tag, `"`) == strconv.FormatUint(revision, 10) {
			return nil
		}
	}
	return changed(http.StatusPreconditionFailed, t.Name, "was changed by somebody else since it was read")
}

// changed says that a task is not what the client takes it for.
func changed(status int, name, how string) *apiclient.Error {
	return &apiclient.Error{Status: status, Code: apiclient.CodeConflict, Message: fmt.Sprintf("task %q %s; nothing was stored", name, how),
		Remedy: "look at it with `kiln task show " + name + "`, then try again"}
}

func dryRun(r *http.Request) bool { return r.URL.Query().Get("dryRun") == "1" }

// checkTask completes a task and refuses it with all its mistakes. What is only doubtful is returned.
func (s *Server) checkTask(ctx context.Context, t *task.Task) ([]apiclient.Problem, error) {
	t.Normalize()
	var errs taskspec.Errors
	if err := t.Validate(); errors.As(err, &errs) {
		return nil, invalidTask(problems(errs, false))
	} else if err != nil {
		return nil, err
	}
	if definition, err := json.Marshal(t); err != nil {
		return nil, err
	} else if len(definition) > maxTask {
		return nil, invalid("the task has %d bytes, more than %d; keep its files in the context", len(definition), maxTask)
	}
	warnings, err := s.checkStep(t)
	if err != nil {
		return nil, err
	}
	for _, name := range t.Secrets() {
		_, _, err := s.Store.Secrets.Get(ctx, event.Hash(name))
		if errors.Is(err, store.ErrNotFound) {
			warnings = append(warnings, apiclient.Problem{Warning: true,
				Message: fmt.Sprintf("there is no secret %q yet; a run needs it: kiln secret set %s", name, name)})
		} else if err != nil {
			return nil, err
		}
	}
	return warnings, nil
}

// checkStep checks what a run would execute, as far as it is part of the task: a file of the context is
// read by the run.
func (s *Server) checkStep(t *task.Task) ([]apiclient.Problem, error) {
	if t.Step.File != nil {
		return nil, nil
	}
	warnings, err := s.try(t, task.Inputs{}, nil)
	var errs taskspec.Errors
	switch {
	case errors.As(err, &errs):
		return nil, invalidTask(append(problems(errs, false), problems(warnings, true)...))
	case errors.Is(err, run.ErrLimit):
		return nil, err
	case err != nil:
		return nil, invalidTask([]apiclient.Problem{{Property: "step", Message: err.Error()}})
	}
	return problems(warnings, true), nil
}

// try checks a run of the task that is never executed.
func (s *Server) try(t *task.Task, in task.Inputs, secrets map[string]string) (taskspec.Warnings, error) {
	in.Commit = anyCommit
	spec, err := t.Spec(in)
	if err != nil {
		return nil, err
	}
	values := maps.Clone(t.SetSecret) // a name is as good as a value here
	if values == nil {
		values = map[string]string{}
	}
	maps.Copy(values, secrets)
	return s.Check(run.Run{ID: placeholderID, Task: t.Name, Created: time.Now().UTC(), Spec: spec, Cause: anyCause(t.Context)}, values)
}

// anyCause says as much of a run as what is checked may depend on: one of a repository has a commit.
func anyCause(location string) run.Cause {
	c, err := task.ParseContext(location)
	if err != nil || c.Kind != task.Git {
		return run.Cause{}
	}
	return run.Cause{Repository: c.URL, Ref: "refs/heads/main", Commit: anyCommit}
}

func invalidTask(list []apiclient.Problem) *apiclient.Error {
	e := invalid("the task is not valid")
	e.Problems = list
	return e
}

func (s *Server) listTasks(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit := maxTasks
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxTasks {
			return invalid("limit %q: want a number from 1 to %d", v, maxTasks)
		}
		limit = n
	}
	after, all := task.NameKey(q.Get("after")), []apiclient.Task{}
	err := s.Store.Tasks.List(r.Context(), func(e store.Entry[task.Task]) bool {
		if task.NameKey(e.Value.Name) > after && principal(r).SeesTask(e.Value.Name) {
			all = append(all, apiclient.Task{Task: outline(e.Value), Revision: e.Revision})
		}
		return true
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b apiclient.Task) int {
		return strings.Compare(task.NameKey(a.Task.Name), task.NameKey(b.Task.Name))
	})
	page := apiclient.Tasks{Tasks: all}
	if len(all) > limit {
		page.Tasks, page.Next = all[:limit], all[limit-1].Task.Name
	}
	writeJSON(w, http.StatusOK, page)
	return nil
}

// outline leaves out of a task what may be long.
func outline(t task.Task) task.Task {
	t.Set = nil
	if t.Step.Build != nil {
		b := *t.Step.Build
		b.Args = nil
		t.Step.Build = &b
	}
	if t.Step.Inline != nil {
		t.Step.Inline = &task.Inline{}
	}
	return t
}
