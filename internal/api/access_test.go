package api_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
)

// token makes a token and returns its password.
func (s *site) token(t *testing.T, req apiclient.CreateToken) string {
	t.Helper()
	var made apiclient.Token
	s.ask(t, http.StatusCreated, &made, "POST", apiclient.PathTokens, encode(t, req))
	return made.Password
}

// grant is all permissions for a repository or pattern.
func grant(repository string) []event.Grant {
	return []event.Grant{{Repository: repository, Permissions: event.Permissions()}}
}

// tokens returns a token of each kind.
func (s *site) tokens(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"no token": "", "a wrong token": "kiln_wrong", "a forged token": s.run[:len(s.run)-3] + "abc", "a run's": s.run, "the admin token": s.admin}
	for kind, role := range map[string]auth.Role{"a reader's": auth.RoleReader, "a runner's": auth.RoleRunner, "an author's": auth.RoleAuthor, "an admin's": auth.RoleAdmin} {
		all[kind] = s.token(t, apiclient.CreateToken{Name: string(role), Role: string(role)})
	}
	all["one for images"] = s.token(t, apiclient.CreateToken{Name: "images", Grants: grant("*")})
	all["a deleted token"] = s.token(t, apiclient.CreateToken{Name: "deleted", Role: "admin"})
	s.ask(t, http.StatusOK, nil, "DELETE", apiclient.TokenPath("deleted"), "")
	password, expired := auth.NewToken(event.Token{Name: "expired", Role: "admin", Expires: time.Now().Add(-time.Second)})
	_, err := s.store.Tokens.Create(t.Context(), auth.TokenKey("expired"), expired)
	check(t, err)
	all["an expired token"] = password
	req := httptest.NewRequestWithContext(t.Context(), "GET", auth.TokenPath+"?scope=repository:a:*", nil)
	req.SetBasicAuth("x", all["an author's"])
	rec := httptest.NewRecorder()
	s.keys.TokenHandler().ServeHTTP(rec, req)
	_, rest, _ := strings.Cut(rec.Body.String(), `"token":"`)
	all["a session"], _, _ = strings.Cut(rest, `"`)
	if !strings.HasPrefix(all["a session"], "kr.") {
		t.Fatalf("no session: %s", rec.Body)
	}
	return all
}

// as sends a request with a token and returns the status and the text of the answer.
func (s *site) as(t *testing.T, token, method, path, body string) (int, string) {
	t.Helper()
	resp := s.send(t, token, method, path, []byte(body))
	text, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp.StatusCode, string(text)
}

// answered is what an administrator is answered.
func (s *site) answered(t *testing.T, path string) string {
	t.Helper()
	_, text := s.as(t, s.admin, "GET", path, "")
	return text
}

// try sends requests of a token, METHOD PATH, and wants the status of each.
func (s *site) try(t *testing.T, token string, want map[string]int) {
	t.Helper()
	for request, status := range want {
		method, rest, _ := strings.Cut(request, " ")
		path, body, _ := strings.Cut(rest, " ")
		if got, text := s.as(t, token, method, path, body); got != status {
			t.Errorf("%s = %d %s, want %d", request, got, text, status)
		}
	}
}

func TestLimitedTokenSeesItsTasksAndTheirRuns(t *testing.T) {
	t.Parallel()
	s := startWith(t, true)
	mine, theirs := inline("web-app"), inline("db")
	s.created(t, mine)
	s.created(t, theirs)
	var own, other, quick run.Run
	s.ask(t, http.StatusCreated, &own, "POST", apiclient.TaskRunsPath("web-app"), "")
	s.ask(t, http.StatusCreated, &other, "POST", apiclient.TaskRunsPath("db"), "")
	s.ask(t, http.StatusCreated, &quick, "POST", apiclient.PathRuns, encode(t, build("k")))
	for _, r := range []run.Run{own, other, quick} {
		s.put(t, r)
		for _, typ := range []string{event.TypeRunQueued} {
			ev, err := event.New(r.ID+typ, "/test", typ, time.Now().UTC(), event.RunChanged{Run: r})
			check(t, err)
			ev.Subject = r.ID
			_, err = s.bus.Publish(t.Context(), event.RunSubject(typ, r.ID), ev.ID, ev)
			check(t, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, r := range []run.Run{own, other, quick} { // the index lags
		for !strings.Contains(s.answered(t, apiclient.PathRuns+"?limit=100"), r.ID) {
			check(t, ctx.Err())
		}
	}
	runner := s.token(t, apiclient.CreateToken{Name: "web", Role: "runner", Tasks: []string{"WEB-*"}})
	for path, want := range map[string]string{apiclient.PathTasks: "web-app", apiclient.PathRuns: own.ID, apiclient.PathEvents + "?limit=100": own.ID} {
		if _, text := s.as(t, runner, "GET", path, ""); !strings.Contains(text, want) || strings.Contains(text, `"db"`) || strings.Contains(text, other.ID) || strings.Contains(text, quick.ID) {
			t.Errorf("GET %s = %s", path, text)
		}
	}
	for _, id := range []string{other.ID, quick.ID} {
		s.try(t, runner, map[string]int{"GET /api/v1/runs/" + id: 404, "GET /api/v1/runs/" + id + "/log": 404, "GET /api/v1/runs/" + id + "/log?follow=1": 404,
			"GET /api/v1/runs/" + id + "/why": 404, "POST /api/v1/runs/" + id + "/cancel": 404, "POST /api/v1/runs/" + id + "/rerun": 404,
			"POST /api/v1/runs/" + id + "/approve": 404})
	}
	s.try(t, runner, map[string]int{"GET /api/v1/tasks/db": 404, "GET /api/v1/tasks/db/decisions": 404, "POST /api/v1/tasks/db/runs": 404,
		"GET /api/v1/tasks/web-app": 200, "GET /api/v1/tasks/web-app/decisions": 200, "GET /api/v1/runs/" + own.ID + "/why": 200,
		"POST /api/v1/tasks/web-app/runs": 201, "POST /api/v1/runs/" + own.ID + "/rerun": 201, "POST /api/v1/runs/" + own.ID + "/cancel": 202,
		"PUT /api/v1/tasks/web-app {}": 403, `POST /api/v1/tasks/web-app/runs {"force":true}`: 403, `POST /api/v1/tasks/web-app/runs {"file":"x"}`: 403})
	if _, text := s.as(t, runner, "GET", "/api/v1/tasks/db/runs", ""); strings.Contains(text, other.ID) {
		t.Errorf("runs of a task that is not there: %s", text)
	}
	// Who may run tasks as they are does not repeat what others have built, or stop it.
	all := s.token(t, apiclient.CreateToken{Name: "all", Role: "runner"})
	s.try(t, all, map[string]int{"GET /api/v1/runs/" + quick.ID: 200, "POST /api/v1/runs/" + quick.ID + "/cancel": 403, "POST /api/v1/runs/" + quick.ID + "/rerun": 403})
}

func TestAuthorWritesWhatIsItsOwn(t *testing.T) {
	t.Parallel()
	s := startWith(t, true)
	s.created(t, inline("db"))
	author := s.token(t, apiclient.CreateToken{Name: "web", Role: "author", Tasks: []string{"web-*"}, Grants: []event.Grant{{Repository: "web/*"}}})
	builds := func(name, image string) task.Task {
		return task.Task{Name: name, Context: "https://git.test/o/r.git", Step: task.Step{Build: &task.Build{Images: []string{image}}}}
	}
	good, elsewhere, foreign, secretive, mighty := builds("web-a", "web/a:1"), builds("web-a", "db/a:1"), builds("db", "web/a:1"), builds("web-a", "web/a"), builds("web-a", "web/a")
	computed := builds("web-a", "{{.Run.TaskName}}/a:1")
	secretive.ContextSecret = "db-password"
	mighty.AllowPrivileged = true
	pushes := task.Task{Name: "web-a", Step: task.Step{Inline: &task.Inline{Task: "steps:\n- build: -t db/a:1 .\n- push: [\"reg.test:5000/db/a:1\"]\n"}}}
	s.try(t, author, map[string]int{
		"POST /api/v1/tasks " + encode(t, elsewhere): 403, "POST /api/v1/tasks " + encode(t, foreign): 403, "POST /api/v1/tasks " + encode(t, secretive): 403,
		"POST /api/v1/tasks " + encode(t, mighty): 403, "POST /api/v1/tasks " + encode(t, computed): 403, "POST /api/v1/tasks " + encode(t, pushes): 403,
		"PUT /api/v1/tasks/db " + encode(t, foreign): 404, "DELETE /api/v1/tasks/db": 404,
		"POST /api/v1/tasks " + encode(t, good): 201, `PUT /api/v1/secrets/web-key {"value":"x"}`: 200, `PUT /api/v1/secrets/db-password {"value":"x"}`: 403,
		"DELETE /api/v1/secrets/db-password": 403, `POST /api/v1/runs {"spec":{"context":"context://known","build":{"images":["db/a"]}}}`: 403,
		`POST /api/v1/runs {"spec":{"context":"context://known","build":{"images":["web/a"]},"privileged":true}}`:                             403,
		`POST /api/v1/runs {"spec":{"context":"context://known","build":{"images":["web/a"]},"secretRefs":{"args":{"x":"db-password"}}}}`:     403,
		`POST /api/v1/runs {"key":"mine","spec":{"context":"context://known","build":{"images":["web/a"]},"limits":{"by":"x","push":["*"]}}}`: 201,
	})
	s.ask(t, http.StatusCreated, nil, "POST", apiclient.PathRuns, `{"key":"theirs","spec":{"context":"context://known","build":{"images":["db/a"]}}}`)
	s.try(t, author, map[string]int{`POST /api/v1/runs {"key":"theirs","spec":{"context":"context://known","build":{"images":["web/a"]}}}`: 409})
	// What it may do goes with what it has written, and stays when others change when that is due.
	limits := func() string {
		var stored apiclient.Task
		s.ask(t, http.StatusOK, &stored, "GET", apiclient.TaskPath("web-a"), "")
		return encode(t, stored.Task.Limits)
	}
	want := `{"by":"token web","pull":["web/*"],"push":["web/*"],"secrets":["web-*"]}`
	if got := limits(); got != want {
		t.Errorf("limits = %s, want %s", got, want)
	}
	good.Status, good.Limits = task.Disabled, nil
	s.ask(t, http.StatusOK, nil, "PUT", apiclient.TaskPath("web-a"), encode(t, good))
	if got := limits(); got != want {
		t.Errorf("limits after the task was disabled = %s, want %s", got, want)
	}
	s.ask(t, http.StatusOK, nil, "PUT", apiclient.TaskPath("web-a"), encode(t, elsewhere))
	if got := limits(); got != "null" {
		t.Errorf("limits of what an administrator has written = %s", got)
	}
	s.try(t, author, map[string]int{"PUT /api/v1/tasks/web-a " + encode(t, builds("web-a", "db/b:1")): 403, "PUT /api/v1/tasks/web-a " + encode(t, good): 200})
	if got := limits(); got != want {
		t.Errorf("limits = %s, want %s", got, want)
	}
}
