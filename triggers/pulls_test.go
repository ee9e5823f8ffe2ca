package triggers_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// A hub answers what GitHub answers about the pull requests of a repository.
type hub struct {
	mu    sync.Mutex
	pulls map[int]map[string]any
}

func (h *hub) set(number int, sha, base, state string, created time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pulls == nil {
		h.pulls = map[int]map[string]any{}
	}
	end := func(ref, sha string, repo int) map[string]any {
		return map[string]any{"ref": ref, "sha": sha, "repo": map[string]any{"id": repo, "full_name": fmt.Sprint("o/", repo)}}
	}
	h.pulls[number] = map[string]any{"number": number, "state": strings.TrimPrefix(state, "merged "), "merged": strings.HasPrefix(state, "merged"),
		"created_at": created, "author_association": "MEMBER", "user": map[string]any{"id": 5, "login": "kim"},
		"head": end("x", sha, 1), "base": end(base, "", 1)}
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	const list = "/repos/o/app/pulls"
	switch number := 0; {
	case r.Header.Get("Authorization") != "Bearer "+hubToken:
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == list:
		open := []any{}
		for _, n := range slices.Sorted(maps.Keys(h.pulls)) {
			if h.pulls[n]["state"] == "open" && r.URL.Query().Get("page") == "1" {
				open = append(open, h.pulls[n])
			}
		}
		_ = json.NewEncoder(w).Encode(open)
	default:
		if _, err := fmt.Sscanf(r.URL.Path, list+"/%d", &number); err != nil || h.pulls[number] == nil {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(h.pulls[number])
	}
}

const hubToken = "a token of the forge"

// hub starts a forge of a repository, to which its hook has a token.
func (r *rig) hub(repository string) *hub {
	r.t.Helper()
	h := &hub{}
	server := httptest.NewServer(h)
	r.t.Cleanup(server.Close)
	r.secrets = map[string]string{"forge": hubToken}
	hook := event.Hook{ID: "hook", Name: "hook", Provider: "github", URL: repository, API: server.URL, TokenSecret: "forge"}
	if _, err := r.store.Hooks.Create(r.t.Context(), hook.ID, hook); err != nil {
		r.t.Fatal(err)
	}
	return h
}

func TestLostPullRequestsAreFoundAtTheForge(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("o/app")
	r.push("base", "1", "one")
	forge := r.hub(url)
	r.start()
	first := repo.Git("commit-tree", "-p", "HEAD", "-m", "first", "HEAD^{tree}")
	second := repo.Git("commit-tree", "-p", first, "-m", "second", "HEAD^{tree}")
	at := func(number int, sha string) {
		repo.Git("push", "-q", "-f", "origin", fmt.Sprintf("%s:refs/pull/%d/head", sha, number))
	}
	at(1, first)
	forge.set(1, first, "main", "open", time.Now().Add(-time.Hour))
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source[0].Events = []task.SourceEvent{task.PullRequest} })
	r.ready(app)
	r.eventually("pull requests followed", func() bool { return r.last(app, decide.Track{Kind: "pulls"}).State.Known })
	if found := r.reconcile(false); len(found) > 0 {
		t.Fatalf("found %q: the request is older than the task", found)
	}

	at(1, second)
	forge.set(1, second, "main", "open", time.Now().Add(-time.Hour))
	at(2, first)
	forge.set(2, first, "main", "open", time.Now().Add(time.Second))
	want := []string{"app pull:1 run: pull request 1 is at " + second[:12], "app pull:2 run: pull request 2 is at " + first[:12]}
	if found := r.reconcile(true); !slices.Equal(found, want) {
		t.Fatalf("dry run found %q, want %q", found, want)
	}
	r.wantRuns(app, 0)
	r.reconcile(false)
	for _, got := range r.wantRuns(app, 2) {
		if got.Spec.Restricted || got.Cause.Author != "github:kim" || got.Cause.Repository != url {
			t.Errorf("run %+v", got)
		}
	}

	forge.set(2, first, "main", "merged closed", time.Now())
	if found := r.reconcile(false); len(found) != 1 || !strings.Contains(found[0], "pull request 2 was closed") {
		t.Errorf("found %q, want that 2 was closed", found)
	}
	forge.set(2, first, "main", "open", time.Now())
	if found := r.reconcile(false); len(found) != 1 || !strings.HasPrefix(found[0], want[1]) {
		t.Errorf("found %q, want that 2 was opened again", found)
	}
	at(3, first)
	forge.set(3, first, "stable", "open", time.Now().Add(time.Second))
	if found := r.reconcile(false); len(found) != 1 || !strings.Contains(found[0], "app pull:3 filtered: branch stable matches no pattern") {
		t.Errorf("found %q, want that 3 is refused", found)
	}
	forge.set(3, first, "main", "open", time.Now())
	if found := r.reconcile(false); len(found) != 1 || !strings.HasPrefix(found[0], "app pull:3 run: ") {
		t.Errorf("found %q, want that 3 goes to another branch now", found)
	}
	for range 2 {
		if found := r.reconcile(false); len(found) > 0 {
			t.Errorf("found %q again", found)
		}
	}
	r.wantRuns(app, 4)
}
