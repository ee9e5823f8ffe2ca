package api_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
)

func TestTaskIsRunOncePerKey(t *testing.T) {
	t.Parallel()
	s := startWith(t, true)
	made := s.created(t, inline("a"))
	s.created(t, inline("b"))
	var first, again, header, other, keyless run.Run
	s.ask(t, http.StatusCreated, &first, "POST", apiclient.TaskRunsPath("a"), `{"key":"k","set":{"y":"2"}}`)
	if !run.ValidID(first.ID) || first.Task != "a" || first.TaskUID != made.Task.UID || first.Cause.By != "admin" {
		t.Errorf("run = %+v", first)
	}
	if spec := first.Spec.TaskFile; spec == nil || strings.Join(spec.Set, " ") != "x=1 y=2" {
		t.Errorf("spec = %+v, want the values of both", spec)
	}
	s.ask(t, http.StatusCreated, &again, "POST", apiclient.TaskRunsPath("a"), `{"key":"k"}`)
	resp := s.send(t, s.admin, "POST", apiclient.TaskRunsPath("a"), nil, apiclient.HeaderIdempotencyKey, "k")
	check(t, json.NewDecoder(resp.Body).Decode(&header))
	if again.ID != first.ID || header.ID != first.ID {
		t.Errorf("runs %s, %s and %s of one key", first.ID, again.ID, header.ID)
	}
	s.ask(t, http.StatusCreated, &other, "POST", apiclient.TaskRunsPath("b"), `{"key":"k"}`)
	s.ask(t, http.StatusCreated, &keyless, "POST", apiclient.TaskRunsPath("a"), "")
	if other.ID == first.ID || keyless.ID == first.ID || other.Task != "b" {
		t.Errorf("another task's run is %+v, one without a key %s", other, keyless.ID)
	}
	resp = s.send(t, s.admin, "POST", apiclient.TaskRunsPath("a"), []byte(`{"key":"k"}`), apiclient.HeaderIdempotencyKey, "l")
	if resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("two keys = %d, want 422", resp.StatusCode)
	}
}

func TestDisabledTaskIsRunByForceOnly(t *testing.T) {
	t.Parallel()
	s := startWith(t, true)
	off := inline("a")
	off.Status = task.Disabled
	s.created(t, off)
	e := s.refused(t, http.StatusConflict, "POST", apiclient.TaskRunsPath("a"), `{"key":"k"}`)
	if e.Code != apiclient.CodeConflict || !strings.Contains(e.Message, "disabled") {
		t.Errorf("answer = %+v, want the reason", e)
	}
	s.refused(t, http.StatusConflict, "POST", apiclient.TaskRunsPath("a"), `{"key":"k"}`)
	s.ask(t, http.StatusCreated, nil, "POST", apiclient.TaskRunsPath("a"), `{"force":true}`)
}

func TestRunsThatCannotBeAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.created(t, inline("a"))
	s.created(t, web())
	for _, tc := range []struct{ task, body, says string }{
		{"a", `{"commit":"` + strings.Repeat("a", 40) + `"}`, "no git repository"},
		{"web", `{"commit":"main"}`, "full hash"},
		{"web", `{"set":{"x":"1"}}`, "build arguments"},
		{"web", `{"secrets":{"x":"1"}}`, "build arguments"},
		{"web", `{"file":"../Dockerfile"}`, "leaves the context"},
		{"a", `{"args":{"x":"1"}}`, "takes no build arguments"},
		{"a", `{"target":"x"}`, "no target"},
		{"a", `{"noPush":true}`, "push steps"},
		{"a", `{"file":"b.yaml"}`, "inside"},
		{"a", `{"sets":{}}`, "sets"},
		{"a", `{"key":"` + strings.Repeat("k", 257) + `"}`, "256"},
	} {
		if e := s.refused(t, 422, "POST", apiclient.TaskRunsPath(tc.task), tc.body); !strings.Contains(e.Error(), tc.says) && !strings.Contains(e.Message, tc.says) {
			t.Errorf("%s of %s: %+v, want to hear %q", tc.body, tc.task, e, tc.says)
		}
	}
	s.refused(t, 404, "POST", apiclient.TaskRunsPath("none"), `{}`)
	if data, ok := lastEvent(t, s); ok {
		t.Errorf("a refused request is stored: %s", data)
	}
}

// TestSecretsOfARunAreSealed gives a run of a task a secret value.
func TestSecretsOfARunAreSealed(t *testing.T) {
	t.Parallel()
	const value = "hunter22-hunter22"
	s := startWith(t, true)
	s.created(t, inline("a"))
	resp := s.send(t, s.admin, "POST", apiclient.TaskRunsPath("a"), []byte(`{"secrets":{"token":"`+value+`"}}`))
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.StatusCode != http.StatusCreated || strings.Contains(string(body), value) {
		t.Errorf("answer = %d %s", resp.StatusCode, body)
	}
	data, _ := lastEvent(t, s)
	var ev event.Event
	var req event.RunRequested
	check(t, json.Unmarshal(data, &ev))
	check(t, json.Unmarshal(ev.Data, &req))
	var opened map[string]string
	if check(t, s.identity.Open(req.Spec.Secrets, &opened)); opened["token"] != value || strings.Contains(string(data), value) {
		t.Errorf("the request holds %q", opened)
	}
}

func TestRerunOfATaskKeepsWhatTheRunUsed(t *testing.T) {
	t.Parallel()
	s := startWith(t, true)
	made := s.created(t, inline("a"))
	digest := "sha256:" + strings.Repeat("a", 64)
	old := run.Run{ID: "rold00000000", Task: "a", TaskUID: made.Task.UID, State: run.Succeeded, Cause: run.Cause{Commit: "c"},
		Bases: []run.Base{{Ref: "node:22", Digest: digest}}}
	_, err := s.store.Runs.Create(t.Context(), old.ID, old)
	check(t, err)
	request := func(body string) event.RunRequested {
		var r run.Run
		s.ask(t, http.StatusCreated, &r, "POST", apiclient.RerunPath(old.ID), body)
		if r.Cause.RerunOf != old.ID || r.Task != "a" || r.ID == old.ID {
			t.Errorf("repetition = %+v", r)
		}
		data, _ := lastEvent(t, s)
		var ev event.Event
		var req event.RunRequested
		check(t, json.Unmarshal(data, &ev))
		check(t, json.Unmarshal(ev.Data, &req))
		return req
	}
	if req := request(`{}`); req.Pin == nil || req.Pin.Commit != "c" || req.Spec.Pins["docker.io/library/node:22"] != digest {
		t.Errorf("pinned request = %+v", req)
	}
	if req := request(`{"fresh":true}`); req.Pin != nil || len(req.Spec.Pins) > 0 {
		t.Errorf("fresh request = %+v", req)
	}
	s.ask(t, 200, nil, "DELETE", apiclient.TaskPath("a"), "")
	if e := s.refused(t, http.StatusConflict, "POST", apiclient.RerunPath(old.ID), `{}`); !strings.Contains(e.Message, "deleted") {
		t.Errorf("answer = %+v", e)
	}
	s.created(t, inline("a"))
	s.refused(t, http.StatusConflict, "POST", apiclient.RerunPath(old.ID), `{}`)
}

func TestRunsOfATaskAreListed(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, r := range []run.Run{{ID: "ra", Task: "a", State: run.Failed}, {ID: "rb", Task: "a", State: run.Succeeded}, {ID: "rc", Task: "b", State: run.Failed}} {
		r.ID += "0000000000"
		_, err := s.store.Runs.Create(t.Context(), r.ID, r)
		check(t, err)
	}
	for query, want := range map[string]int{"": 2, "?status=Failed": 1, "?status=Failed&status=Succeeded": 2, "?since=2100-01-01T00:00:00Z": 0} {
		await(t, query, want, func() int {
			var page apiclient.Runs
			s.ask(t, 200, &page, "GET", apiclient.TaskRunsPath("a")+query, "")
			return len(page.Runs)
		})
	}
	for _, bad := range []string{"?since=yesterday", "?limit=0", "?until=x"} {
		s.refused(t, 422, "GET", apiclient.TaskRunsPath("a")+bad, "")
	}
}

// await waits until a count is what is wanted.
func await(t *testing.T, what string, want int, count func() int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for got := count(); got != want; got = count() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%q: %d runs, want %d", what, got, want)
		}
	}
}
