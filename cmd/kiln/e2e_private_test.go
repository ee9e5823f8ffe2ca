package main

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A private registry answers who signs in as one of its users, with the right password.
type private struct {
	http.Handler
	host string

	mu    sync.Mutex
	users map[string]string
	seen  map[string]bool // users that have signed in
}

func startPrivate(t *testing.T, users map[string]string) *private {
	p := &private{Handler: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), users: users, seen: map[string]bool{}}
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	p.host = strings.Replace(srv.URL, "http://127.0.0.1", "localhost", 1)
	return p
}

func (p *private) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	p.mu.Lock()
	known := ok && p.users[user] == password
	if known {
		p.seen[user] = true
	}
	p.mu.Unlock()
	if !known {
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"private says no"}]}`))
		return
	}
	p.Handler.ServeHTTP(w, r)
}

// used reports whether a user has signed in since it was asked last.
func (p *private) used(user string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.seen[user]
	p.seen[user] = false
	return was
}

// TestPrivateRegistries has runs use registries that ask for a login: of the server, of the task, and a wrong one.
func TestPrivateRegistries(t *testing.T) {
	reg := startPrivate(t, map[string]string{"shared": "Pw-of-the-server", "bot": "Pw-of-the-task"})
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("Pw-of-the-server\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, "--allow-source", "localhost", "--registry-login", reg.host+"=shared:file:"+file)
	t.Run("of the server", func(t *testing.T) {
		s.must("build", "-t", reg.host+"/team/box:1", files(t, map[string]string{"Dockerfile": base}))
		ref, err := name.ParseReference(reg.host + "/team/box:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Image(ref, remote.WithAuth(&authn.Basic{Username: "bot", Password: "Pw-of-the-task"})); err != nil || !reg.used("shared") {
			t.Errorf("what kiln build has pushed: %v", err)
		}
		reg.used("bot")
		// What the server was told applies from the next run on.
		s.must("run", "--cmd", reg.host+"/team/box:1 true", "/dev/null")
	})
	s.must("build", "-t", "box:1", files(t, map[string]string{"Dockerfile": base}))
	file = filepath.Join(t.TempDir(), "task.yaml")
	write := func(task string) string {
		text := "version: v1.1.0\nsteps:\n" + strings.ReplaceAll(task, "REG", reg.host)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	const whole = `
  - id: box
    cmd: REG/team/box:1 sh -c 'echo of the private registry; printf "FROM REG/team/box:1\nRUN echo made >/made\n" >Dockerfile'
    pull: true
  - build: -t REG/team/app:$ID --cache-to type=registry,mode=max,ref=REG/team/cache:1 --cache-from REG/team/cache:1 .
  - push: [REG/team/app:$ID]
`
	s.must("task", "create", "web", "-c", "/dev/null", "-f", write(whole))
	t.Run("of the task", func(t *testing.T) {
		t.Setenv("BOT_PW", "Pw-of-the-task")
		s.must("secret", "set", "bot-pw", "--from-env", "BOT_PW")
		s.must("task", "credential", "add", "web", "--login-server", reg.host, "-u", "bot", "--password-secret", "bot-pw")
		reg.used("shared")
		res := s.kiln("task", "run", "web")
		if res.code != 0 || !strings.Contains(res.err, "box | of the private registry") || !strings.Contains(res.out, reg.host+"/team/app:") {
			t.Fatalf("exit code %d, printed %q\n%s", res.code, res.out, res.err)
		}
		if !reg.used("bot") || reg.used("shared") {
			t.Error("the task's own credential was not used, or not alone")
		}
		ref, err := name.ParseReference(reg.host + "/team/cache:1")
		if err == nil {
			_, err = remote.Get(ref, remote.WithAuth(&authn.Basic{Username: "bot", Password: "Pw-of-the-task"}))
		}
		if err != nil {
			t.Errorf("the cache in the private registry: %v", err)
		}
	})
	t.Run("wrong", func(t *testing.T) {
		t.Setenv("BOT_PW", "Pw-that-is-wrong")
		s.must("secret", "set", "bot-pw", "--from-env", "BOT_PW")
		for _, c := range []struct{ name, task, registry, answer string }{
			{"cmd", whole, reg.host, "401"},
			{"FROM", "  - cmd: $Registry/box:1 sh -c 'echo FROM REG/team/box:1 >Dockerfile'\n  - build: .\n", reg.host, "401"},
			{"push", "  - cmd: $Registry/box:1 sh -c 'printf \"FROM scratch\\nCOPY Dockerfile /\\n\" >Dockerfile'\n  - build: -t REG/team/app:2 .\n  - push: [REG/team/app:2]\n",
				"push " + reg.host + "/team/app:2: ", "401 Unauthorized"},
		} {
			s.must("task", "update", "web", "-f", write(c.task))
			if res := s.kiln("task", "run", "web"); res.code == 0 || !strings.Contains(res.err, c.registry) || !strings.Contains(res.err, c.answer) {
				t.Errorf("%s: exit code %d\n%s", c.name, res.code, res.err)
			}
		}
	})
	for _, password := range []string{"Pw-of-the-server", "Pw-of-the-task", "Pw-that-is-wrong"} {
		s.nowhere(password)
	}
}
