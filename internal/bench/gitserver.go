package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"kiln/internal/apiclient"
)

// A repo is a bare repository that git's own program serves over HTTP, and the work tree that is pushed to
// it, if there is one.
type repo struct {
	work, bare string
	url        string
}

// A gitServer serves the bare repositories below a directory.
type gitServer struct {
	*httptest.Server
	root string
}

func (l *lab) startGit(ctx context.Context) (*gitServer, error) {
	root, err := l.mkdir("git")
	if err != nil {
		return nil, err
	}
	where, err := git(ctx, root, "--exec-path")
	if err != nil {
		return nil, err
	}
	return &gitServer{root: root, Server: httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(where, "git-http-backend"), Env: append(gitEnvironment(), "GIT_PROJECT_ROOT="+root, "GIT_HTTP_EXPORT_ALL=1"),
		Stderr: io.Discard,
	})}, nil
}

// newRepo makes a repository of the files in a directory, which becomes its work tree.
func (s *gitServer) newRepo(ctx context.Context, work string) (*repo, error) {
	r := s.bareRepo()
	r.work = work
	for _, step := range []struct {
		dir  string
		args []string
	}{
		{s.root, []string{"init", "-q", "--bare", "-b", "main", r.bare}},
		{r.bare, []string{"config", "uploadpack.allowFilter", "true"}},
		{work, []string{"init", "-q", "-b", "main", work}},
		{work, []string{"remote", "add", "origin", r.bare}},
	} {
		if _, err := git(ctx, step.dir, step.args...); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// A pushed is a push that was made.
type pushed struct {
	before, after string
	files         []string // that it changed
}

// push commits all files and pushes the commit.
func (r *repo) push(ctx context.Context) (pushed, error) {
	var p pushed
	var err error
	if p.before, err = git(ctx, r.work, "rev-parse", "-q", "--verify", "HEAD"); err != nil {
		p.before = strings.Repeat("0", 40) // no commit yet
	}
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", "change"}, {"push", "-q", "origin", "HEAD"}} {
		if _, err := git(ctx, r.work, args...); err != nil {
			return p, err
		}
	}
	p.files = []string{"app.txt"}
	p.after, err = git(ctx, r.work, "rev-parse", "HEAD")
	return p, err
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env = dir, gitEnvironment()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// gitEnvironment keeps the user's configuration out.
func gitEnvironment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=bench", "GIT_AUTHOR_EMAIL=bench@example.com", "GIT_COMMITTER_NAME=bench", "GIT_COMMITTER_EMAIL=bench@example.com"}
}

// delivery is the signed request by which a generic hook is told of a push to main.
func (r *repo) delivery(ctx context.Context, hook apiclient.Hook, p pushed) (*http.Request, error) {
	body, err := json.Marshal(map[string]any{"type": "git.pushed", "repository": r.url, "ref": "refs/heads/main",
		"before": p.before, "after": p.after, "files": p.files, "message": "change"})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, hook.URL, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, []byte(hook.Secret))
	mac.Write(body)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Kiln-Delivery", p.after)
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	return req, nil
}
