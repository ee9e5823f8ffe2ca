// Command gitserver serves a directory of bare git repositories over HTTP on loopback, for trying out
// what kiln does at a push. After each push it tells a generic hook of kiln.
//
//	go run ./examples/gitserver -dir DIR [-listen 127.0.0.1:7071] [-hook URL -secret-file FILE]
//
// Anybody who reaches it may push: it is no server for real repositories. It needs git.
package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	dir := flag.String("dir", "", "directory of bare repositories")
	listen := flag.String("listen", "127.0.0.1:7071", "address to listen on")
	hook := flag.String("hook", "", "address of a generic hook of kiln")
	secretFile := flag.String("secret-file", "", "file with the hook's secret")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *dir, *listen, *hook, *secretFile); err != nil {
		fmt.Fprintln(os.Stderr, "gitserver:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, dir, listen, hook, secretFile string) error {
	root, err := filepath.Abs(dir)
	if err != nil || dir == "" {
		return errors.Join(errors.New("-dir: name a directory of bare repositories"), err)
	}
	s := &server{root: root, url: "http://" + listen, hook: hook}
	if hook != "" {
		secret, err := os.ReadFile(secretFile)
		if err != nil {
			return fmt.Errorf("-secret-file: %w", err)
		}
		s.secret = bytes.TrimSpace(secret)
	}
	where, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return fmt.Errorf("git is needed: %w", err)
	}
	s.git = &cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(where)), "git-http-backend"),
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1",
			"GIT_CONFIG_KEY_0=http.receivepack", "GIT_CONFIG_VALUE_0=true"}}
	server := &http.Server{Addr: listen, Handler: s, ReadHeaderTimeout: 10 * time.Second}
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	fmt.Printf("git repositories of %s are at %s/NAME.git\n", root, s.url)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// A server serves repositories by git's own HTTP program.
type server struct {
	root, url, hook string
	secret          []byte
	git             http.Handler
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	repository, push := strings.CutSuffix(r.URL.Path, "/git-receive-pack")
	if !push || s.hook == "" {
		s.git.ServeHTTP(w, r)
		return
	}
	before := s.refs(repository)
	s.git.ServeHTTP(w, r)
	for ref, commit := range s.refs(repository) {
		if before[ref] == commit {
			continue
		}
		if err := s.tell(r.Context(), repository, ref, before[ref], commit); err != nil {
			fmt.Fprintf(os.Stderr, "push of %s to %s not told: %v\n", ref, repository, err)
		}
	}
}

// refs returns what the refs of a repository point at.
func (s *server) refs(repository string) map[string]string {
	refs := map[string]string{}
	dir := filepath.Join(s.root, filepath.Clean("/"+repository))
	out, err := exec.Command("git", "-C", dir, "for-each-ref", "--format=%(refname) %(objectname)").Output()
	if err != nil {
		return refs
	}
	for line := range strings.Lines(string(out)) {
		if ref, commit, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			refs[ref] = commit
		}
	}
	return refs
}

// tell delivers a push to the hook, signed.
func (s *server) tell(ctx context.Context, repository, ref, before, after string) error {
	body, err := json.Marshal(map[string]string{"type": "git.pushed", "repository": s.url + repository, "ref": ref, "before": before, "after": after})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.hook, bytes.NewReader(body))
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, s.secret)
	mac.Write(body)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	req.Header.Set("X-Kiln-Delivery", ref+"@"+after+time.Now().UTC().Format("@20060102T150405.000000000"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	fmt.Printf("push of %s to %s told: %s\n", ref, repository, resp.Status)
	return nil
}
