package api_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/internal/api"
	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/secret"
	"kiln/internal/store"
	"kiln/webhook"
)

// A hookSite is a server of hooks: the API that keeps them and the handler that serves them.
type hookSite struct {
	*apiclient.Client
	bus *bus.Bus
	log *lockedBuffer
}

// A lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startHooks(t *testing.T) *hookSite {
	t.Helper()
	s, dir := &hookSite{bus: natstest.Start(t), log: &lockedBuffer{}}, t.TempDir()
	log := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	keys, err := auth.Load(dir)
	check(t, err)
	admin, err := os.ReadFile(filepath.Join(dir, auth.AdminTokenFile))
	check(t, err)
	identity, err := secret.NewIdentity()
	check(t, err)
	st, err := store.Open(t.Context(), s.bus.JetStream(), time.Minute)
	check(t, err)
	book := &webhook.Book{Store: &st.Hooks, Identity: identity, Log: log}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- book.Run(ctx) }()
	creator, err := s.bus.Creator()
	check(t, err)
	mux := http.NewServeMux()
	mux.Handle(webhook.Prefix, &webhook.Handler{Hooks: book.Hook, Used: book.Used, Publish: webhook.Publisher(creator), Log: log})
	mux.Handle("/api/", (&api.Server{Bus: s.bus, Store: st, Keys: keys, Recipient: identity.Recipient(), Log: log,
		Contexts: http.NotFoundHandler(),
		Hooks: api.HookConfig{Providers: webhook.Providers(), Secret: func(_ context.Context, name string) (string, error) {
			if name != "forge" {
				return "", fmt.Errorf("secret %q: %w", name, secret.ErrUnknown)
			}
			return forgeToken, nil
		}},
	}).Handler())
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		srv.Close()
		cancel()
		check(t, <-done)
		check(t, creator.Close())
	})
	s.Client = &apiclient.Client{BaseURL: srv.URL, Token: strings.TrimSpace(string(admin))}
	return s
}

// push delivers a push of a branch as GitHub does, and returns status and answer.
func (s *hookSite) push(t *testing.T, h apiclient.Hook, key, id string) (int, string) {
	t.Helper()
	return s.deliver(t, h, key, "push", id)
}

// deliver delivers an event of that kind, with the payload of a push.
func (s *hookSite) deliver(t *testing.T, h apiclient.Hook, key, kind, id string) (int, string) {
	t.Helper()
	body := []byte(`{"ref":"refs/heads/main","before":"1111111111111111111111111111111111111111",` +
		`"after":"2222222222222222222222222222222222222222","repository":{"id":7,"full_name":"team/app",` +
		`"html_url":"https://git.example.com/team/app","clone_url":"https://git.example.com/team/app.git"},"commits":[]}`)
	m := hmac.New(sha256.New, []byte(key))
	m.Write(body)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.URL, bytes.NewReader(body))
	check(t, err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-GitHub-Event", kind)
	r.Header.Set("X-GitHub-Delivery", id)
	r.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(m.Sum(nil)))
	resp, err := http.DefaultClient.Do(r)
	check(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(t, err)
	return resp.StatusCode, string(b)
}

// until repeats the delivery of a push until it is answered as wanted: a change of a hook is in effect
// at once, but not before the API has answered.
func (s *hookSite) until(t *testing.T, h apiclient.Hook, key, id string, status int, part string) {
	t.Helper()
	s.untilAnswered(t, h, key, "push", id, status, part)
}

// untilAnswered is until for a delivery of any kind. That of a ping stores nothing, however often it is made.
func (s *hookSite) untilAnswered(t *testing.T, h apiclient.Hook, key, kind, id string, status int, part string) {
	t.Helper()
	var got int
	var answer string
	for range 200 {
		if got, answer = s.deliver(t, h, key, kind, id); got == status && strings.Contains(answer, part) {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Fatalf("delivery answered %d %s, want %d with %q", got, answer, status, part)
}

// pushes counts the stored pushes.
func (s *hookSite) pushes(t *testing.T) int {
	t.Helper()
	n := 0
	check(t, s.bus.Tail(t.Context(), bus.StreamEvents, event.GitFilter, 0, false, func(uint64, []byte) bool { n++; return true }))
	return n
}

func TestHookFromCreationToDeletion(t *testing.T) {
	t.Parallel()
	s, ctx := startHooks(t), t.Context()
	h, err := s.CreateHook(ctx, apiclient.CreateHook{Provider: "github", Name: "app"})
	check(t, err)
	if len(h.ID) < 26 || len(h.Secret) < 26 || !strings.HasPrefix(h.URL, s.BaseURL+"/hooks/github/") {
		t.Fatalf("created %+v", h)
	}
	s.until(t, h, h.Secret, "1", http.StatusAccepted, "events")
	if got, _ := s.push(t, h, h.Secret, "1"); got != http.StatusAccepted || s.pushes(t) != 1 {
		t.Errorf("a repeated delivery was answered %d and %d events are stored, want 202 and 1", got, s.pushes(t))
	}
	if got, _ := s.push(t, h, "wrong", "2"); got != http.StatusNotFound {
		t.Errorf("a wrong signature was answered %d, want 404", got)
	}
	shown, err := s.Hook(ctx, "APP")
	check(t, err)
	if shown.Secret != "" || shown.ID != h.ID {
		t.Errorf("shown: %+v", shown)
	}
	if _, err := s.CreateHook(ctx, apiclient.CreateHook{Provider: "gitlab", Name: "App"}); !isStatus(err, http.StatusConflict) {
		t.Errorf("second hook of that name: %v, want a conflict", err)
	}
	if _, err := s.EnableHook(ctx, "app", false); err != nil {
		t.Fatal(err)
	}
	s.untilAnswered(t, h, h.Secret, "ping", "3", http.StatusOK, "disabled")
	if _, err := s.EnableHook(ctx, "app", true); err != nil {
		t.Fatal(err)
	}
	s.until(t, h, h.Secret, "4", http.StatusAccepted, "events")

	_, err = s.DeleteHook(ctx, "app", false)
	check(t, err)
	s.untilAnswered(t, h, h.Secret, "ping", "5", http.StatusNotFound, "")
	if n := s.pushes(t); n != 2 {
		t.Errorf("%d pushes are stored, want 2", n)
	}
	if strings.Contains(s.log.String(), h.Secret) {
		t.Error("the log holds the hook's secret")
	}
}

func TestRotationAcceptsBothSecretsUntilItIsFinished(t *testing.T) {
	t.Parallel()
	s, ctx := startHooks(t), t.Context()
	h, err := s.CreateHook(ctx, apiclient.CreateHook{Provider: "github", Name: "app"})
	check(t, err)
	next, err := s.RotateHook(ctx, "app", apiclient.RotateHook{})
	check(t, err)
	if next.Secret == "" || next.Secret == h.Secret || !next.Rotating {
		t.Fatalf("rotated: %+v", next)
	}
	s.until(t, h, next.Secret, "1", http.StatusAccepted, "")
	s.until(t, h, h.Secret, "2", http.StatusAccepted, "")
	if _, err := s.RotateHook(ctx, "app", apiclient.RotateHook{}); !isStatus(err, http.StatusConflict) {
		t.Errorf("rotation before the last is finished: %v, want a conflict", err)
	}
	_, err = s.RotateHook(ctx, "app", apiclient.RotateHook{Finish: true})
	check(t, err)
	s.until(t, h, h.Secret, "3", http.StatusNotFound, "")
	s.until(t, h, next.Secret, "4", http.StatusAccepted, "")
}

func isStatus(err error, status int) bool {
	e, ok := err.(*apiclient.Error)
	return ok && e.Status == status
}

const forgeToken = "a token of the forge"

// A fakeForge answers as the documentation of Gitea's API says, for one repository.
type fakeForge struct {
	*httptest.Server
	mu    sync.Mutex
	hooks map[string]map[string]any
	next  int
	fail  int
}

func startForge(t *testing.T) *fakeForge {
	f := &fakeForge{hooks: map[string]map[string]any{}}
	const hooks = "/api/v1/repos/team/app/hooks"
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+hooks, func(w http.ResponseWriter, r *http.Request) {
		var h map[string]any
		if json.NewDecoder(r.Body).Decode(&h) != nil || f.fail != 0 {
			w.WriteHeader(f.fail)
			return
		}
		f.next++
		h["id"] = f.next
		f.hooks[fmt.Sprint(f.next)] = h
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(h)
	})
	mux.HandleFunc("GET "+hooks+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		h, ok := f.hooks[r.PathValue("id")]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(h)
	})
	mux.HandleFunc("DELETE "+hooks+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		delete(f.hooks, r.PathValue("id"))
		w.WriteHeader(http.StatusNoContent)
	})
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.Header.Get("Authorization") != "token "+forgeToken {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// secrets returns the secrets of the hooks at the forge.
func (f *fakeForge) secrets() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.hooks {
		all = append(all, fmt.Sprint(h["config"].(map[string]any)["secret"]))
	}
	return all
}

func TestHookIsRegisteredCheckedRotatedAndRemovedAtItsForge(t *testing.T) {
	t.Parallel()
	s, f, ctx := startHooks(t), startForge(t), t.Context()
	create := apiclient.CreateHook{Provider: "forgejo", Name: "app", Repository: f.URL + "/team/app.git", TokenSecret: "forge"}
	h, err := s.CreateHook(ctx, create)
	check(t, err)
	if got := f.secrets(); !h.Registered || len(got) != 1 || got[0] != h.Secret {
		t.Fatalf("registered %t, the forge has %d hooks", h.Registered, len(got))
	}
	c, err := s.CheckHook(ctx, "app")
	check(t, err)
	if !c.OK {
		t.Errorf("check: %s", c.Problem)
	}
	next, err := s.RotateHook(ctx, "app", apiclient.RotateHook{})
	check(t, err)
	if got := f.secrets(); len(got) != 1 || got[0] != next.Secret {
		t.Errorf("after the rotation the forge has %d hooks, and not the new secret alone", len(got))
	}
	f.mu.Lock()
	for _, h := range f.hooks {
		h["active"] = false
	}
	f.mu.Unlock()
	if c, err := s.CheckHook(ctx, "app"); err != nil || c.OK || !strings.Contains(c.Problem, "switched off") {
		t.Errorf("check of a hook that is switched off: %+v, %v", c, err)
	}
	_, err = s.DeleteHook(ctx, "app", false)
	check(t, err)
	if got := f.secrets(); len(got) != 0 {
		t.Errorf("the forge still has %d hooks", len(got))
	}
	f.mu.Lock()
	f.fail = http.StatusForbidden
	f.mu.Unlock()
	if _, err := s.CreateHook(ctx, create); !isStatus(err, http.StatusBadGateway) || strings.Contains(err.Error(), forgeToken) {
		t.Errorf("the forge refuses: %v, want 502 without the token", err)
	}
	if all, err := s.Hooks(ctx); err != nil || len(all) != 0 {
		t.Errorf("%d hooks, %v: one that could not be registered is left", len(all), err)
	}
	if log := s.log.String(); strings.Contains(log, forgeToken) || strings.Contains(log, h.Secret) {
		t.Error("the log holds a secret")
	}
}

func TestFullStoreIsAnsweredSoThatTheSenderComesAgain(t *testing.T) {
	t.Parallel()
	s, ctx := startHooks(t), t.Context()
	h, err := s.CreateHook(ctx, apiclient.CreateHook{Provider: "github", Name: "app"})
	check(t, err)
	s.until(t, h, h.Secret, "1", http.StatusAccepted, "")
	limit := func(bytes int64) {
		st, err := s.bus.JetStream().Stream(ctx, bus.StreamEvents)
		check(t, err)
		cfg := st.CachedInfo().Config
		cfg.MaxBytes = bytes
		_, err = s.bus.JetStream().UpdateStream(ctx, cfg)
		check(t, err)
	}
	limit(1200)
	for i := range 3 {
		if got, answer := s.push(t, h, h.Secret, fmt.Sprint("x", i)); got != http.StatusServiceUnavailable && got != http.StatusAccepted {
			t.Errorf("delivery to a full store answered %d %s", got, answer)
		}
	}
	if got, answer := s.push(t, h, h.Secret, "2"); got != http.StatusServiceUnavailable || !strings.Contains(answer, "full") {
		t.Errorf("delivery to a full store answered %d %s, want 503", got, answer)
	}
	limit(1 << 30)
	before := s.pushes(t)
	if got, answer := s.push(t, h, h.Secret, "2"); got != http.StatusAccepted || s.pushes(t) != before+1 {
		t.Errorf("repeated delivery answered %d %s, %d events after %d", got, answer, s.pushes(t), before)
	}
}

func TestHookWithACredentialInItsAddressOrAnUnknownSecretIsRefused(t *testing.T) {
	t.Parallel()
	s, f, ctx := startHooks(t), startForge(t), t.Context()
	for url, want := range map[string]string{
		"https://ghp_0123456789@github.com/team/app.git": "user or password",
		"https://ada:hunter22@github.com/team/app.git":   "user or password",
	} {
		_, err := s.CreateHook(ctx, apiclient.CreateHook{Provider: "github", Name: "app", Repository: url})
		if !isStatus(err, http.StatusUnprocessableEntity) || !strings.Contains(err.Error(), want) {
			t.Errorf("hook for %s: %v, want a refusal of its %s", url, err, want)
		}
	}
	_, err := s.CreateHook(ctx, apiclient.CreateHook{Provider: "forgejo", Name: "app", Repository: f.URL + "/team/app.git", TokenSecret: "missing"})
	if !isStatus(err, http.StatusUnprocessableEntity) || !strings.Contains(err.Error(), `no secret "missing"`) {
		t.Errorf("hook with a secret that is not set: %v, want to be told so", err)
	}
	if list, err := s.Hooks(ctx); err != nil || len(list) != 0 {
		t.Errorf("hooks %+v, %v, want none", list, err)
	}
	if log := s.log.String(); strings.Contains(log, "ghp_0123456789") || strings.Contains(log, "hunter22") {
		t.Error("the log holds a credential")
	}
}
