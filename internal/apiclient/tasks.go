package apiclient

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"kiln/internal/run"
	"kiln/internal/task"
)

// Paths of tasks and secrets.
const (
	// PathTasks: POST task.Task -> 201 Task; GET ?limit&after -> Tasks. With ?dryRun=1 a POST or PUT checks
	// the task, answers as if it had been stored, and stores nothing.
	PathTasks = "/api/v1/tasks"
	// PathSecrets: GET -> Secrets.
	PathSecrets = "/api/v1/secrets"
)

// TaskPath is the path of one task: GET -> Task; PUT task.Task -> Task; DELETE -> Task as it was. The
// revision is also the ETag; PUT and DELETE with another If-Match are refused with status 412.
func TaskPath(name string) string { return PathTasks + "/" + url.PathEscape(name) }

// TaskRunsPath is where a run of a task is asked for: POST TaskRun -> 201 run.Run; and where its runs are
// listed: GET, see RunsQuery, -> Runs.
func TaskRunsPath(name string) string { return TaskPath(name) + "/runs" }

// SecretPath is the path of one secret: PUT SecretValue -> Secret; DELETE -> SecretRemoved. No path gives
// out a value.
func SecretPath(name string) string { return PathSecrets + "/" + url.PathEscape(name) }

// HeaderIdempotencyKey may carry the key of a request for a run instead of its body.
const HeaderIdempotencyKey = "Idempotency-Key"

// A Task is a stored task.
type Task struct {
	Task     task.Task `json:"task"`
	Revision uint64    `json:"revision"`
	// Warnings are what is doubtful about a task that was just stored, or checked.
	Warnings []Problem `json:"warnings,omitempty"`
}

// Tasks is a page of tasks, by name: GET /api/v1/tasks. Values and the texts of inline task files are
// left out.
type Tasks struct {
	Tasks []Task `json:"tasks"`
	// Next is the after of the next page, empty on the last one.
	Next string `json:"next,omitempty"`
}

// A TaskRun asks for a run of a task: POST /api/v1/tasks/{name}/runs. The answer is the queued run.
type TaskRun struct {
	Key     string            `json:"key,omitempty"`     // as in Submit, of this task; see also HeaderIdempotencyKey
	Commit  string            `json:"commit,omitempty"`  // instead of the head of the context's ref
	Set     map[string]string `json:"set,omitempty"`     // values, before those of the task
	Secrets map[string]string `json:"secrets,omitempty"` // secret values; sealed before anything is stored
	Args    map[string]string `json:"args,omitempty"`    // build arguments, before those of the task
	File    string            `json:"file,omitempty"`    // path of another task file or Dockerfile in the context
	Target  string            `json:"target,omitempty"`
	NoPush  bool              `json:"noPush,omitempty"`
	Force   bool              `json:"force,omitempty"` // also if the task is disabled
}

// A Secret is what is told of a secret.
type Secret struct {
	Name    string    `json:"name"`
	Updated time.Time `json:"updated"`
}

// Secrets are all secrets, by name: GET /api/v1/secrets.
type Secrets struct {
	Secrets []Secret `json:"secrets"`
}

// A SecretValue is the new value of a secret: PUT /api/v1/secrets/{name}.
type SecretValue struct {
	Value string `json:"value"`
}

// SecretRemoved is the answer to DELETE /api/v1/secrets/{name}.
type SecretRemoved struct {
	UsedBy []string `json:"usedBy,omitempty"` // names of the tasks that need it; their next runs cannot be executed
}

// CreateTask stores a new task, or checks it if it is a dry run.
func (c *Client) CreateTask(ctx context.Context, t task.Task, dryRun bool) (Task, error) {
	var out Task
	err := c.call(ctx, http.MethodPost, PathTasks+dry(dryRun), t, &out)
	return out, err
}

// ReplaceTask replaces the task of that name and revision, or checks what would replace it. Another
// revision is an *Error of code CodeConflict; 0 stands for any.
func (c *Client) ReplaceTask(ctx context.Context, name string, t task.Task, revision uint64, dryRun bool) (Task, error) {
	var out Task
	err := c.callIf(ctx, revision, http.MethodPut, TaskPath(name)+dry(dryRun), t, &out)
	return out, err
}

// DeleteTask deletes the task of that name and revision, 0 for any, and returns it as it was.
func (c *Client) DeleteTask(ctx context.Context, name string, revision uint64) (Task, error) {
	var out Task
	err := c.callIf(ctx, revision, http.MethodDelete, TaskPath(name), nil, &out)
	return out, err
}

// Task returns one task.
func (c *Client) Task(ctx context.Context, name string) (Task, error) {
	var out Task
	err := c.call(ctx, http.MethodGet, TaskPath(name), nil, &out)
	return out, err
}

// Tasks lists all tasks by name.
func (c *Client) Tasks(ctx context.Context) ([]Task, error) {
	all, after := []Task{}, ""
	for {
		var page Tasks
		if err := c.call(ctx, http.MethodGet, PathTasks+"?"+url.Values{"after": {after}}.Encode(), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Tasks...)
		if page.Next == "" || page.Next == after {
			return all, nil
		}
		after = page.Next
	}
}

// taskRunTimeout bounds the request for a run of a task: the server may have to fetch its source first.
const taskRunTimeout = 60 * time.Second

// RunTask asks for a run of a task and returns it as queued, as Submit does.
func (c *Client) RunTask(ctx context.Context, name string, r TaskRun) (run.Run, error) {
	if r.Key == "" {
		r.Key = rand.Text()
	}
	return c.askForRun(ctx, taskRunTimeout, TaskRunsPath(name), r)
}

// TaskRuns lists runs of a task, newest first.
func (c *Client) TaskRuns(ctx context.Context, name string, q RunsQuery) ([]run.Run, error) {
	var page Runs
	err := c.call(ctx, http.MethodGet, TaskRunsPath(name)+q.encode(), nil, &page)
	return page.Runs, err
}

// SetSecret stores the value of a secret, new or not.
func (c *Client) SetSecret(ctx context.Context, name, value string) (Secret, error) {
	var out Secret
	err := c.call(ctx, http.MethodPut, SecretPath(name), SecretValue{value}, &out)
	return out, err
}

// Secrets lists the secrets by name, without their values.
func (c *Client) Secrets(ctx context.Context) ([]Secret, error) {
	var out Secrets
	err := c.call(ctx, http.MethodGet, PathSecrets, nil, &out)
	return out.Secrets, err
}

// RemoveSecret removes a secret and returns the names of the tasks that need it.
func (c *Client) RemoveSecret(ctx context.Context, name string) ([]string, error) {
	var out SecretRemoved
	err := c.call(ctx, http.MethodDelete, SecretPath(name), nil, &out)
	return out.UsedBy, err
}

func dry(run bool) string {
	if run {
		return "?dryRun=1"
	}
	return ""
}

// callIf is call on condition that the resource has that revision, unless it is 0.
func (c *Client) callIf(ctx context.Context, revision uint64, method, path string, in, out any) error {
	if revision == 0 {
		return c.call(ctx, method, path, in, out)
	}
	header := http.Header{"If-Match": {ETag(revision)}}
	return c.callWith(ctx, callTimeout, header, method, path, in, out)
}

// ETag is the entity tag of a revision.
func ETag(revision uint64) string { return fmt.Sprintf("%q", strconv.FormatUint(revision, 10)) }
