package notify_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/secret"
)

// A hooked takes the requests of a webhook, which must be signed and have its header.
type hooked struct {
	*httptest.Server
	mu     sync.Mutex
	answer []int // one for each request; then 200
	got    []map[string]any
	bad    []string
}

func hook(t *testing.T, answer ...int) *hooked {
	h := &hooked{answer: answer}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hooked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	var p map[string]any
	if err != nil || json.Unmarshal(body, &p) != nil || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") ||
		r.Header.Get("X-Token") != "t0p" || r.Header.Get("webhook-signature") == "" {
		h.bad = append(h.bad, string(body))
	}
	if len(h.answer) > 0 {
		code := h.answer[0]
		h.answer = h.answer[1:]
		w.WriteHeader(code)
		_, _ = io.WriteString(w, "not now")
		return
	}
	h.got = append(h.got, p)
}

// actions returns what the webhook was told, in the order of the text.
func (h *hooked) actions() (told []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.got {
		line := p["action"].(string)
		if target, ok := p["target"].(map[string]any); ok {
			for _, key := range []string{"repository", "tag", "name", "version"} {
				if v, ok := target[key].(string); ok {
					line += " " + v
				}
			}
		}
		told = append(told, line)
	}
	slices.Sort(told)
	return told
}

// webhook stores a webhook, which is in effect when this returns.
func (s *site) webhook(t *testing.T, id, url, scope string, actions ...string) {
	t.Helper()
	headers, err := secret.Seal(s.identity.Recipient(), map[string]string{"X-Token": "t0p"})
	check(t, err)
	sealed, err := secret.Seal(s.identity.Recipient(), url)
	check(t, err)
	_, err = s.store.Targets.Create(t.Context(), id, event.Target{ID: id, Name: id, URL: "http://127.0.0.1", Address: sealed, Secret: "signing",
		Events: []string{event.TypeImagePushed, event.TypeImageDeleted}, Webhook: &event.Webhook{Actions: actions, Scope: scope, Headers: headers}})
	check(t, err)
	await(t, func() bool {
		_, err := s.bus.JetStream().Consumer(t.Context(), bus.StreamNotify, "notify-"+id)
		return err == nil
	})
}

func TestWebhooksAreToldOfWhatTheyAskFor(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	hooks := map[string]*hooked{}
	for _, w := range []struct {
		scope   string
		actions []string
	}{
		{"", event.WebhookActions}, {"team/app", []string{"push"}}, {"team/app:v*", []string{"push", "delete"}}, {"team/*:*", []string{"push", "delete"}},
		{"other:*", []string{"chart_push"}},
	} {
		id := strings.Map(func(r rune) rune {
			if strings.ContainsRune("/:*", r) {
				return '-'
			}
			return r
		}, "h"+w.scope)
		hooks[w.scope] = hook(t)
		s.webhook(t, id, hooks[w.scope].URL, w.scope, w.actions...)
	}
	const helm = "application/vnd.cncf.helm.config.v1+json"
	for id, e := range map[string]event.Image{
		"pushed 1":  {Repository: "team/app", Tag: "latest", Size: 500},
		"pushed 2":  {Repository: "team/app", Tag: "v1"},
		"pushed 3":  {Repository: "team/app"},
		"pushed 4":  {Repository: "other", Tag: "1.0_b", ArtifactType: helm},
		"deleted 1": {Repository: "team/app", Tag: "v1"}, // the tag alone
		"deleted 2": {Repository: "team/app"},
		"deleted 3": {Repository: "other", ArtifactType: helm},
	} {
		e.Registry, e.Digest = "reg.test", "sha256:1"
		typ := "image." + strings.Fields(id)[0]
		ev, err := event.New(id, "/v2/"+e.Repository, typ, time.Now().UTC(), e)
		check(t, err)
		_, err = s.bus.Publish(t.Context(), event.ImageSubject(typ, e.Repository), id, ev)
		check(t, err)
	}
	for scope, want := range map[string][]string{
		"":            {"chart_delete other", "chart_push other 1.0_b other 1.0+b", "delete team/app", "push team/app", "push team/app latest", "push team/app v1"},
		"team/app":    {"push team/app latest"},
		"team/app:v*": {"push team/app v1"},
		"team/*:*":    {"delete team/app", "push team/app", "push team/app latest", "push team/app v1"},
		"other:*":     {"chart_push other 1.0_b other 1.0+b"},
	} {
		h := hooks[scope]
		await(t, func() bool { return len(h.actions()) >= len(want) })
		if got := h.actions(); !slices.Equal(got, want) || len(h.bad) > 0 {
			t.Errorf("scope %q was told %q, want %q; bad %q", scope, got, want, h.bad)
		}
	}
}

func TestRequestsToAWebhookAreRepeatedAndKept(t *testing.T) {
	t.Parallel()
	s, h := start(t, nil), hook(t, http.StatusServiceUnavailable)
	s.webhook(t, "a", h.URL, "", "push")
	s.imaged(t, event.TypeImagePushed, "i1", "r1")
	await(t, func() bool { return len(h.actions()) == 1 })
	var sent []event.Sent
	await(t, func() bool {
		sent = nil
		check(t, s.bus.Tail(t.Context(), bus.StreamDelivered, event.DeliveredSubject("a"), 0, false, func(_ uint64, data []byte) bool {
			var e event.Sent
			check(t, json.Unmarshal(data, &e))
			sent = append(sent, e)
			return true
		}))
		return len(sent) == 2
	})
	if first := sent[0]; first.Status != http.StatusServiceUnavailable || first.Response != "not now" || first.Attempt != 1 || first.Error == "" {
		t.Errorf("the first request is kept as %+v", first)
	}
	if second := sent[1]; second.Status != http.StatusOK || second.Attempt != 2 || second.Event != "i1" || second.Image != "team/app:1" || second.Action != "push" {
		t.Errorf("the second request is kept as %+v", second)
	}
	p := h.got[0]
	request, _ := p["request"].(map[string]any)
	if id, _ := p["id"].(string); len(id) != 36 || request["host"] != "reg.test" || request["method"] != "PUT" || request["useragent"] != "kiln run r1" {
		t.Errorf("sent %v", p)
	}
	check(t, s.store.Targets.Delete(t.Context(), "a"))
	await(t, func() bool {
		n := 0
		check(t, s.bus.Tail(t.Context(), bus.StreamDelivered, event.DeliveredSubject("a"), 0, false, func(uint64, []byte) bool { n++; return true }))
		return n == 0
	})
}
