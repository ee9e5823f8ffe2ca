package forge_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/forge"
)

const token = "a token that nobody may see"

func TestSameRepositoryByEveryProtocol(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"https://git.example.com/team/app", "https://Git.example.com/Team/app.git/", "git@git.example.com:team/app.git",
		"ssh://git@git.example.com:22/team/app.git"} {
		if !forge.Same(url, "https://git.example.com/team/app.git") {
			t.Errorf("%s is not the same", url)
		}
	}
	for _, url := range []string{"", "https://git.example.com/team/other", "https://other.example.com/team/app", "/srv/git/team/app.git"} {
		if forge.Same(url, "https://git.example.com/team/app.git") {
			t.Errorf("%q is the same", url)
		}
	}
	if got := forge.Detect("git@github.com:team/app.git"); got != "github" {
		t.Errorf("Detect = %q, want github", got)
	}
}

func TestRefusalsNameTheRemedyAndNotTheToken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status    int
		header    string
		permanent bool
		want      string
	}{
		{http.StatusUnauthorized, "", true, "admin:repo_hook"},
		{http.StatusNotFound, "", true, "Webhooks"},
		{http.StatusFound, "", true, "has moved"},
		{http.StatusForbidden, "Retry-After", false, "403"},
		{http.StatusTooManyRequests, "", false, "429"},
		{http.StatusBadGateway, "", false, "502"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if c.header != "" {
				w.Header().Set(c.header, "1")
			}
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(c.status)
			_ = json.NewEncoder(w).Encode(map[string]string{"message": "no: " + token})
		}))
		repo, err := forge.Open(forge.Config{Provider: "github", URL: s.URL + "/team/app", Token: token})
		if err != nil {
			t.Fatal(err)
		}
		_, err = repo.CreateHook(t.Context(), forge.Hook{URL: "https://kiln.test/hooks/github/x", Secret: "s"})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), token) || forge.Permanent(err) != c.permanent {
			t.Errorf("%d: %v (permanent %t), want %q, permanent %t", c.status, err, forge.Permanent(err), c.want, c.permanent)
		}
		if (c.status == http.StatusNotFound) != errors.Is(err, forge.ErrNotFound) {
			t.Errorf("%d: ErrNotFound is %t", c.status, errors.Is(err, forge.ErrNotFound))
		}
		s.Close()
	}
}

// TestHookAtGitHubAndGitLab checks requests and answers against the shapes that the forges document.
func TestHookAtGitHubAndGitLab(t *testing.T) {
	t.Parallel()
	hook := forge.Hook{URL: "https://kiln.test/hooks/x/y", Secret: "the secret"}
	for _, c := range []struct{ provider, path, method, answer, sent, problem string }{
		{"github", "/api/v3/repos/team/app/hooks", http.MethodPatch,
			`{"id":7,"active":true,"config":{"url":"https://kiln.test/hooks/x/y"},"last_response":{"code":404,"status":"missing","message":"Not Found"}}`,
			`"content_type":"json","secret":"the secret"`, "answered 404"},
		{"gitlab", "/api/v4/projects/team%2Fapp/hooks", http.MethodPut,
			`{"id":7,"url":"https://kiln.test/hooks/x/y","push_events":true,"tag_push_events":true,"merge_requests_events":true,"alert_status":"temporarily_disabled"}`,
			`"token":"the secret"`, "temporarily disabled"},
	} {
		var asked []string
		var sent strings.Builder
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.Method+" "+r.URL.EscapedPath())
			var body json.RawMessage
			if json.NewDecoder(r.Body).Decode(&body) == nil {
				sent.Write(body)
			}
			_, _ = w.Write([]byte(c.answer))
		}))
		repo, err := forge.Open(forge.Config{Provider: c.provider, URL: s.URL + "/team/app.git", Token: token})
		if err != nil {
			t.Fatal(err)
		}
		id, err := repo.CreateHook(t.Context(), hook)
		if err != nil || id != "7" {
			t.Errorf("%s: CreateHook = %q, %v", c.provider, id, err)
		}
		if _, err := repo.ReplaceHook(t.Context(), id, hook); err != nil {
			t.Error(err)
		}
		state, err := repo.Hook(t.Context(), id)
		if err != nil || state.URL != hook.URL || !strings.Contains(state.Problem, c.problem) {
			t.Errorf("%s: Hook = %+v, %v, want the problem %q", c.provider, state, err, c.problem)
		}
		if err := repo.DeleteHook(t.Context(), id); err != nil {
			t.Error(err)
		}
		want := "POST " + c.path + ", " + c.method + " " + c.path + "/7, GET " + c.path + "/7, DELETE " + c.path + "/7"
		if got := strings.Join(asked, ", "); got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
		if !strings.Contains(sent.String(), c.sent) {
			t.Errorf("sent %s, want %s", sent.String(), c.sent)
		}
		s.Close()
	}
}

// TestPullRequestsOfAllPages asks a forge whose pages are smaller than asked for, in the shapes that forges document.
func TestPullRequestsOfAllPages(t *testing.T) {
	t.Parallel()
	sha := strings.Repeat("a", 40)
	hub := `[{"number":%d,"state":"open","created_at":"2026-01-02T03:04:05Z","user":{"id":9,"login":"kim"},"author_association":"MEMBER",
		"head":{"ref":"x","sha":"` + sha + `","repo":{"id":2,"full_name":"kim/app"}},"base":{"ref":"main","repo":{"id":1,"full_name":"team/app"}}}]`
	lab := `[{"iid":%d,"state":"opened","created_at":"2026-01-02T03:04:05.000Z","source_branch":"x","target_branch":"main","sha":"` + sha + `",
		"source_project_id":2,"target_project_id":1,"author":{"id":9,"username":"kim"}}]`
	for _, c := range []struct{ provider, list, one, answer, merged, ref string }{
		{"github", "/api/v3/repos/team/app/pulls", "/api/v3/repos/team/app/pulls/4", hub, `{"state":"closed","merged":true}`, "refs/pull/3/head"},
		{"forgejo", "/api/v1/repos/team/app/pulls", "/api/v1/repos/team/app/pulls/4", hub, `{"state":"closed","merged":true}`, "refs/pull/3/head"},
		{"gitlab", "/api/v4/projects/team%2Fapp/merge_requests", "/api/v4/projects/team%2Fapp/merge_requests/4", lab, `{"state":"merged"}`, "refs/merge-requests/3/head"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			page := r.URL.Query().Get("page")
			switch {
			case r.URL.EscapedPath() == c.one:
				fmt.Fprint(w, c.merged)
			case r.URL.EscapedPath() != c.list:
				w.WriteHeader(http.StatusNotFound)
			case page == "1", page == "2", page == "3": // 2 twice, as when another was opened meanwhile
				fmt.Fprintf(w, c.answer, map[string]int{"1": 2, "2": 2, "3": 3}[page])
			default:
				fmt.Fprint(w, "[]")
			}
		}))
		repo, err := forge.Open(forge.Config{Provider: c.provider, URL: s.URL + "/team/app", Token: token})
		if err != nil {
			t.Fatal(err)
		}
		list, err := repo.Pulls(t.Context())
		if err != nil || len(list) != 2 {
			t.Fatalf("%s: %d requests, %v, want 2", c.provider, len(list), err)
		}
		if p := list[1]; p.Number != 3 || p.HeadSHA != sha || p.HeadRef != "x" || p.BaseRef != "main" || !p.Fork || p.FetchRef != c.ref ||
			p.Author != (event.Person{ID: "9", Login: "kim"}) || p.Created.Year() != 2026 {
			t.Errorf("%s: %+v", c.provider, p)
		}
		if action, err := repo.PullAction(t.Context(), 4); action != event.PullMerged || err != nil {
			t.Errorf("%s: 4 is %q, %v", c.provider, action, err)
		}
		if action, err := repo.PullAction(t.Context(), 5); action != event.PullClosed || err != nil {
			t.Errorf("%s: 5, which is not there, is %q, %v", c.provider, action, err)
		}
		s.Close()
	}
}
