// Package gittest runs real git servers for tests: git itself, behind HTTP on loopback or behind an
// ssh server in the test process. Whatever a test does to a repository, git does.
package gittest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// A Repo is a bare repository and a work tree of it.
type Repo struct {
	Dir  string // of the bare repository
	Work string // the work tree; Commit commits all that is in it
	t    testing.TB
}

// NewRepo makes an empty repository, root/name, with the branch main.
func NewRepo(t testing.TB, root, name string) *Repo {
	t.Helper()
	r := &Repo{Dir: filepath.Join(root, name), Work: t.TempDir(), t: t}
	r.run("", nil, "init", "-q", "--bare", "-b", "main", r.Dir)
	for _, option := range []string{"http.receivepack=true", "uploadpack.allowFilter=true"} {
		key, value, _ := strings.Cut(option, "=")
		r.run(r.Dir, nil, "config", key, value)
	}
	r.run("", nil, "init", "-q", "-b", "main", r.Work)
	r.Git("remote", "add", "origin", r.Dir)
	return r
}

// Git runs git in the work tree and returns what it prints.
func (r *Repo) Git(args ...string) string {
	r.t.Helper()
	return r.run(r.Work, nil, args...)
}

// Bare runs git in the bare repository.
func (r *Repo) Bare(args ...string) string {
	r.t.Helper()
	return r.run(r.Dir, nil, args...)
}

// Input runs git in the bare repository with an input.
func (r *Repo) Input(stdin []byte, args ...string) string {
	r.t.Helper()
	return r.run(r.Dir, stdin, args...)
}

func (r *Repo) run(dir string, stdin []byte, args ...string) string {
	r.t.Helper()
	out, err := git(dir, stdin, args...)
	if err != nil {
		r.t.Fatalf("git %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

func git(dir string, stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env = dir, environment()
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, errors.Join(err, errors.New(stderr.String()))
	}
	return out, nil
}

// environment keeps the user's configuration out, and makes commits the same at each run.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_AUTHOR_DATE=1700000000 +0000",
		"GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com", "GIT_COMMITTER_DATE=1700000001 +0000",
		"GIT_ALLOW_PROTOCOL=file:http:https"}
}

// Write writes a file of the work tree. A mode of 0 means 0644.
func (r *Repo) Write(name, content string, mode os.FileMode) {
	r.t.Helper()
	p := filepath.Join(r.Work, name)
	if mode == 0 {
		mode = 0o644
	}
	err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), mode), os.Chmod(p, mode))
	if err != nil {
		r.t.Fatal(err)
	}
}

// Commit commits the work tree, pushes its branch and returns the commit.
func (r *Repo) Commit(message string) string {
	r.t.Helper()
	r.Git("add", "-A")
	r.Git("commit", "-q", "--allow-empty", "-m", message)
	r.Git("push", "-q", "-f", "origin", "HEAD")
	return r.Git("rev-parse", "HEAD")
}

// Sample fills the work tree with one of everything that a repository may hold, and commits it.
func (r *Repo) Sample() (commit string) {
	r.t.Helper()
	for name, content := range map[string]string{
		"Dockerfile": "FROM scratch\n", "a-b": "sorts before a/\n", "a/file": "x\n", "a/deep/er/file": "y\n", "a.txt": "z\n", "empty": "",
		"odd/ leading space": "1", "odd/new\nline": "2", "odd/quote\"'\\": "3", "odd/ünïcödé ☃": "4", "odd/-dash": "5", "odd/*?[": "6",
		"big.bin": strings.Repeat("0123456789abcdef", 150_000),
	} {
		r.Write(name, content, 0)
	}
	r.Write("run.sh", "#!/bin/sh\n", 0o755)
	for name, target := range map[string]string{"link": "a/file", "a/up": "../../../../etc/passwd", "abs": "/etc/passwd", "dirlink": "a"} {
		if err := os.Symlink(target, filepath.Join(r.Work, name)); err != nil {
			r.t.Fatal(err)
		}
	}
	return r.Commit("first\n\nbody")
}

// Noise returns about n bytes that cannot be compressed well: others for another seed, the same again for
// the same.
func Noise(seed, n int) string {
	var b strings.Builder
	for x := uint64(seed)*2654435761 + 12345; b.Len() < n; fmt.Fprintf(&b, "%x", x) {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return b.String()
}

// Archive returns the files of a commit as git archive has them: by path, with a letter for the type and
// execution bit ("f", "x", "l" or "d") before the content or target.
func (r *Repo) Archive(commit string) map[string]string {
	r.t.Helper()
	out, err := git(r.Dir, nil, "archive", "--format=tar", commit)
	if err != nil {
		r.t.Fatal(err)
	}
	files := map[string]string{}
	for tr := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			r.t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			r.t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		switch {
		case h.Typeflag == tar.TypeDir:
			files[name] = "d"
		case h.Typeflag == tar.TypeSymlink:
			files[name] = "l" + h.Linkname
		case h.Typeflag == tar.TypeReg && h.Mode&0o100 != 0:
			files[name] = "x" + string(content)
		case h.Typeflag == tar.TypeReg:
			files[name] = "f" + string(content)
		}
	}
}

// A Server serves the repositories below a directory over HTTP.
type Server struct {
	URL  string // http://127.0.0.1:port
	Host string // 127.0.0.1:port
	// Root is where the repositories are.
	Root string

	user, password string
	sent           atomic.Int64
	requests       atomic.Int64
}

// Serve starts a server of the directory. With a user, it asks for the password.
func Serve(t testing.TB, root, user, password string) *Server {
	t.Helper()
	s := &Server{Root: root, user: user, password: password}
	hs := httptest.NewServer(s)
	t.Cleanup(hs.Close)
	s.URL, s.Host = hs.URL, strings.TrimPrefix(hs.URL, "http://")
	return s
}

// Sent returns the bytes of bodies that the server has sent so far.
func (s *Server) Sent() int64 { return s.sent.Load() }

// Requests returns how many requests it had.
func (s *Server) Requests() int64 { return s.requests.Load() }

// ServeHTTP runs git http-backend. A refusal repeats the request's headers, as careless servers do.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	if user, password, _ := r.BasicAuth(); s.user != "" && (user != s.user || password != s.password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		w.WriteHeader(http.StatusUnauthorized)
		_ = r.Header.Write(w)
		return
	}
	backend := &cgi.Handler{Path: backendPath(), Root: "/", InheritEnv: []string{"PATH"}, Stderr: io.Discard,
		Env: append(environment(), "GIT_PROJECT_ROOT="+s.Root, "GIT_HTTP_EXPORT_ALL=1")}
	if r.ContentLength < 0 {
		http.Error(w, "length required", http.StatusLengthRequired)
		return
	}
	backend.ServeHTTP(&counting{ResponseWriter: w, n: &s.sent}, r)
}

func backendPath() string {
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return "git-http-backend"
	}
	return filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
}

// Redirect starts a server that answers every request with a redirect to the same path at target.
func Redirect(t testing.TB, target string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, target+r.URL.RequestURI(), http.StatusFound)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// Silent starts a server that accepts connections and never says anything.
func Silent(t testing.TB) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var conns []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				for _, c := range conns {
					c.Close()
				}
				return
			}
			conns = append(conns, c)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n.Add(int64(n))
	return n, err
}
