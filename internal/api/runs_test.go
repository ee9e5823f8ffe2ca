package api_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
)

func TestSubmitDecidesARun(t *testing.T) {
	t.Parallel()
	s := start(t)
	var r run.Run
	s.ask(t, http.StatusCreated, &r, "POST", apiclient.PathRuns, encode(t, build("")))
	if !run.ValidID(r.ID) || r.State != run.Queued || r.Cause.Kind != run.CauseManual || r.Cause.By != "admin" || r.Spec.Context != known {
		t.Errorf("run = %+v", r)
	}
	var other run.Run
	s.ask(t, http.StatusCreated, &other, "POST", apiclient.PathRuns, encode(t, build("")))
	if other.ID == r.ID {
		t.Error("two requests without a key are one run")
	}
}

// TestKeyMakesARequestOneRun sends requests of one key at the same time and afterwards.
func TestKeyMakesARequestOneRun(t *testing.T) {
	t.Parallel()
	s := start(t)
	body := encode(t, build("the key"))
	ids := make([]string, 4)
	var sent sync.WaitGroup
	for i := range ids {
		sent.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), "POST", s.url+apiclient.PathRuns, strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+s.admin)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var r run.Run
			if err := json.NewDecoder(resp.Body).Decode(&r); err != nil || resp.StatusCode != http.StatusCreated {
				t.Errorf("%d, %v", resp.StatusCode, err)
			}
			ids[i] = r.ID
		})
	}
	sent.Wait()
	var again run.Run
	s.ask(t, http.StatusCreated, &again, "POST", apiclient.PathRuns, body)
	for _, id := range ids {
		if id != again.ID || id == "" {
			t.Errorf("runs %v and %s, want one", ids, again.ID)
			break
		}
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	both := file("steps:\n- cmd: img\n")
	both.Spec.Context, both.Spec.Build = known, &run.BuildSpec{}
	missing, noContext, sealed, badImage := build(""), build(""), build(""), build("")
	missing.Spec.Context, noContext.Spec.Context, sealed.Spec.Secrets = "context://other", "", []byte("x")
	badImage.Spec.Build.Images = []string{"Not A Name"}
	for _, tc := range []struct {
		name, body string
		status     int
		code, says string
	}{
		{"no JSON", "steps:", 422, apiclient.CodeInvalid, "request body"},
		{"empty", "", 422, apiclient.CodeInvalid, "request body"},
		{"unknown field", `{"spec":{"build":{},"context":"` + known + `"},"retries":1}`, 422, apiclient.CodeInvalid, "retries"},
		{"unknown field of the spec", `{"spec":{"builds":{}}}`, 422, apiclient.CodeInvalid, "builds"},
		{"neither build nor task file", `{"spec":{}}`, 422, apiclient.CodeInvalid, "either a build or a task file"},
		{"both", encode(t, both), 422, apiclient.CodeInvalid, "either a build or a task file"},
		{"build without context", encode(t, noContext), 422, apiclient.CodeInvalid, "context"},
		{"sealed secrets", encode(t, sealed), 422, apiclient.CodeInvalid, "secrets"},
		{"bad image", encode(t, badImage), 422, apiclient.CodeInvalid, "Not A Name"},
		{"long key", encode(t, build(strings.Repeat("k", 257))), 422, apiclient.CodeInvalid, "256"},
		{"context not uploaded", encode(t, missing), 409, apiclient.CodeContextMissing, "not been uploaded"},
		{"too large", encode(t, file("# "+strings.Repeat("x", 4<<20))), 413, apiclient.CodeTooLarge, "4194304"},
	} {
		if e := s.refused(t, tc.status, "POST", apiclient.PathRuns, tc.body); e.Code != tc.code || !strings.Contains(e.Message, tc.says) {
			t.Errorf("%s: %+v, want %s that says %q", tc.name, e, tc.code, tc.says)
		}
	}
	if _, ok := lastEvent(t, s); ok {
		t.Error("a refused request is stored")
	}
}

// lastEvent returns what is stored of the last request, if anything is.
func lastEvent(t *testing.T, s *site) (data []byte, ok bool) {
	t.Helper()
	check(t, s.bus.Tail(t.Context(), bus.StreamEvents, event.RequestFilter, 0, false, func(_ uint64, d []byte) bool {
		data, ok = bytes.Clone(d), true
		return true
	}))
	return data, ok
}

func TestProblemsOfATaskFileHavePlaces(t *testing.T) {
	t.Parallel()
	s := start(t)
	e := s.refused(t, 422, "POST", apiclient.PathRuns, encode(t, file("version: v1.1.0\nsteps:\n- id: a\n  cmd: img\n  retries: x\n- push: y\n")))
	if e.Code != apiclient.CodeInvalid || len(e.Problems) < 2 {
		t.Fatalf("answer = %+v", e)
	}
	if p := e.Problems[0]; p.File != "kiln.yaml" || p.Line != 5 || p.Column != 12 || p.Step != "a" || p.Property != "retries" || p.Message == "" {
		t.Errorf("first problem = %+v, want kiln.yaml:5:12", p)
	}
	if p := e.Problems[1]; p.Line != 6 {
		t.Errorf("second problem = %+v, want line 6", p)
	}
}

func TestSecretsAreStoredSealedOnly(t *testing.T) {
	t.Parallel()
	const value = "hunter22-hunter22-hunter22"
	s := start(t)
	req := file("version: v1.1.0\nsteps:\n- cmd: img\n  env: [\"TOKEN={{.Values.token}}\"]\n")
	req.Secrets = map[string]string{"token": value}
	resp := s.send(t, s.admin, "POST", apiclient.PathRuns, []byte(encode(t, req)))
	var answer bytes.Buffer
	_, err := answer.ReadFrom(resp.Body)
	check(t, err)
	var r run.Run
	check(t, json.Unmarshal(answer.Bytes(), &r))
	if resp.StatusCode != http.StatusCreated || r.Spec.Secrets != nil {
		t.Errorf("%d, sealed secrets %q in the answer", resp.StatusCode, r.Spec.Secrets)
	}
	stored, ok := lastEvent(t, s)
	if !ok {
		t.Fatal("no event is stored")
	}
	everything := append(answer.Bytes(), stored...)
	check(t, s.bus.Tail(t.Context(), bus.StreamDecisions, event.SubjectDecisions, 0, false, func(_ uint64, d []byte) bool {
		everything = append(everything, d...)
		return true
	}))
	for _, form := range []string{value, base64.StdEncoding.EncodeToString([]byte(value))[:16]} {
		if bytes.Contains(everything, []byte(form)) {
			t.Errorf("%s is in what is stored or answered", form)
		}
	}
	var ev event.Event
	var data event.RunRequested
	check(t, json.Unmarshal(stored, &ev))
	check(t, json.Unmarshal(ev.Data, &data))
	var got map[string]string
	if err := s.identity.Open(data.Spec.Secrets, &got); err != nil || got["token"] != value {
		t.Errorf("the server opens %v, %v", got, err)
	}
}

// put stores a run as a scheduler does.
func (s *site) put(t *testing.T, r run.Run) run.Run {
	t.Helper()
	_, err := s.store.Runs.Put(t.Context(), r.ID, r)
	check(t, err)
	return r
}

func TestListIsPaged(t *testing.T) {
	t.Parallel()
	s := start(t)
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var last string
	for i := range 25 {
		last = fmt.Sprintf("r%011d", i)
		s.put(t, run.Run{ID: last, State: run.Queued, Created: began.Add(time.Duration(i) * time.Second), Spec: run.Spec{Secrets: []byte("sealed")}})
	}
	list := func(query string) []run.Run {
		var page apiclient.Runs
		s.ask(t, http.StatusOK, &page, "GET", apiclient.PathRuns+query, "")
		return page.Runs
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for first := list("?limit=1"); len(first) == 0 || first[0].ID != last; first = list("?limit=1") { // the index lags
		check(t, ctx.Err())
	}
	if page := list(""); len(page) != 20 || page[0].ID != last {
		t.Errorf("first page: %d runs, want the newest 20", len(page))
	}
	var all []string
	for before := ""; ; {
		page := list("?limit=10&before=" + before)
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			all = append(all, r.ID)
			if r.Spec.Secrets != nil {
				t.Error("sealed secrets are in the list")
			}
		}
		before = page[len(page)-1].ID
	}
	for i, id := range all {
		if want := fmt.Sprintf("r%011d", 24-i); id != want {
			t.Fatalf("run %d of all pages is %s, want %s", i, id, want)
		}
	}
	if len(all) != 25 {
		t.Errorf("%d runs on all pages, want 25", len(all))
	}
	if page := list("?prefix=r0000000001"); len(page) != 10 {
		t.Errorf("%d runs of the prefix, want 10", len(page))
	}
	resp := s.send(t, s.admin, "GET", apiclient.PathRuns, nil)
	var ms float64
	if n, err := fmt.Sscanf(resp.Header.Get("Server-Timing"), "app;dur=%f", &ms); n != 1 || ms <= 0 || ms > 60_000 {
		t.Errorf("Server-Timing: %q, %v", resp.Header.Get("Server-Timing"), err)
	}
	for _, limit := range []string{"0", "-1", "1001", "x"} {
		if e := s.refused(t, 422, "GET", apiclient.PathRuns+"?limit="+limit, ""); !strings.Contains(e.Message, "1 to 1000") {
			t.Errorf("limit %s: %+v", limit, e)
		}
	}
}

// TestListsAtTheSameTimeAreNotMixed asks for each run by its ID, all at once.
func TestListsAtTheSameTimeAreNotMixed(t *testing.T) {
	t.Parallel()
	s := start(t)
	const runs = 8
	for i := range runs {
		s.put(t, run.Run{ID: fmt.Sprintf("r%011d", i), State: run.Succeeded, Created: time.Now(), Reason: strings.Repeat(fmt.Sprint(i), 1000)})
	}
	c := apiclient.Client{BaseURL: s.url, Token: s.admin, HTTP: http.DefaultClient}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for all := []run.Run(nil); len(all) < runs; { // the index lags
		var err error
		all, err = c.Runs(ctx, apiclient.RunsQuery{})
		check(t, err)
	}
	var asked sync.WaitGroup
	for i := range runs {
		asked.Go(func() {
			for range 20 {
				got, err := c.Runs(ctx, apiclient.RunsQuery{Prefix: fmt.Sprintf("r%011d", i)})
				if err != nil || len(got) != 1 || got[0].Reason != strings.Repeat(fmt.Sprint(i), 1000) {
					t.Errorf("list of run %d: %d runs, %v", i, len(got), err)
				}
			}
		})
	}
	asked.Wait()
}

func TestShowHidesSealedSecrets(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.put(t, run.Run{ID: "r0000000test", State: run.Running, Spec: run.Spec{Secrets: []byte("sealed")}})
	var r run.Run
	s.ask(t, http.StatusOK, &r, "GET", apiclient.RunPath("r0000000test"), "")
	if r.State != run.Running || r.Spec.Secrets != nil {
		t.Errorf("run = %+v", r)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.put(t, run.Run{ID: "r0000000test", State: run.Running})
	s.put(t, run.Run{ID: "r0000000done", State: run.Failed})
	s.ask(t, http.StatusAccepted, nil, "POST", apiclient.CancelPath("r0000000test"), "")
	var ev event.Event
	_, err := s.bus.Last(t.Context(), bus.StreamEvents, event.CancelSubject("r0000000test"), &ev)
	check(t, err)
	var wish event.CancelRequested
	check(t, json.Unmarshal(ev.Data, &wish))
	if ev.Type != event.TypeCancelRequested || wish.Run != "r0000000test" || wish.By != "admin" {
		t.Errorf("event %s of %+v", ev.Type, wish)
	}
	if e := s.refused(t, http.StatusConflict, "POST", apiclient.CancelPath("r0000000done"), ""); e.Code != apiclient.CodeConflict || !strings.Contains(e.Message, "Failed") {
		t.Errorf("cancel of an ended run = %+v", e)
	}
}

func TestRerun(t *testing.T) {
	t.Parallel()
	s := start(t)
	spec := run.Spec{Context: known, Build: &run.BuildSpec{Images: []string{"app"}}}
	s.put(t, run.Run{ID: "r0000000test", State: run.Failed, Spec: spec})
	spec.Context = "context://gone"
	s.put(t, run.Run{ID: "r0000000gone", State: run.Failed, Spec: spec})
	var r run.Run
	s.ask(t, http.StatusCreated, &r, "POST", apiclient.RerunPath("r0000000test"), "{}")
	if r.ID == "r0000000test" || r.Cause.Kind != run.CauseRerun || r.Cause.RerunOf != "r0000000test" || r.Spec.Context != known {
		t.Errorf("run = %+v", r)
	}
	if e := s.refused(t, 422, "POST", apiclient.RerunPath("r0000000gone"), "{}"); !strings.Contains(e.Message, "r0000000gone") {
		t.Errorf("rerun without its context = %+v", e)
	}
}

func TestRunPastRetentionIsSaidToBe(t *testing.T) {
	t.Parallel()
	s := start(t)
	old, err := run.NewID(time.Now().Add(-91*24*time.Hour), rand.Reader)
	check(t, err)
	recent, err := run.NewID(time.Now(), rand.Reader)
	check(t, err)
	for _, path := range []string{"", "/log", "/log?follow=1", "/why"} {
		var answer struct{ Error apiclient.Error }
		s.ask(t, http.StatusNotFound, &answer, "GET", apiclient.PathRuns+"/"+old+path, "")
		if got := answer.Error.Message; !strings.Contains(got, "is past retention: runs are kept for 90 days after their end") {
			t.Errorf("%s of a run that was removed: %q", path, got)
		}
	}
	var answer struct{ Error apiclient.Error }
	s.ask(t, http.StatusNotFound, &answer, "GET", apiclient.PathRuns+"/"+recent, "")
	if got := answer.Error.Message; got != `no run "`+recent+`"` {
		t.Errorf("a run that never was: %q", got)
	}
}
