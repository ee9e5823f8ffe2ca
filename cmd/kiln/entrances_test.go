package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kiln/internal/auth"
	"kiln/internal/registry"
	"kiln/webhook"
)

// doors is every entrance of a server, with a request to it, and what it is answered without a token, with one that
// is wrong, and with those of an administrator. Routes of the API have a table of their own in package api.
var doors = []struct {
	pattern, request string
	who              openTo
	without, wrong   int
	admin            int
}{
	{auth.TokenPath, "GET " + auth.TokenPath, whoHasToken, 401, 401, 200},
	{"/v2/", "GET /v2/", byRegistry, 401, 401, 200},
	{"/api/", "GET /api/v1/status", byRoute, 401, 401, 200},
	{webhook.Prefix, "POST " + webhook.Prefix + "github/x", signed, 404, 404, 404},
	{"GET " + runPath + "{run}", "GET " + runPath + "r00000000000", everybody, 200, 200, 200},
	{"GET /healthz", "GET /healthz", everybody, 200, 200, 200},
	{"GET /readyz", "GET /readyz", everybody, 200, 200, 200},
	{"GET /metrics", "GET /metrics", whoWatches, 200, 401, 200}, // the test is on this host
}

// testEntrances walks everything that a server serves. What is missing above fails it.
func testEntrances(t *testing.T, s *server) {
	admin := s.client().Token
	for _, d := range doors {
		method, path, _ := strings.Cut(d.request, " ")
		for token, want := range map[string]int{"": d.without, "wrong": d.wrong, admin: d.admin} {
			req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, nil)
			must(t, err)
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			resp, err := http.DefaultClient.Do(req)
			must(t, err)
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s with a token of %d bytes = %d, want %d", d.request, len(token), resp.StatusCode, want)
			}
		}
	}
}

func TestEveryEntranceSaysWhoMayUseIt(t *testing.T) {
	t.Parallel()
	expected := map[string]openTo{}
	for _, d := range doors {
		expected[d.pattern] = d.who
	}
	for _, e := range (&node{cfg: serveConfig{workerConfig: workerConfig{roles: allRoles}}, registry: &registry.Store{}}).entrances() {
		if expected[e.pattern] != e.who || e.who == "" {
			t.Errorf("%s is open to %q, the table says %q", e.pattern, e.who, expected[e.pattern])
		}
		delete(expected, e.pattern)
	}
	if len(expected) > 0 {
		t.Errorf("in the table and not served: %v", expected)
	}
	files, err := filepath.Glob("*.go")
	must(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		must(t, err)
		ast.Inspect(tree, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return true
			}
			if fn, ok := call.Fun.(*ast.SelectorExpr); ok && (fn.Sel.Name == "Handle" || fn.Sel.Name == "HandleFunc") && file != "entrances.go" {
				t.Errorf("%s serves something by itself: make an entrance of it", file)
			}
			return true
		})
	}
}

// Each action of the registry, by each kind of token; for those with a role in repositories of its own and of others.
func TestRolesInTheRegistry(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	tokens := map[string]string{"": "", "wrong": "wrong", "admin.token": g.admin}
	for name, args := range map[string][]string{"admin": {"--role", "admin"}, "author": {"--role", "author", "--repo", "web/*"}, "runner": {"--role", "runner", "--repo", "web/*"},
		"reader": {"--role", "reader", "--repo", "web/*"}, "all": {"--role", "reader"}, "mixed": {"--role", "reader", "--repo", "web/*=all"}, "pull": {"--repo", "web/*=pull"}} {
		tokens[name] = g.token(t, name, args...)
	}
	for _, r := range []string{"web/app:1", "db/app:1"} {
		g.push(t, r)
	}
	const deleted = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	all, some := []string{"admin.token", "admin"}, func(names ...string) []string { return append(names, "admin.token", "admin") }
	rows := []struct {
		action  registry.Action
		request string
		may     []string
	}{
		{registry.Pull, "GET /v2/web/app/manifests/1", some("author", "runner", "reader", "all", "mixed", "pull")},
		{registry.Pull, "GET /v2/db/app/manifests/1", some("all")},
		{registry.Pull, "GET /v2/kiln/contexts/manifests/1", all},
		{registry.List, "GET /v2/web/app/tags/list", some("author", "runner", "reader", "all", "mixed", "pull")},
		{registry.List, "GET /v2/db/app/tags/list", some("all")},
		{registry.Push, "POST /v2/web/app/blobs/uploads/", some("author", "mixed")},
		{registry.Push, "POST /v2/db/app/blobs/uploads/", all},
		{registry.Delete, "DELETE /v2/web/app/manifests/" + deleted, some("mixed")},
		{registry.Delete, "DELETE /v2/db/app/manifests/" + deleted, all},
		{registry.Catalog, "GET /v2/_catalog", some("author", "runner", "reader", "all", "mixed", "pull")},
		{registry.Control, "GET /v2/.kiln/fences", all},
		{registry.Control, "DELETE /v2/.kiln/fence/r00000000000", all},
		{registry.Publish, "POST /v2/.kiln/publish/r00000000000", all},
	}
	walked := map[registry.Action]bool{}
	for _, row := range rows {
		walked[row.action] = true
		method, path, _ := strings.Cut(row.request, " ")
		for name, password := range tokens {
			want := http.StatusForbidden
			switch {
			case name == "" || name == "wrong":
				want = http.StatusUnauthorized
			case slices.Contains(row.may, name):
				want = 0
			}
			authorization := "Bearer " + password
			if password == "" {
				authorization = ""
			}
			status, code, _ := g.do(t, authorization, method, path)
			if denied := status == http.StatusForbidden || status == http.StatusUnauthorized; want == 0 && denied || want != 0 && status != want {
				t.Errorf("%s with token %q = %d %s, want %d", row.request, name, status, code, want)
			}
		}
	}
	for _, action := range registry.Actions() {
		if !walked[action] {
			t.Errorf("action %s is not in the table: say who may do it", action)
		}
	}
}

func TestTokensWithRoles(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	author := g.token(t, "dev", "--role", "author", "--task", "web-*", "--repo", "web/*", "--expires", "90d")
	if r := g.kiln(t, author, "repo", "list"); r.code != 0 {
		t.Errorf("kiln repo list: %+v", r)
	}
	g.uses.store(t.Context())
	show, list := g.kiln(t, g.admin, "token", "show", "dev"), g.kiln(t, g.admin, "token", "list")
	for _, want := range []string{"role author for web-*", "last used ", "web/*   content/read content/write metadata/read", "expires "} {
		if !strings.Contains(show.out, want) {
			t.Errorf("kiln token show lacks %q: %+v", want, show)
		}
	}
	if !strings.Contains(list.out, "author") || !strings.Contains(list.out, "web-*") {
		t.Errorf("kiln token list: %+v", list)
	}
	for _, args := range [][]string{{"x", "--role", "root"}, {"x", "--role", "admin", "--repo", "a"}, {"x", "--role", "admin", "--task", "a"}, {"x", "--task", "a", "--repo", "a=pull"},
		{"x", "--role", "reader", "--task", "a b"}, {"x", "--role", "reader", "--task", "*-a"}, {"x", "--role", "reader", "--repo", "kiln/*"}, {"x", "--repo", "a"}} {
		if r := g.kiln(t, g.admin, append([]string{"token", "create"}, args...)...); r.code == 0 {
			t.Errorf("kiln token create %q is accepted", args)
		}
	}
	// A session ends with the token of a role, too.
	session, _ := g.session(t, author, "repository:web/app:pull,push")
	if status, _, _ := g.do(t, "Bearer "+session, "POST", "/v2/web/app/blobs/uploads/"); status != 202 {
		t.Errorf("a session of an author: %d", status)
	}
	if r := g.kiln(t, g.admin, "token", "revoke", "dev"); r.code != 0 {
		t.Errorf("kiln token revoke: %+v", r)
	}
	if status, _, _ := g.do(t, "Bearer "+session, "POST", "/v2/web/app/blobs/uploads/"); status != 401 {
		t.Errorf("a session of a token that was revoked: %d", status)
	}
}
