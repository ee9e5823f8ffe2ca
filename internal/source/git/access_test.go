package git

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"kiln/internal/gittest"
)

// A gate stands before a git server and holds back transfers until it is opened.
type gate struct {
	*httptest.Server
	arrived chan struct{} // one for each transfer
	open    chan struct{}
}

func newGate(t *testing.T, behind http.Handler) *gate {
	g := &gate{arrived: make(chan struct{}, 16), open: make(chan struct{})}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			g.arrived <- struct{}{}
			<-g.open
		}
		behind.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

func TestPrefetchIsJoined(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	first := repo.Sample()
	srv := gittest.Serve(t, root, "ci", "pw")
	g := newGate(t, srv)
	m := open(t, loopback(t))
	url, cred := g.URL+"/r.git", Credential{Username: "ci", Password: "pw"}
	if _, err := m.LsRemote(t.Context(), url, cred); err != nil {
		t.Fatal(err)
	}
	before := srv.Requests()
	var all sync.WaitGroup
	all.Go(func() {
		if err := m.Prefetch(t.Context(), Ref{URL: url, Commit: first}, cred); err != nil {
			t.Error(err)
		}
	})
	<-g.arrived
	for range 3 {
		all.Go(func() {
			s, err := m.Open(t.Context(), Ref{URL: url, Ref: "main", Commit: first}, cred)
			if err != nil || s.Commit.ID != first {
				t.Errorf("Open = %v", err)
			}
		})
	}
	close(g.open)
	all.Wait()
	if n := srv.Requests() - before; n != 1 {
		t.Errorf("%d requests for one commit, want its transfer alone", n)
	}
	repo.Write("a.txt", "changed", 0)
	second := repo.Commit("second")
	if s := mustOpen(t, m, Ref{URL: url, Ref: "main", Commit: second}, cred); files(t, s)["a.txt"] != "fchanged" {
		t.Error("second commit not read")
	}
	if n := srv.Requests() - before; n != 2 {
		t.Errorf("%d requests for two commits, want 2", n)
	}
}

// What the server has accepted of one credential is no answer for another, also while a fetch is under way.
func TestPrefetchOpensNothingToOthers(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	commit := repo.Sample()
	srv := gittest.Serve(t, root, "ci", "pw")
	g := newGate(t, srv)
	m := open(t, loopback(t))
	url, good := g.URL+"/r.git", Credential{Username: "ci", Password: "pw"}
	if _, err := m.LsRemote(t.Context(), url, good); err != nil {
		t.Fatal(err)
	}
	before := srv.Requests()
	for _, cred := range []Credential{{}, {Username: "ci", Password: "other"}} {
		if err := m.Prefetch(t.Context(), Ref{URL: url, Commit: commit}, cred); err != nil || srv.Requests() > before {
			t.Errorf("Prefetch = %v after %d requests, want none", err, srv.Requests()-before)
		}
	}
	fetched := make(chan error, 1)
	go func() { fetched <- m.Prefetch(t.Context(), Ref{URL: url, Commit: commit}, good) }()
	<-g.arrived
	for _, cred := range []Credential{{}, {Username: "ci", Password: "other"}} {
		if _, err := m.Open(t.Context(), Ref{URL: url, Commit: commit}, cred); !errors.Is(err, ErrDenied) {
			t.Errorf("Open with another credential during the fetch: %v, want %v", err, ErrDenied)
		}
	}
	close(g.open)
	if err := <-fetched; err != nil {
		t.Error(err)
	}
}

func TestFailedPrefetchChangesNothing(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	commit := repo.Sample()
	srv := gittest.Serve(t, root, "", "")
	var down, denied sync.Map
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := down.Load(r.Method); ok {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if _, ok := denied.Load(r.Method); ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		srv.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	m := open(t, loopback(t))
	url := front.URL + "/r.git"
	list := func() {
		t.Helper()
		if _, err := m.LsRemote(t.Context(), url, Credential{}); err != nil {
			t.Fatal(err)
		}
	}
	list()
	missing := strings.Repeat("1", 40)
	if err := m.Prefetch(t.Context(), Ref{URL: url, Commit: missing}, Credential{}); !errors.Is(err, ErrRefNotFound) {
		t.Errorf("a commit that is not there: %v, want %v", err, ErrRefNotFound)
	}
	down.Store(http.MethodPost, true)
	list()
	if err := m.Prefetch(t.Context(), Ref{URL: url, Commit: commit}, Credential{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a server that fails: %v, want %v", err, ErrUnavailable)
	}
	down.Clear()
	if s := mustOpen(t, m, Ref{URL: url, Commit: commit}, Credential{}); s.Commit.ID != commit {
		t.Errorf("commit = %s", s.Commit.ID)
	}
	repo.Write("a.txt", "changed", 0)
	second := repo.Commit("second")
	list()
	denied.Store(http.MethodPost, true) // the right to read was withdrawn
	denied.Store(http.MethodGet, true)
	if _, err := m.Open(t.Context(), Ref{URL: url, Commit: second}, Credential{}); !errors.Is(err, ErrDenied) {
		t.Errorf("a credential that is not accepted any more: %v, want %v", err, ErrDenied)
	}
	if _, err := m.Open(t.Context(), Ref{URL: url, Commit: commit}, Credential{}); !errors.Is(err, ErrDenied) {
		t.Errorf("a commit that is here, after that: %v, want %v", err, ErrDenied)
	}
}
