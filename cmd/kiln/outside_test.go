package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A link to a run, as it is in the status of a commit, leads somewhere, and tells a stranger nothing.
func TestLinkToARun(t *testing.T) {
	t.Parallel()
	if (&serveConfig{}).runURL() != nil {
		t.Error("there is a link though nobody has said how to reach the server")
	}
	cfg := serveConfig{publicURL: "https://kiln.example.com/"}
	if got := cfg.runURL()("r1ibwwpon0uk"); got != "https://kiln.example.com/runs/r1ibwwpon0uk" {
		t.Errorf("link %q", got)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+runPath+"{run}", new(node).showRun)
	for path, want := range map[string]struct {
		status int
		text   string
	}{"/runs/r1ibwwpon0uk": {http.StatusOK, "kiln show r1ibwwpon0uk"}, "/runs/<b>x": {http.StatusNotFound, "not found"}} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want.status || !strings.Contains(w.Body.String(), want.text) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}
