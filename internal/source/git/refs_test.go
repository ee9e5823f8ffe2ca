package git

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"kiln/internal/gittest"
)

func TestLsRemoteIsOneBoundedRequest(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	commit := repo.Commit("x")
	var updates strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&updates, "create refs/heads/b%d %s\n", i, commit)
	}
	repo.Input([]byte(updates.String()), "update-ref", "--stdin")
	srv := gittest.Serve(t, root, "", "")
	url := srv.URL + "/r.git"
	all, err := open(t, loopback(t)).LsRemote(t.Context(), url, Credential{})
	if err != nil || len(all) != 5002 || all["refs/heads/b4999"] != commit || all["HEAD"] != commit {
		t.Errorf("LsRemote: %d refs, %v", len(all), err)
	}
	if n := srv.Requests(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	cfg := loopback(t)
	cfg.Limits.Refs = 100_000
	m := open(t, cfg)
	if _, err := m.LsRemote(t.Context(), url, Credential{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("LsRemote beyond the limit: %v", err)
	}
	if _, err := m.Resolve(t.Context(), url, "main", Credential{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Resolve beyond the limit: %v", err)
	}
}

// Who decides about an event reads files and the message of its commit; the build then finds it here.
func TestDecidingReadsACommit(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Write("sub/acr-task.yaml", "version: v1.1.0\n", 0)
	repo.Write("sub/Dockerfile", "FROM scratch\n", 0)
	repo.Commit("first")
	repo.Write("sub/file", "x", 0)
	commit := repo.Commit("Fix it [skip ci]\n\nBecause: \u2603\n\nSigned-off-by: Ada")
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	url := srv.URL + "/r.git"
	head, err := m.Resolve(t.Context(), url, "main", Credential{})
	if err != nil || head != (Head{Ref: "refs/heads/main", Commit: commit}) {
		t.Fatalf("Resolve = %+v, %v", head, err)
	}
	s := mustOpen(t, m, Ref{URL: url, Ref: head.Ref, Commit: head.Commit, Subdir: "sub"}, Credential{})
	if c := s.Commit; c.Message != "Fix it [skip ci]\n\nBecause: \u2603\n\nSigned-off-by: Ada\n" || c.Author != "Ada" || c.Email != "ada@example.com" || s.Ref != head.Ref {
		t.Errorf("commit = %+v of %q", c, s.Ref)
	}
	b, err := s.ReadFile(t.Context(), "acr-task.yaml", 1<<20)
	if err != nil || string(b) != "version: v1.1.0\n" {
		t.Errorf("ReadFile = %q, %v", b, err)
	}
	before := srv.Requests()
	if s := mustOpen(t, m, Ref{URL: url, Commit: commit}, Credential{}); s.Commit.ID != commit {
		t.Errorf("commit = %s", s.Commit.ID)
	}
	if n := srv.Requests() - before; n > 0 {
		t.Errorf("%d requests for a commit that is here", n)
	}
}

// A commit that no context may be made of is no reason to forget about the next.
func TestChangedFilesOfABadCommit(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Write("x", "x", 0)
	good := repo.Commit("x")
	raw := append([]byte("100644 ..\x00"), hexBytes(repo.Bare("rev-parse", good+":x"))...)
	tree := repo.Input(raw, "hash-object", "-t", "tree", "-w", "--stdin", "--literally")
	bad := repo.Bare("commit-tree", tree, "-m", "evil")
	repo.Bare("update-ref", "refs/heads/evil", bad)
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	if files, known, err := m.ChangedFiles(t.Context(), srv.URL+"/r.git", bad, good, Credential{}); known || err != nil {
		t.Errorf("ChangedFiles from a bad commit = %q, %v, %v; want not known", files, known, err)
	}
	if _, _, err := m.ChangedFiles(t.Context(), srv.URL+"/r.git", good, bad, Credential{}); !errors.Is(err, ErrBadTree) {
		t.Errorf("ChangedFiles to a bad commit: %v, want %v", err, ErrBadTree)
	}
}
