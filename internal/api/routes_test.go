package api_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"kiln/internal/apiclient"
)

// rules is every route, with a request that reaches it. All of them are for administrators.
var rules = []struct{ pattern, method, path string }{
	{"POST /api/v1/runs", "POST", "/api/v1/runs"},
	{"GET /api/v1/runs", "GET", "/api/v1/runs"},
	{"GET /api/v1/runs/{id}", "GET", "/api/v1/runs/r00000000000"},
	{"GET /api/v1/runs/{id}/log", "GET", "/api/v1/runs/r00000000000/log"},
	{"POST /api/v1/runs/{id}/cancel", "POST", "/api/v1/runs/r00000000000/cancel"},
	{"POST /api/v1/runs/{id}/rerun", "POST", "/api/v1/runs/r00000000000/rerun"},
	{"GET /api/v1/status", "GET", "/api/v1/status"},
	{"/api/v1/contexts/", "PUT", "/api/v1/contexts/x"},
	{"/api/v1/contexts", "POST", "/api/v1/contexts"},
	{"GET /api/v1/registry/repositories", "GET", "/api/v1/registry/repositories"},
	{"GET /api/v1/registry/manifests", "GET", "/api/v1/registry/manifests"},
	{"GET /api/v1/registry/referrers", "GET", "/api/v1/registry/referrers"},
	{"GET /api/v1/registry/tags", "GET", "/api/v1/registry/tags"},
	{"POST /api/v1/registry/delete", "POST", "/api/v1/registry/delete"},
	{"POST /api/v1/registry/untag", "POST", "/api/v1/registry/untag"},
	{"POST /api/v1/registry/lock", "POST", "/api/v1/registry/lock"},
	{"POST /api/v1/registry/rollback", "POST", "/api/v1/registry/rollback"},
	{"POST /api/v1/registry/collect", "POST", "/api/v1/registry/collect"},
	{"POST /api/v1/registry/purge", "POST", "/api/v1/registry/purge"},
	{"POST /api/v1/registry/import", "POST", "/api/v1/registry/import"},
	{"POST /api/v1/registry/check", "POST", "/api/v1/registry/check"},
	{"POST /api/v1/tasks", "POST", "/api/v1/tasks"},
	{"GET /api/v1/tasks", "GET", "/api/v1/tasks"},
	{"GET /api/v1/tasks/{name}", "GET", "/api/v1/tasks/a"},
	{"PUT /api/v1/tasks/{name}", "PUT", "/api/v1/tasks/a"},
	{"DELETE /api/v1/tasks/{name}", "DELETE", "/api/v1/tasks/a"},
	{"GET /api/v1/tasks/{name}/runs", "GET", "/api/v1/tasks/a/runs"},
	{"POST /api/v1/tasks/{name}/runs", "POST", "/api/v1/tasks/a/runs"},
	{"GET /api/v1/tasks/{name}/decisions", "GET", "/api/v1/tasks/a/decisions"},
	{"GET /api/v1/secrets", "GET", "/api/v1/secrets"},
	{"PUT /api/v1/secrets/{name}", "PUT", "/api/v1/secrets/a"},
	{"DELETE /api/v1/secrets/{name}", "DELETE", "/api/v1/secrets/a"},
	{"POST /api/v1/runs/{id}/approve", "POST", "/api/v1/runs/r00000000000/approve"},
	{"GET /api/v1/runs/{id}/why", "GET", "/api/v1/runs/r00000000000/why"},
	{"GET /api/v1/why", "GET", "/api/v1/why"},
	{"GET /api/v1/events", "GET", "/api/v1/events"},
	{"POST /api/v1/events/{seq}/replay", "POST", "/api/v1/events/1000/replay"},
	{"POST /api/v1/reconcile", "POST", "/api/v1/reconcile"},
	{"GET /api/v1/cache", "GET", "/api/v1/cache"},
	{"POST /api/v1/cache/prune", "POST", "/api/v1/cache/prune"},
	{"GET /api/v1/workers", "GET", "/api/v1/workers"},
	{"POST /api/v1/workers/{worker}/drain", "POST", "/api/v1/workers/a/drain"},
	{"POST /api/v1/workers/{worker}/undrain", "POST", "/api/v1/workers/a/undrain"},
	{"POST /api/v1/tokens", "POST", "/api/v1/tokens"},
	{"GET /api/v1/tokens", "GET", "/api/v1/tokens"},
	{"GET /api/v1/tokens/{name}", "GET", "/api/v1/tokens/a"},
	{"DELETE /api/v1/tokens/{name}", "DELETE", "/api/v1/tokens/a"},
	{"POST /api/v1/hooks", "POST", "/api/v1/hooks"},
	{"GET /api/v1/hooks", "GET", "/api/v1/hooks"},
	{"GET /api/v1/hooks/{hook}", "GET", "/api/v1/hooks/a"},
	{"DELETE /api/v1/hooks/{hook}", "DELETE", "/api/v1/hooks/a"},
	{"POST /api/v1/hooks/{hook}/rotate", "POST", "/api/v1/hooks/a/rotate"},
	{"POST /api/v1/hooks/{hook}/enable", "POST", "/api/v1/hooks/a/enable"},
	{"POST /api/v1/hooks/{hook}/disable", "POST", "/api/v1/hooks/a/disable"},
	{"POST /api/v1/hooks/{hook}/check", "POST", "/api/v1/hooks/a/check"},
	{"POST /api/v1/notifications", "POST", "/api/v1/notifications"},
	{"GET /api/v1/notifications", "GET", "/api/v1/notifications"},
	{"GET /api/v1/notifications/failed", "GET", "/api/v1/notifications/failed"},
	{"POST /api/v1/notifications/retry", "POST", "/api/v1/notifications/retry"},
	{"GET /api/v1/notifications/{target}", "GET", "/api/v1/notifications/a"},
	{"DELETE /api/v1/notifications/{target}", "DELETE", "/api/v1/notifications/a"},
	{"POST /api/v1/notifications/{target}/test", "POST", "/api/v1/notifications/a/test"},
	{"POST /api/v1/registry/webhooks", "POST", "/api/v1/registry/webhooks"},
	{"GET /api/v1/registry/webhooks", "GET", "/api/v1/registry/webhooks"},
	{"GET /api/v1/registry/webhooks/{webhook}", "GET", "/api/v1/registry/webhooks/a"},
	{"PATCH /api/v1/registry/webhooks/{webhook}", "PATCH", "/api/v1/registry/webhooks/a"},
	{"DELETE /api/v1/registry/webhooks/{webhook}", "DELETE", "/api/v1/registry/webhooks/a"},
	{"POST /api/v1/registry/webhooks/{webhook}/ping", "POST", "/api/v1/registry/webhooks/a/ping"},
	{"GET /api/v1/registry/webhooks/{webhook}/events", "GET", "/api/v1/registry/webhooks/a/events"},
}

// open are routes that do nothing for anybody: an answer that there is no such route.
var open = []string{"/api/"}

// patterns returns the patterns of all routes in the package's source.
func patterns(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	check(t, err)
	var all []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		check(t, err)
		constants := map[string]ast.Expr{}
		ast.Inspect(tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if len(n.Names) == 1 && len(n.Values) == 1 {
					constants[n.Names[0].Name] = n.Values[0]
				}
			case *ast.AssignStmt:
				if name, ok := n.Lhs[0].(*ast.Ident); ok && len(n.Rhs) == 1 {
					constants[name.Name] = n.Rhs[0]
				}
			case *ast.CallExpr:
				if fn, ok := n.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(fn.Sel.Name, "Handle") && len(n.Args) == 2 {
					all = append(all, text(t, n.Args[0], constants))
				}
			}
			return true
		})
	}
	return all
}

// text evaluates a constant expression of strings, names that stand for such in the file and the paths of package apiclient.
func text(t *testing.T, e ast.Expr, constants map[string]ast.Expr) string {
	t.Helper()
	paths := map[string]string{"PathRuns": apiclient.PathRuns, "PathContexts": apiclient.PathContexts, "PathStatus": apiclient.PathStatus,
		"PathTasks": apiclient.PathTasks, "PathTokens": apiclient.PathTokens, "PathSecrets": apiclient.PathSecrets, "PathWhy": apiclient.PathWhy, "PathEvents": apiclient.PathEvents,
		"PathReconcile": apiclient.PathReconcile, "PathCache": apiclient.PathCache, "PathCachePrune": apiclient.PathCachePrune, "PathHooks": apiclient.PathHooks, "PathTargets": apiclient.PathTargets, "PathWebhooks": apiclient.PathWebhooks,
		"PathRepositories": apiclient.PathRepositories, "PathManifests": apiclient.PathManifests, "PathReferrers": apiclient.PathReferrers,
		"PathTags": apiclient.PathTags, "PathDelete": apiclient.PathDelete, "PathUntag": apiclient.PathUntag, "PathLock": apiclient.PathLock,
		"PathRollback": apiclient.PathRollback, "PathCheck": apiclient.PathCheck,
		"PathWorkers": apiclient.PathWorkers, "PathCollect": apiclient.PathCollect, "PathPurge": apiclient.PathPurge, "PathImport": apiclient.PathImport}
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return text(t, e.X, constants) + text(t, e.Y, constants)
	case *ast.Ident:
		if value, ok := constants[e.Name]; ok {
			return text(t, value, constants)
		}
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		check(t, err)
		return s
	case *ast.SelectorExpr:
		if s, ok := paths[e.Sel.Name]; ok {
			return s
		}
	}
	t.Fatalf("pattern of a route is not understood: %v", e)
	return ""
}

func TestEveryRouteHasARule(t *testing.T) {
	t.Parallel()
	found := patterns(t)
	if len(found) < 5 {
		t.Fatalf("only %v found", found)
	}
	for _, p := range found {
		ruled := slices.ContainsFunc(rules, func(r struct{ pattern, method, path string }) bool { return r.pattern == p })
		if !ruled && !slices.Contains(open, p) {
			t.Errorf("route %q has no rule: say in the table who may use it", p)
		}
	}
	for _, r := range rules {
		if !slices.Contains(found, r.pattern) {
			t.Errorf("rule for %q, which is no route", r.pattern)
		}
	}
}

func TestEveryRouteNeedsTheAdministratorsToken(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, r := range rules {
		for _, tc := range []struct {
			name, token, code string
			status            int
		}{
			{"no token", "", apiclient.CodeUnauthorized, http.StatusUnauthorized},
			{"wrong token", "kiln_wrong", apiclient.CodeUnauthorized, http.StatusUnauthorized},
			{"forged token", s.run[:len(s.run)-3] + "abc", apiclient.CodeUnauthorized, http.StatusUnauthorized},
			{"a run's token", s.run, apiclient.CodeForbidden, http.StatusForbidden},
		} {
			resp := s.send(t, tc.token, r.method, r.path, nil)
			var answer struct {
				Error apiclient.Error `json:"error"`
			}
			if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || resp.StatusCode != tc.status || answer.Error.Code != tc.code {
				t.Errorf("%s %s with %s = %d %+v, %v, want %d %s", r.method, r.path, tc.name, resp.StatusCode, answer.Error, err, tc.status, tc.code)
			}
			if challenge := resp.Header.Get("WWW-Authenticate"); (challenge != "") != (tc.status == http.StatusUnauthorized) {
				t.Errorf("%s %s with %s: challenge %q", r.method, r.path, tc.name, challenge)
			}
		}
		if resp := s.send(t, s.admin, r.method, r.path, nil); resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
			t.Errorf("%s %s with the administrator's token = %d", r.method, r.path, resp.StatusCode)
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
