package webhook_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/event"
	"kiln/webhook"
)

var update = flag.Bool("update", false, "rewrite what the deliveries in testdata are expected to make")

// A fixture is a delivery and what it must make. The name of its file begins with the provider.
type fixture struct {
	Header   map[string]string `json:"header"`
	Registry *string           `json:"registry,omitempty"` // of the hook; registry.example.com if absent
	Status   int               `json:"status"`
	Answer   json.RawMessage   `json:"answer,omitempty"` // if no events are made
	Events   []json.RawMessage `json:"events,omitempty"` // without what differs each time
	Body     json.RawMessage   `json:"body"`
}

func fixtures(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/deliveries/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no deliveries in testdata: %v", err)
	}
	return files
}

func readFixture(t testing.TB, file string) fixture {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var f fixture
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return f
}

// providerOf returns the provider that a fixture's name begins with.
func providerOf(file string) string {
	base, best := filepath.Base(file), ""
	for _, p := range webhook.Providers() {
		if strings.HasPrefix(base, p+"-") && len(p) > len(best) {
			best = p
		}
	}
	return best
}

func (f fixture) hook(provider string) webhook.Hook {
	h := webhook.Hook{ID: "h1", Provider: provider, Secret: testSecret, Enabled: true, Registry: "registry.example.com"}
	if f.Registry != nil {
		h.Registry = *f.Registry
	}
	if !strings.Contains("distribution acr harbor dockerhub quay cloudevents", provider) {
		h.Registry = ""
	}
	return h
}

func (f fixture) header() http.Header {
	h := http.Header{"Content-Type": {"application/json"}}
	for k, v := range f.Header {
		h.Set(k, v)
	}
	return h
}

func TestDeliveriesAreDecoded(t *testing.T) {
	t.Parallel()
	for _, file := range fixtures(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			t.Parallel()
			f := readFixture(t, file)
			provider := providerOf(file)
			s := newServer(t, f.hook(provider))
			status, answer := s.post(t, provider, "h1", f.header(), f.Body)
			got := f
			got.Status, got.Events, got.Answer = status, nil, nil
			for _, p := range s.published() {
				checkEnvelope(t, p)
				got.Events = append(got.Events, withoutDelivery(t, p))
			}
			if len(got.Events) == 0 {
				got.Answer = json.RawMessage(strings.TrimSpace(answer))
			}
			if *update {
				writeFixture(t, file, got)
				return
			}
			if diff := cmp.Diff(text(t, f), text(t, got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
			checkReplay(t, s, f.hook(provider))
		})
	}
}

// withoutDelivery returns an event's type, subject and data without the delivery.
func withoutDelivery(t *testing.T, p message) json.RawMessage {
	t.Helper()
	var data map[string]json.RawMessage
	if err := json.Unmarshal(p.event.Data, &data); err != nil {
		t.Fatal(err)
	}
	delete(data, "delivery")
	b, err := json.Marshal(map[string]any{"type": p.event.Type, "subject": p.event.Subject, "data": data})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func checkEnvelope(t *testing.T, p message) {
	t.Helper()
	e := p.event
	if e.SpecVersion != "1.0" || e.ID == "" || !strings.HasPrefix(e.Source, "/hooks/") || !e.Time.Equal(testTime) {
		t.Errorf("envelope = %+v", e)
	}
	if want := event.DeliverySubject(e.Type, e.ID); p.subject != want {
		t.Errorf("published at %s, want %s", p.subject, want)
	}
}

// checkReplay checks that the stored deliveries make the same events again.
func checkReplay(t *testing.T, s *server, hook webhook.Hook) {
	t.Helper()
	all := s.published()
	if len(all) == 0 {
		return
	}
	again, err := webhook.Replay(hook, s.delivery(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	var want []event.Event
	for _, p := range all {
		want = append(want, p.event)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("replay (-published +replayed):\n%s", diff)
	}
}

func text(t *testing.T, f fixture) string {
	t.Helper()
	f.Body = nil
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(f); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func writeFixture(t *testing.T, file string, f fixture) {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(f); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
