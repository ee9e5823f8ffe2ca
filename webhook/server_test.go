package webhook_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/webhook"
)

const testSecret = "a secret of the tests"

var testTime = time.Date(2025, 11, 21, 12, 0, 0, 0, time.UTC)

// A message is what was published.
type message struct {
	subject string
	event   event.Event
}

// A server serves hooks and keeps what they publish, as a store does: the first message of a subject.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	messages []message
	taken    map[string]bool
	fail     error
}

func newServer(t testing.TB, hooks ...webhook.Hook) *server {
	t.Helper()
	s := &server{taken: map[string]bool{}}
	h := &webhook.Handler{Publish: s.publish, Now: func() time.Time { return testTime },
		Hooks: func(_ context.Context, id string) (webhook.Hook, error) {
			for _, h := range hooks {
				if h.ID == id {
					return h, nil
				}
			}
			return webhook.Hook{}, fmt.Errorf("hook %q: %w", id, webhook.ErrNoHook)
		}}
	s.Server = httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func (s *server) publish(_ context.Context, subject string, encoded []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if s.taken[subject] {
		return nil
	}
	m := message{subject: subject}
	if err := json.Unmarshal(encoded, &m.event); err != nil {
		return err
	}
	s.taken[subject] = true
	s.messages = append(s.messages, m)
	return nil
}

func (s *server) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *server) published() []message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.messages
}

// delivery returns the delivery that came with a published event.
func (s *server) delivery(t testing.TB, i int) event.Delivery {
	t.Helper()
	var data struct {
		Delivery event.Delivery `json:"delivery"`
	}
	if err := json.Unmarshal(s.published()[i].event.Data, &data); err != nil {
		t.Fatal(err)
	}
	return data.Delivery
}

// post delivers a body as the provider would, with its signature unless the header has one.
func (s *server) post(t testing.TB, provider, hook string, header http.Header, body []byte) (status int, answer string) {
	t.Helper()
	header = header.Clone()
	name, value := authentication(provider, testSecret, body)
	if header.Get(name) == "" {
		header.Set(name, value)
	}
	r := s.send(t, http.MethodPost, "/hooks/"+provider+"/"+hook, header, body)
	return r.status, r.body
}

// An answer is what a sender sees.
type answer struct {
	status int
	header http.Header
	body   string
}

func (s *server) send(t testing.TB, method, path string, header http.Header, body []byte) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header.Clone()
	resp, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// authentication returns the header by which a provider authenticates a body, computed as its
// documentation says.
func authentication(provider, secret string, body []byte) (name, value string) {
	sum := hexMAC(secret, body)
	switch provider {
	case "github", "generic":
		return "X-Hub-Signature-256", "sha256=" + sum
	case "gitea":
		return "X-Gitea-Signature", sum
	case "forgejo":
		return "X-Forgejo-Signature", sum
	case "bitbucket":
		return "X-Hub-Signature", "sha256=" + sum
	case "gitlab":
		return "X-Gitlab-Token", secret
	case "azure-devops":
		return "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("kiln:"+secret))
	}
	return "Authorization", "Bearer " + secret
}

func hexMAC(secret string, body []byte) string {
	m := hmac.New(sha256.New, []byte(secret))
	m.Write(body)
	return hex.EncodeToString(m.Sum(nil))
}

// standard returns the headers of Standard Webhooks.
func standard(key []byte, id string, at time.Time, body []byte) http.Header {
	stamp := strconv.FormatInt(at.Unix(), 10)
	m := hmac.New(sha256.New, key)
	m.Write([]byte(id + "." + stamp + "."))
	m.Write(body)
	h := http.Header{}
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", stamp)
	h.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
	return h
}
