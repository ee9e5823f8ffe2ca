package webhook_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/webhook"
)

func githubHeader(kind, id string) http.Header {
	h := http.Header{"Content-Type": {"application/json"}}
	h.Set("X-GitHub-Event", kind)
	h.Set("X-GitHub-Delivery", id)
	return h
}

func githubPush(t testing.TB, before, after string) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"ref": "refs/heads/main", "before": strings.Repeat(before, 40), "after": strings.Repeat(after, 40),
		"repository": map[string]any{"id": 1, "full_name": "o/r", "html_url": "https://github.com/o/r", "clone_url": "https://github.com/o/r.git"}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStrangersLearnNothing(t *testing.T) {
	t.Parallel()
	enabled, disabled := hookOf("github", testSecret, ""), hookOf("github", testSecret, "")
	disabled.ID, disabled.Enabled = "h2", false
	s := newServer(t, enabled, disabled)
	h := githubHeader("push", "1")
	h.Set("X-Hub-Signature-256", "sha256="+strings.Repeat("0", 64))
	want := s.send(t, http.MethodPost, "/hooks/github/h1", h, sample)
	if want.status != refused {
		t.Fatalf("status %d, want %d", want.status, refused)
	}
	for _, path := range []string{"/hooks/github/h2", "/hooks/github/none", "/hooks/github/", "/hooks/github", "/hooks/", "/hooks/gitlab/h1",
		"/hooks/nobody/h1", "/hooks/github/h1/more", "/hooks/github/" + strings.Repeat("x", 4000), "/hooks/github/%00%ff"} {
		got := s.send(t, http.MethodPost, path, h, sample)
		got.header.Del("Date")
		want.header.Del("Date")
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(answer{})); diff != "" {
			t.Errorf("%.60s (-known +this):\n%s", path, diff)
		}
	}
	if status, text := s.post(t, "github", "h2", githubHeader("push", "1"), githubPush(t, "a", "b")); status != http.StatusOK || !strings.Contains(text, "disabled") {
		t.Errorf("disabled hook, authenticated: %d %s", status, text)
	}
	if n := len(s.published()); n != 0 {
		t.Errorf("%d events published, want none", n)
	}
}

// TestPlaceholderSecretOpensNothing makes sure that the secret which stands for none opens nothing.
func TestPlaceholderSecretOpensNothing(t *testing.T) {
	t.Parallel()
	s := newServer(t, hookOf("github", "", ""))
	for _, id := range []string{"h1", "none"} {
		h := githubHeader("push", "1")
		h.Set("X-Hub-Signature-256", "sha256="+hexMAC("there is no such hook, and no such secret", sample))
		if got := s.send(t, http.MethodPost, "/hooks/github/"+id, h, sample); got.status != refused {
			t.Errorf("hook %s: status %d, want %d", id, got.status, refused)
		}
	}
}

func TestOnlyPOST(t *testing.T) {
	t.Parallel()
	s := newServer(t, hookOf("github", testSecret, ""))
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodOptions, "BREW"} {
		got := s.send(t, method, "/hooks/github/h1", http.Header{}, nil)
		if got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != http.MethodPost {
			t.Errorf("%s: status %d, Allow %q", method, got.status, got.header.Get("Allow"))
		}
	}
}

func TestRepeatedDeliveries(t *testing.T) {
	t.Parallel()
	s := newServer(t, hookOf("github", testSecret, ""))
	for _, d := range []struct {
		id, before, after string
		events            int // afterwards
	}{
		{"1", "a", "b", 1},
		{"1", "a", "b", 1}, // repeated
		{"2", "b", "a", 2}, // and back
		{"3", "a", "b", 3}, // the same facts, come true again
		{"3", "b", "c", 4}, // another body under a used ID
		{"2", "b", "a", 4},
	} {
		if status, text := s.post(t, "github", "h1", githubHeader("push", d.id), githubPush(t, d.before, d.after)); status != http.StatusAccepted {
			t.Fatalf("%+v: %d %s", d, status, text)
		}
		if got := len(s.published()); got != d.events {
			t.Errorf("after %+v there are %d events", d, got)
		}
	}
}

func TestStoreRefuses(t *testing.T) {
	t.Parallel()
	s := newServer(t, hookOf("github", testSecret, ""))
	body := githubPush(t, "a", "b")
	for _, c := range []struct {
		err   error
		after string
	}{{fmt.Errorf("publish: %w", bus.ErrFull), "60"}, {errors.New("no connection"), "5"}} {
		s.setFail(c.err)
		h := githubHeader("push", "1")
		h.Set("X-Hub-Signature-256", "sha256="+hexMAC(testSecret, body))
		got := s.send(t, http.MethodPost, "/hooks/github/h1", h, body)
		if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") != c.after {
			t.Errorf("%v: status %d, Retry-After %q, want 503, %q", c.err, got.status, got.header.Get("Retry-After"), c.after)
		}
	}
	s.setFail(nil)
	if status, text := s.post(t, "github", "h1", githubHeader("push", "1"), body); status != http.StatusAccepted || len(s.published()) != 1 {
		t.Errorf("repeated: %d %s, %d events", status, text, len(s.published()))
	}
}

func TestFormBody(t *testing.T) {
	t.Parallel()
	s := newServer(t, hookOf("github", testSecret, ""))
	h := githubHeader("push", "1")
	h.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	form := url.Values{"payload": {string(githubPush(t, "a", "b"))}}.Encode()
	if status, text := s.post(t, "github", "h1", h, []byte(form)); status != http.StatusAccepted {
		t.Fatalf("%d %s", status, text)
	}
	if got := s.delivery(t, 0); !json.Valid(got.Body) || got.Size != len(form) {
		t.Errorf("stored body %q of size %d", got.Body, got.Size)
	}
	for _, body := range []string{"payload", "other=1", "payload=%zz", ""} {
		if status, _ := s.post(t, "github", "h1", h, []byte(body)); status != http.StatusBadRequest {
			t.Errorf("form %q: status %d, want 400", body, status)
		}
	}
}

func TestLargeBodies(t *testing.T) {
	t.Parallel()
	s := newServer(t, hookOf("github", testSecret, ""))
	h := githubHeader("push", "1")
	big := bytes.Repeat([]byte(" "), 25<<20)
	if status, _ := s.post(t, "github", "h1", h, big); status != http.StatusBadRequest { // authenticated, no JSON
		t.Errorf("25 MB: status %d, want 400", status)
	}
	if got := s.send(t, http.MethodPost, "/hooks/github/h1", h, append(big, ' ')); got.status != http.StatusRequestEntityTooLarge {
		t.Errorf("a byte more: status %d, want 413", got.status)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/hooks/github/none", io.MultiReader(bytes.NewReader(big), strings.NewReader("xx")))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("without a length: status %d, want 413", resp.StatusCode)
	}
}

// TestHugePush checks that the event of a huge push still fits into a message, and says what it lacks.
func TestHugePush(t *testing.T) {
	t.Parallel()
	s := newServer(t, hookOf("github", testSecret, ""))
	random := rand.New(rand.NewPCG(1, 2))
	var commits []map[string]any
	for i := range 3000 {
		files := make([]string, 20)
		for j := range files {
			files[j] = fmt.Sprintf("dir/%x%x%x", random.Uint64(), random.Uint64(), random.Uint64())
		}
		commits = append(commits, map[string]any{"id": fmt.Sprintf("%040x", i+1), "message": strings.Repeat("m", 100), "added": files})
	}
	body, err := json.Marshal(map[string]any{"ref": "refs/heads/main", "before": strings.Repeat("a", 40), "after": strings.Repeat("b", 40), "commits": commits,
		"repository": map[string]any{"id": 1, "clone_url": "https://github.com/o/r.git", "full_name": strings.Repeat("x", 1<<20)}})
	if err != nil {
		t.Fatal(err)
	}
	if status, text := s.post(t, "github", "h1", githubHeader("push", "1"), body); status != http.StatusAccepted {
		t.Fatalf("%d %s", status, text)
	}
	e := s.published()[0].event
	var push event.GitPushed
	if err := json.Unmarshal(e.Data, &push); err != nil {
		t.Fatal(err)
	}
	if !push.FilesUnknown || len(push.Commits) > 2048 || len(e.Data) > 2<<20 {
		t.Errorf("unknown %v, %d commits, %d bytes", push.FilesUnknown, len(push.Commits), len(e.Data))
	}
	if push.Delivery.Body != nil || push.Delivery.Omitted == "" || push.Delivery.Size != len(body) {
		t.Errorf("delivery: %d bytes stored of %d, omitted %q", len(push.Delivery.Body), push.Delivery.Size, push.Delivery.Omitted)
	}
	if _, err := webhook.Replay(hookOf("github", "", ""), push.Delivery); err == nil {
		t.Error("a delivery without its body was replayed")
	}
}

func TestSecretsAreNotStored(t *testing.T) {
	t.Parallel()
	const secret = `se"cret\ of the tests`
	s := newServer(t, hookOf("gitea", secret, ""), webhook.Hook{ID: "l", Provider: "gitlab", Secret: testSecret, Enabled: true})
	var body map[string]any
	if err := json.Unmarshal(githubPush(t, "a", "b"), &body); err != nil {
		t.Fatal(err)
	}
	body["secret"] = secret // as Gitea did before 1.14
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	h := githubHeader("push", "1")
	h.Set("X-Gitea-Signature", hexMAC(secret, raw))
	h.Set("Authorization", "Bearer "+secret)
	h.Set("Cookie", secret)
	if got := s.send(t, http.MethodPost, "/hooks/gitea/h1", h, raw); got.status != http.StatusAccepted {
		t.Fatalf("%d %s", got.status, got.body)
	}
	if d := s.delivery(t, 0); d.Body != nil || d.Omitted == "" {
		t.Errorf("stored body %q, omitted %q", d.Body, d.Omitted)
	}
	f := readFixture(t, "testdata/deliveries/gitlab-push.json")
	if status, text := s.post(t, "gitlab", "l", f.header(), f.Body); status != http.StatusAccepted {
		t.Fatalf("%d %s", status, text)
	}
	for _, m := range s.published() {
		for _, leak := range []string{"cret", testSecret, "Gitlab-Token", "Authorization", "Cookie"} {
			if strings.Contains(strings.Replace(string(m.event.Data), "the hook's secret", "", 1), leak) {
				t.Errorf("the event holds %q: %s", leak, m.event.Data)
			}
		}
	}
	for _, form := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if text := fmt.Sprintf(form, hookOf("gitea", testSecret, testSecret)); strings.Contains(text, testSecret) {
			t.Errorf("printed with %s: %s", form, text)
		}
	}
}

// TestDeliveriesInJetStream has one delivery made many times at once to a real store.
func TestDeliveriesInJetStream(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	creator, err := b.Creator()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = creator.Close() })
	s := newServer(t)
	s.Config.Handler = &webhook.Handler{Publish: webhook.Publisher(creator), Hooks: func(context.Context, string) (webhook.Hook, error) {
		return hookOf("github", testSecret, ""), nil
	}}
	body := githubPush(t, "a", "b")
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			if status, text := s.post(t, "github", "h1", githubHeader("push", fmt.Sprint(i%4)), body); status != http.StatusAccepted {
				t.Errorf("%d %s", status, text)
			}
		})
	}
	all.Wait()
	ids := map[string]bool{}
	err = b.Tail(t.Context(), bus.StreamEvents, event.GitFilter, 0, false, func(_ uint64, data []byte) bool {
		var e event.Event
		if err := json.Unmarshal(data, &e); err != nil {
			t.Error(err)
		}
		ids[e.ID] = true
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(ids) != 4 {
		t.Errorf("%d events for 4 deliveries made 10 times each", len(ids))
	}
}
