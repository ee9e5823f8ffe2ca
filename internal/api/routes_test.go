package api_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
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
}

// open are routes that do nothing for anybody: an answer that there is no such route.
var open = []string{"/api/"}

// patterns returns the patterns of all routes in the package's source.
func patterns(t *testing.T) []string {
	t.Helper()
	tree, err := parser.ParseFile(token.NewFileSet(), "api.go", nil, 0)
	check(t, err)
	var all []string
	ast.Inspect(tree, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if fn, ok := call.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(fn.Sel.Name, "Handle") && len(call.Args) == 2 {
			all = append(all, text(t, call.Args[0]))
		}
		return true
	})
	return all
}

// text evaluates a constant expression of strings and the paths of package apiclient.
func text(t *testing.T, e ast.Expr) string {
	t.Helper()
	paths := map[string]string{"PathRuns": apiclient.PathRuns, "PathContexts": apiclient.PathContexts, "PathStatus": apiclient.PathStatus}
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return text(t, e.X) + text(t, e.Y)
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
