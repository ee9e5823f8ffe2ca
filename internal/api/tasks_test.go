package api_test

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/task"
)

// inline is a task with a task file of its own.
func inline(name string) task.Task {
	return task.Task{Name: name, Step: task.Step{Inline: &task.Inline{Task: "version: v1.1.0\nsteps:\n- cmd: img {{.Values.x}}\n"}},
		Set: map[string]string{"x": "1"}}
}

// web is a task with a source.
func web() task.Task {
	return task.Task{Name: "web", Context: "https://git.test/web.git#main", Step: task.Step{Build: &task.Build{Images: []string{"web:{{.Run.ID}}"}}}}
}

// created creates a task.
func (s *site) created(t *testing.T, def task.Task) apiclient.Task {
	t.Helper()
	var out apiclient.Task
	s.ask(t, http.StatusCreated, &out, "POST", apiclient.PathTasks, encode(t, def))
	return out
}

func TestTaskIsCreatedShownAndDeleted(t *testing.T) {
	t.Parallel()
	s := start(t)
	made := s.created(t, web())
	if uid := made.Task.UID; len(uid) != 12 || uid[0] != 't' || made.Revision == 0 || made.Task.Created.IsZero() {
		t.Errorf("created %+v, want a UID, a revision and a time", made)
	}
	if made.Task.Timeout != task.DefaultTimeout || made.Task.Triggers.BaseImage.Type != task.Runtime {
		t.Errorf("created %+v, want the defaults filled in", made.Task)
	}
	resp := s.send(t, s.admin, "GET", apiclient.TaskPath("WEB"), nil)
	var shown apiclient.Task
	check(t, json.NewDecoder(resp.Body).Decode(&shown))
	if shown.Task.UID != made.Task.UID || resp.Header.Get("ETag") != apiclient.ETag(made.Revision) {
		t.Errorf("GET = %+v with ETag %s, want what was created, by another case of its name", shown, resp.Header.Get("ETag"))
	}
	s.ask(t, http.StatusOK, nil, "DELETE", apiclient.TaskPath("web"), "")
	if e := s.refused(t, http.StatusNotFound, "GET", apiclient.TaskPath("web"), ""); e.Code != apiclient.CodeNotFound || e.Remedy == "" {
		t.Errorf("GET of a deleted task: %+v", e)
	}
	if again := s.created(t, web()); again.Task.UID == made.Task.UID || again.Revision <= made.Revision {
		t.Errorf("recreated as %+v, want another UID than %s", again, made.Task.UID)
	}
}

func TestTaskNameIsTakenInAnyCase(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.created(t, inline("Web"))
	if e := s.refused(t, http.StatusConflict, "POST", apiclient.PathTasks, encode(t, inline("web"))); e.Code != apiclient.CodeConflict {
		t.Errorf("answer = %+v", e)
	}
}

// TestTaskIsReplacedByComparison has two clients change what both have read.
func TestTaskIsReplacedByComparison(t *testing.T) {
	t.Parallel()
	s := start(t)
	made := s.created(t, inline("a"))
	path, tag := apiclient.TaskPath("a"), apiclient.ETag(made.Revision)
	put := func(def task.Task, header ...string) (int, apiclient.Task, string) {
		resp := s.send(t, s.admin, "PUT", path, []byte(encode(t, def)), header...)
		body, err := io.ReadAll(resp.Body)
		check(t, err)
		var out apiclient.Task
		check(t, json.Unmarshal(body, &out))
		return resp.StatusCode, out, string(body)
	}
	first := made.Task
	first.CPU = 2
	status, out, _ := put(first, "If-Match", tag)
	if status != http.StatusOK || out.Task.CPU != 2 || out.Task.UID != made.Task.UID || out.Revision <= made.Revision {
		t.Fatalf("PUT = %d %+v", status, out)
	}
	second := made.Task
	second.CPU = 4
	if status, _, body := put(second, "If-Match", tag); status != http.StatusPreconditionFailed || !strings.Contains(body, "nothing was stored") {
		t.Errorf("PUT of an old revision = %d %s, want 412 that says so", status, body)
	}
	if status, same, _ := put(first); status != http.StatusOK || same.Revision != out.Revision {
		t.Errorf("PUT without a change = %d, revision %d; want %d kept", status, same.Revision, out.Revision)
	}
	if resp := s.send(t, s.admin, "DELETE", path, nil, "If-Match", tag); resp.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("DELETE of an old revision = %d, want 412", resp.StatusCode)
	}
	other := first
	other.UID = "tanother0000"
	if status, _, body := put(other); status != http.StatusConflict || !strings.Contains(body, "created again") {
		t.Errorf("PUT of another incarnation = %d %s, want 409", status, body)
	}
	other.UID, other.Name = "", "b"
	if status, _, _ := put(other); status != http.StatusUnprocessableEntity {
		t.Errorf("PUT under another name = %d, want 422", status)
	}
}

// TestOneOfConcurrentChangesWins replaces one revision from many clients.
func TestOneOfConcurrentChangesWins(t *testing.T) {
	t.Parallel()
	s := start(t)
	made := s.created(t, inline("a"))
	const clients = 8
	codes := make([]int, clients)
	var sent sync.WaitGroup
	for i := range codes {
		def := made.Task
		def.CPU = float64(i + 1)
		body := encode(t, def)
		sent.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), "PUT", s.url+apiclient.TaskPath("a"), strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+s.admin)
			req.Header.Set("If-Match", apiclient.ETag(made.Revision))
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			codes[i] = resp.StatusCode
		})
	}
	sent.Wait()
	won := 0
	for _, code := range codes {
		switch code {
		case http.StatusOK:
			won++
		case http.StatusPreconditionFailed, http.StatusConflict:
		default:
			t.Errorf("status %d", code)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d changes were stored, want 1: %v", won, clients, codes)
	}
}

func TestAllMistakesOfATaskAreTold(t *testing.T) {
	t.Parallel()
	s := start(t)
	bad := web()
	bad.Status, bad.Timeout = "Off", -1
	bad.Triggers.Timers = []task.Timer{{Schedule: "0 25 * * *"}}
	e := s.refused(t, 422, "POST", apiclient.PathTasks, encode(t, bad))
	var properties []string
	for _, p := range e.Problems {
		properties = append(properties, p.Property)
	}
	for _, want := range []string{"status", "timeout", "triggers.timers[0].schedule"} {
		if !slices.Contains(properties, want) {
			t.Errorf("problems are about %q, want %s among them", properties, want)
		}
	}
	broken := inline("a")
	broken.Step.Inline.Task = "version: v1.1.0\nsteps:\n- id: a\n  cmd: img\n  retries: x\n"
	e = s.refused(t, 422, "POST", apiclient.PathTasks, encode(t, broken))
	if len(e.Problems) == 0 || e.Problems[0].File != "a.yaml" || e.Problems[0].Line != 5 {
		t.Errorf("problems of the task file = %+v, want a.yaml:5", e.Problems)
	}
	image := web()
	image.Step.Build.Images = []string{"Not A Name"}
	if e = s.refused(t, 422, "POST", apiclient.PathTasks, encode(t, image)); !strings.Contains(e.Error(), "Not A Name") {
		t.Errorf("a bad image name: %v", e.Error())
	}
	if e = s.refused(t, 422, "POST", apiclient.PathTasks, `{"name":"a","steps":{}}`); !strings.Contains(e.Message, "steps") {
		t.Errorf("an unknown property: %+v", e)
	}
	var list apiclient.Tasks
	if s.ask(t, 200, &list, "GET", apiclient.PathTasks, ""); len(list.Tasks) != 0 {
		t.Errorf("refused tasks are stored: %+v", list)
	}
}

func TestDryRunStoresNothing(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.ask(t, 200, nil, "POST", apiclient.PathTasks+"?dryRun=1", encode(t, inline("a")))
	s.refused(t, 404, "GET", apiclient.TaskPath("a"), "")
	made := s.created(t, inline("a"))
	changed := made.Task
	changed.CPU = 3
	s.ask(t, 200, nil, "PUT", apiclient.TaskPath("a")+"?dryRun=1", encode(t, changed))
	var shown apiclient.Task
	if s.ask(t, 200, &shown, "GET", apiclient.TaskPath("a"), ""); shown.Revision != made.Revision || shown.Task.CPU != 0 {
		t.Errorf("after a dry run: %+v", shown)
	}
	s.refused(t, 409, "POST", apiclient.PathTasks+"?dryRun=1", encode(t, inline("a")))
}

func TestTasksAreListedInPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, name := range []string{"c", "B", "a", "d"} {
		s.created(t, inline(name))
	}
	s.ask(t, 200, nil, "DELETE", apiclient.TaskPath("d"), "")
	var names []string
	after := ""
	for {
		var page apiclient.Tasks
		s.ask(t, 200, &page, "GET", apiclient.PathTasks+"?limit=2&after="+after, "")
		for _, item := range page.Tasks {
			names = append(names, item.Task.Name)
			if item.Task.Set != nil || item.Task.Step.Inline.Task != "" {
				t.Errorf("the list has long values: %+v", item.Task)
			}
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"a", "B", "c"}) {
		t.Errorf("tasks = %q", names)
	}
	s.refused(t, 422, "GET", apiclient.PathTasks+"?limit=0", "")
}

func TestSecretsAreStoredAndNeverShown(t *testing.T) {
	t.Parallel()
	const value = "hunter2-hunter2-hunter2"
	s := start(t)
	needy := web()
	needy.ContextSecret = "token"
	made := s.created(t, needy)
	if len(made.Warnings) != 1 || !made.Warnings[0].Warning || !strings.Contains(made.Warnings[0].Message, `no secret "token"`) {
		t.Errorf("warnings = %+v, want one about the secret", made.Warnings)
	}
	s.ask(t, 200, nil, "PUT", apiclient.SecretPath("token"), encode(t, apiclient.SecretValue{Value: value}))
	stored, _, err := s.store.Secrets.Get(t.Context(), event.Hash("token"))
	check(t, err)
	var opened string
	if check(t, s.identity.Open(stored.Sealed, &opened)); opened != value || strings.Contains(encode(t, stored), value) {
		t.Errorf("stored %+v, opened %q", stored, opened)
	}
	resp := s.send(t, s.admin, "GET", apiclient.PathSecrets, nil)
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if !strings.Contains(string(body), `"token"`) || strings.Contains(string(body), value) || strings.Contains(string(body), "sealed") {
		t.Errorf("list = %s", body)
	}
	var again apiclient.Task
	if s.ask(t, 200, &again, "PUT", apiclient.TaskPath("web"), encode(t, needy)); len(again.Warnings) != 0 {
		t.Errorf("warnings = %+v, want none: the secret is there", again.Warnings)
	}
	var removed apiclient.SecretRemoved
	if s.ask(t, 200, &removed, "DELETE", apiclient.SecretPath("token"), ""); !slices.Equal(removed.UsedBy, []string{"web"}) {
		t.Errorf("removed = %+v, want to hear of web", removed)
	}
	s.refused(t, 404, "DELETE", apiclient.SecretPath("token"), "")
	for _, bad := range []struct{ name, body string }{
		{"token", `{"value":""}`}, {"token", `{"value":"a\u0000b"}`}, {"-x", `{"value":"v"}`},
		{"token", encode(t, apiclient.SecretValue{Value: strings.Repeat("v", 64<<10+1)})},
	} {
		s.refused(t, 422, "PUT", apiclient.SecretPath(bad.name), bad.body)
	}
}

func TestTasksNeedAnAdministrator(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, route := range []string{"POST " + apiclient.PathTasks, "GET " + apiclient.PathTasks, "GET " + apiclient.TaskPath("a"),
		"PUT " + apiclient.TaskPath("a"), "DELETE " + apiclient.TaskPath("a"), "POST " + apiclient.TaskRunsPath("a"),
		"GET " + apiclient.TaskRunsPath("a"), "GET " + apiclient.PathSecrets, "PUT " + apiclient.SecretPath("a"), "DELETE " + apiclient.SecretPath("a")} {
		method, path, _ := strings.Cut(route, " ")
		if resp := s.send(t, "", method, path, nil); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without a token = %d", route, resp.StatusCode)
		}
		if resp := s.send(t, s.run, method, path, nil); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s with a run's token = %d", route, resp.StatusCode)
		}
	}
}
