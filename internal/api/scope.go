package api

import (
	"encoding/json"
	"fmt"
	"net/http"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
)

// seesRun reports whether there is a run for a principal: one of its tasks, or one of no task that it has asked
// for itself.
func seesRun(p auth.Principal, r run.Run) bool {
	return p.SeesTask(r.Task) || r.Task == "" && r.Cause.By == p.Name
}

// mayHandle refuses to act on a run of no task for who may only run tasks as they are.
func mayHandle(r *http.Request, found run.Run) error {
	if p := principal(r); found.Task == "" && !p.Role.Includes(auth.RoleAuthor) {
		return forbidden("%s may not do this: run %s is of no task, so that takes the role %s", p.Name, found.ID, auth.RoleAuthor)
	}
	return nil
}

// mayRepeat refuses to repeat what somebody else has built of files of theirs.
func mayRepeat(r *http.Request, found run.Run) error {
	if p := principal(r); p.Role != auth.RoleAdmin && found.Cause.By != p.Name {
		return forbidden("%s may not do this: run %s is of no task, and %s has asked for it", p.Name, found.ID, found.Cause.By)
	}
	return mayHandle(r, found)
}

// mayWrite refuses a task that is none of a principal's, or asks for what only an administrator gives.
func mayWrite(p auth.Principal, t *task.Task) error {
	switch {
	case !p.SeesTask(t.Name):
		return forbidden("%s may not write a task %q: its tasks are %q", p.Name, t.Name, p.Tasks)
	case t.AllowPrivileged && p.Role != auth.RoleAdmin:
		return forbidden("%s may not write task %q: privileged steps (allowPrivileged) take the role %s", p.Name, t.Name, auth.RoleAdmin)
	}
	l := p.Limits()
	for _, name := range t.Secrets() {
		if err := l.MayUse(name); err != nil {
			return err
		}
	}
	return nil
}

// mayAsk refuses what makes another task of one that is run.
func mayAsk(p auth.Principal, t task.Task, req apiclient.TaskRun) error {
	if (req.Commit != "" || req.File != "" || req.Force) && !p.Role.Includes(auth.RoleAuthor) {
		return forbidden("%s may run task %q as it is: another commit or file, or a run of a disabled task, takes the role %s",
			p.Name, t.Name, auth.RoleAuthor)
	}
	return nil
}

// maySubmit refuses a run of no task that asks for what its author does not have, and limits it to what it has.
func maySubmit(p auth.Principal, spec *run.Spec) error {
	spec.Limits = p.Limits()
	if spec.Privileged && p.Role != auth.RoleAdmin {
		return forbidden("%s may not do this: privileged steps take the role %s", p.Name, auth.RoleAdmin)
	}
	return spec.Refs.MayUseAll(spec.Limits)
}

func forbidden(format string, args ...any) *apiclient.Error {
	return &apiclient.Error{Status: http.StatusForbidden, Code: apiclient.CodeForbidden, Message: fmt.Sprintf(format, args...)}
}

// limitsOf are those of a task that a principal has written in place of another. What is executed is limited to
// what its author may do; who changes no more than when that is due is not its author.
func limitsOf(p auth.Principal, t, old *task.Task) *run.Limits {
	if t.WorkHash() == old.WorkHash() {
		return old.Limits
	}
	return p.Limits()
}

// seesEvent reports whether there is an event for a principal: one of its runs, of images that it may read about
// or, if it is not limited to some tasks, any other.
func seesEvent(p auth.Principal, ev event.Event) bool {
	if p.Role == auth.RoleAdmin {
		return true
	}
	switch ev.Type {
	case event.TypeRunQueued, event.TypeRunStarted, event.TypeRunFinished:
		var changed event.RunChanged
		return json.Unmarshal(ev.Data, &changed) == nil && seesRun(p, changed.Run)
	case event.TypeImagePushed, event.TypeImageDeleted:
		var image event.Image
		return json.Unmarshal(ev.Data, &image) == nil && p.May(event.MetadataRead, image.Repository) == nil
	}
	return !p.Limited()
}
