package api_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"kiln/internal/api"
	"kiln/internal/apiclient"
)

// rules is every route, with a request that reaches it, and who may use it.
var rules = []struct {
	pattern, method, path string
	who                   api.Rule
}{
	{"POST /api/v1/runs", "POST", "/api/v1/runs", api.Authors},
	{"GET /api/v1/runs", "GET", "/api/v1/runs", api.Readers},
	{"GET /api/v1/runs/{id}", "GET", "/api/v1/runs/r00000000000", api.Readers},
	{"GET /api/v1/runs/{id}/log", "GET", "/api/v1/runs/r00000000000/log", api.Readers},
	{"POST /api/v1/runs/{id}/cancel", "POST", "/api/v1/runs/r00000000000/cancel", api.Runners},
	{"POST /api/v1/runs/{id}/rerun", "POST", "/api/v1/runs/r00000000000/rerun", api.Runners},
	{"GET /api/v1/status", "GET", "/api/v1/status", api.Readers},
	{"/api/v1/contexts/", "PUT", "/api/v1/contexts/x", api.Authors},
	{"/api/v1/contexts", "POST", "/api/v1/contexts", api.Authors},
	{"GET /api/v1/registry/repositories", "GET", "/api/v1/registry/repositories", api.Images},
	{"GET /api/v1/registry/manifests", "GET", "/api/v1/registry/manifests", api.Images},
	{"GET /api/v1/registry/referrers", "GET", "/api/v1/registry/referrers", api.Images},
	{"GET /api/v1/registry/tags", "GET", "/api/v1/registry/tags", api.Images},
	{"POST /api/v1/registry/delete", "POST", "/api/v1/registry/delete", api.Admins},
	{"POST /api/v1/registry/untag", "POST", "/api/v1/registry/untag", api.Admins},
	{"POST /api/v1/registry/lock", "POST", "/api/v1/registry/lock", api.Images},
	{"POST /api/v1/registry/rollback", "POST", "/api/v1/registry/rollback", api.Images},
	{"POST /api/v1/registry/collect", "POST", "/api/v1/registry/collect", api.Admins},
	{"POST /api/v1/registry/purge", "POST", "/api/v1/registry/purge", api.Admins},
	{"POST /api/v1/registry/import", "POST", "/api/v1/registry/import", api.Admins},
	{"POST /api/v1/registry/check", "POST", "/api/v1/registry/check", api.Admins},
	{"POST /api/v1/tasks", "POST", "/api/v1/tasks", api.Authors},
	{"GET /api/v1/tasks", "GET", "/api/v1/tasks", api.Readers},
	{"GET /api/v1/tasks/{name}", "GET", "/api/v1/tasks/a", api.Readers},
	{"PUT /api/v1/tasks/{name}", "PUT", "/api/v1/tasks/a", api.Authors},
	{"DELETE /api/v1/tasks/{name}", "DELETE", "/api/v1/tasks/a", api.Authors},
	{"GET /api/v1/tasks/{name}/runs", "GET", "/api/v1/tasks/a/runs", api.Readers},
	{"POST /api/v1/tasks/{name}/runs", "POST", "/api/v1/tasks/a/runs", api.Runners},
	{"GET /api/v1/tasks/{name}/decisions", "GET", "/api/v1/tasks/a/decisions", api.Readers},
	{"GET /api/v1/secrets", "GET", "/api/v1/secrets", api.Authors},
	{"PUT /api/v1/secrets/{name}", "PUT", "/api/v1/secrets/a", api.Authors},
	{"DELETE /api/v1/secrets/{name}", "DELETE", "/api/v1/secrets/a", api.Authors},
	{"POST /api/v1/runs/{id}/approve", "POST", "/api/v1/runs/r00000000000/approve", api.Runners},
	{"GET /api/v1/runs/{id}/why", "GET", "/api/v1/runs/r00000000000/why", api.Readers},
	{"GET /api/v1/why", "GET", "/api/v1/why", api.Readers},
	{"GET /api/v1/events", "GET", "/api/v1/events", api.Readers},
	{"POST /api/v1/events/{seq}/replay", "POST", "/api/v1/events/1000/replay", api.Admins},
	{"POST /api/v1/reconcile", "POST", "/api/v1/reconcile", api.Admins},
	{"POST /api/v1/backup", "POST", "/api/v1/backup", api.Admins},
	{"GET /api/v1/audit", "GET", "/api/v1/audit", api.Admins},
	{"GET /api/v1/cache", "GET", "/api/v1/cache", api.Admins},
	{"POST /api/v1/cache/prune", "POST", "/api/v1/cache/prune", api.Admins},
	{"GET /api/v1/workers", "GET", "/api/v1/workers", api.Admins},
	{"POST /api/v1/workers/{worker}/drain", "POST", "/api/v1/workers/a/drain", api.Admins},
	{"POST /api/v1/workers/{worker}/undrain", "POST", "/api/v1/workers/a/undrain", api.Admins},
	{"POST /api/v1/tokens", "POST", "/api/v1/tokens", api.Admins},
	{"GET /api/v1/tokens", "GET", "/api/v1/tokens", api.Admins},
	{"GET /api/v1/tokens/{name}", "GET", "/api/v1/tokens/a", api.Admins},
	{"DELETE /api/v1/tokens/{name}", "DELETE", "/api/v1/tokens/a", api.Admins},
	{"POST /api/v1/hooks", "POST", "/api/v1/hooks", api.Admins},
	{"GET /api/v1/hooks", "GET", "/api/v1/hooks", api.Admins},
	{"GET /api/v1/hooks/{hook}", "GET", "/api/v1/hooks/a", api.Admins},
	{"DELETE /api/v1/hooks/{hook}", "DELETE", "/api/v1/hooks/a", api.Admins},
	{"POST /api/v1/hooks/{hook}/rotate", "POST", "/api/v1/hooks/a/rotate", api.Admins},
	{"POST /api/v1/hooks/{hook}/enable", "POST", "/api/v1/hooks/a/enable", api.Admins},
	{"POST /api/v1/hooks/{hook}/disable", "POST", "/api/v1/hooks/a/disable", api.Admins},
	{"POST /api/v1/hooks/{hook}/check", "POST", "/api/v1/hooks/a/check", api.Admins},
	{"POST /api/v1/notifications", "POST", "/api/v1/notifications", api.Admins},
	{"GET /api/v1/notifications", "GET", "/api/v1/notifications", api.Admins},
	{"GET /api/v1/notifications/failed", "GET", "/api/v1/notifications/failed", api.Admins},
	{"POST /api/v1/notifications/retry", "POST", "/api/v1/notifications/retry", api.Admins},
	{"GET /api/v1/notifications/{target}", "GET", "/api/v1/notifications/a", api.Admins},
	{"DELETE /api/v1/notifications/{target}", "DELETE", "/api/v1/notifications/a", api.Admins},
	{"POST /api/v1/notifications/{target}/test", "POST", "/api/v1/notifications/a/test", api.Admins},
	{"POST /api/v1/registry/webhooks", "POST", "/api/v1/registry/webhooks", api.Admins},
	{"GET /api/v1/registry/webhooks", "GET", "/api/v1/registry/webhooks", api.Admins},
	{"GET /api/v1/registry/webhooks/{webhook}", "GET", "/api/v1/registry/webhooks/a", api.Admins},
	{"PATCH /api/v1/registry/webhooks/{webhook}", "PATCH", "/api/v1/registry/webhooks/a", api.Admins},
	{"DELETE /api/v1/registry/webhooks/{webhook}", "DELETE", "/api/v1/registry/webhooks/a", api.Admins},
	{"POST /api/v1/registry/webhooks/{webhook}/ping", "POST", "/api/v1/registry/webhooks/a/ping", api.Admins},
	{"GET /api/v1/registry/webhooks/{webhook}/events", "GET", "/api/v1/registry/webhooks/a/events", api.Admins},
}

// answers is what each kind of token is answered on routes of a rule: 0 is what the handler says, which lets it in.
var answers = map[string]map[api.Rule]int{
	"no token":         {},
	"a wrong token":    {},
	"a forged token":   {},
	"an expired token": {},
	"a deleted token":  {},
	"a run's":          {api.Readers: 403, api.Runners: 403, api.Authors: 403, api.Admins: 403, api.Images: 403},
	"a session":        {api.Readers: 403, api.Runners: 403, api.Authors: 403, api.Admins: 403, api.Images: 403},
	"one for images":   {api.Readers: 403, api.Runners: 403, api.Authors: 403, api.Admins: 403, api.Images: 0},
	"a reader's":       {api.Readers: 0, api.Runners: 403, api.Authors: 403, api.Admins: 403, api.Images: 0},
	"a runner's":       {api.Readers: 0, api.Runners: 0, api.Authors: 403, api.Admins: 403, api.Images: 0},
	"an author's":      {api.Readers: 0, api.Runners: 0, api.Authors: 0, api.Admins: 403, api.Images: 0},
	"an admin's":       {api.Readers: 0, api.Runners: 0, api.Authors: 0, api.Admins: 0, api.Images: 0},
	"the admin token":  {api.Readers: 0, api.Runners: 0, api.Authors: 0, api.Admins: 0, api.Images: 0},
}

// TestEveryRouteHasARule walks all routes with all kinds of tokens. A route that is missing above fails it.
func TestEveryRouteHasARule(t *testing.T) {
	t.Parallel()
	s := start(t)
	var found []string
	for _, rt := range s.routes {
		found = append(found, rt.Pattern)
		ruled := slices.ContainsFunc(rules, func(r struct {
			pattern, method, path string
			who                   api.Rule
		}) bool {
			return r.pattern == rt.Pattern
		})
		if !ruled {
			t.Errorf("route %q is not in the table: say who may use it", rt.Pattern)
		}
	}
	tokens := s.tokens(t)
	for _, r := range rules {
		if !slices.Contains(found, r.pattern) {
			t.Errorf("rule for %q, which is no route", r.pattern)
		}
		for kind, by := range answers {
			want, known := by[r.who]
			if !known {
				want = http.StatusUnauthorized
			}
			resp := s.send(t, tokens[kind], r.method, r.path, nil)
			var answer struct {
				Error apiclient.Error `json:"error"`
			}
			err := json.NewDecoder(resp.Body).Decode(&answer)
			_ = resp.Body.Close()
			// What the handler itself refuses, for want of a permission for a repository, says so.
			denied := resp.StatusCode == http.StatusUnauthorized ||
				resp.StatusCode == http.StatusForbidden && !strings.Contains(answer.Error.Message, "for repository")
			switch {
			case want == 0 && denied, want != 0 && (resp.StatusCode != want || err != nil):
				t.Errorf("%s %s with %s token = %d %+v, want %d", r.method, r.path, kind, resp.StatusCode, answer.Error, want)
			case want == http.StatusForbidden && answer.Error.Code != apiclient.CodeForbidden, want == http.StatusUnauthorized && answer.Error.Code != apiclient.CodeUnauthorized:
				t.Errorf("%s %s with %s token: code %q", r.method, r.path, kind, answer.Error.Code)
			}
			if challenge := resp.Header.Get("WWW-Authenticate"); (challenge != "") != (want == http.StatusUnauthorized) {
				t.Errorf("%s %s with %s token: challenge %q", r.method, r.path, kind, challenge)
			}
		}
	}
}

func TestUnknownRoutesAndRuns(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{"GET /api/v1/nothing", "DELETE /api/v1/runs", "GET /api/v1/runs/r00000000000", "GET /api/v1/runs/NOT-AN-ID",
		"GET /api/v1/runs/r00000000000/log", "GET /api/v1/runs/x.y/log?follow=1", "POST /api/v1/runs/r00000000000/cancel", "POST /api/v1/runs/%3E/rerun"} {
		method, path, _ := strings.Cut(path, " ")
		if e := s.refused(t, http.StatusNotFound, method, path, ""); e.Code != apiclient.CodeNotFound || e.Message == "" {
			t.Errorf("%s %s = %+v", method, path, e)
		}
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	s := start(t)
	var st apiclient.Status
	s.ask(t, http.StatusOK, &st, "GET", apiclient.PathStatus, "")
	if st.Registry != "reg.test:5000" {
		t.Errorf("status = %+v", st)
	}
}
