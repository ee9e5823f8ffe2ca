package webhook_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/webhook"
)

// A site takes deliveries in as a server does, on a store of its own.
type site struct {
	*server
	bus  *bus.Bus
	log  *logBuffer
	gate chan struct{} // what is published directly waits for it to be closed
	stop func()        // ends everything, once
	run  func()        // starts Run
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func openSite(t *testing.T, dir string) *site {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &site{log: &logBuffer{}, gate: make(chan struct{})}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	ns, err := bus.StartServer(bus.ServerConfig{Dir: dir, Relaxed: true, Log: log})
	must(err)
	nc, err := ns.Connect("test")
	must(err)
	s.bus, err = bus.Open(t.Context(), nc, log)
	must(err)
	creator, err := s.bus.Creator()
	must(err)
	in, err := webhook.NewIntake(t.Context(), s.bus, creator, log)
	must(err)
	store := webhook.Publisher(creator)
	s.server = &server{Server: httptest.NewServer(&webhook.Handler{Intake: in, Log: log,
		Publish: func(ctx context.Context, subject string, encoded []byte) error {
			<-s.gate
			return store(ctx, subject, encoded)
		},
		Hooks: func(context.Context, string) (webhook.Hook, error) { return hookOf("github", testSecret, ""), nil }})}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	s.run = func() {
		running.Go(func() {
			if err := in.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	s.stop = sync.OnceFunc(func() {
		s.Close()
		cancel()
		running.Wait()
		_, _ = in.Close(), creator.Close()
		nc.Close()
		ns.Shutdown()
	})
	t.Cleanup(s.stop)
	return s
}

// flood has two deliveries under way when a third comes, which therefore is stored for later, as all that
// come before Run. It returns how many are accepted.
func (s *site) flood(t *testing.T) (n int) {
	t.Helper()
	var direct sync.WaitGroup
	var mu sync.Mutex
	for i := range 3 {
		direct.Go(func() {
			if status, _ := s.push(t, fmt.Sprint("flood", i)); status == http.StatusAccepted {
				mu.Lock()
				defer mu.Unlock()
				n++
			}
		})
	}
	s.await(t, "a batch", func() bool { return s.messages(t, bus.StreamIntake) == 1 })
	close(s.gate)
	direct.Wait()
	return n
}

func (s *site) push(t *testing.T, id string) (status int, answer string) {
	t.Helper()
	return s.post(t, "github", "h1", githubHeader("push", id), githubPush(t, "a", "b"))
}

// accept has a delivery accepted. It comes again when it is refused for now, as on a machine that stood
// still meanwhile.
func (s *site) accept(t *testing.T, id string) {
	t.Helper()
	for range 5 {
		status, text := s.push(t, id)
		if status == http.StatusAccepted {
			return
		}
		if status != http.StatusServiceUnavailable {
			t.Errorf("delivery %s: %d %s", id, status, text)
			return
		}
	}
	t.Errorf("delivery %s is refused again and again\n%s", id, s.log)
}

func (s *site) messages(t *testing.T, stream string) int {
	t.Helper()
	st, err := s.bus.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Error(err)
		return -1
	}
	return int(st.CachedInfo().State.Msgs)
}

// limit sets how large a stream may become.
func (s *site) limit(t *testing.T, stream string, bytes int64) {
	t.Helper()
	st, err := s.bus.JetStream().Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	cfg.MaxBytes = bytes
	if _, err := s.bus.JetStream().UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
}

func (s *site) await(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: waited in vain\n%s", what, s.log)
		}
	}
}

// wants waits until nothing waits to become an event, and checks how many events there are.
func (s *site) wants(t *testing.T, events int) {
	t.Helper()
	s.await(t, "no batch", func() bool { return s.messages(t, bus.StreamIntake) == 0 })
	if got := s.messages(t, bus.StreamEvents); got != events {
		t.Errorf("%d events, want %d\n%s", got, events, s.log)
	}
}

// events returns the stored events that a filter matches.
func (s *site) events(t *testing.T, filter string) (all []event.Event) {
	t.Helper()
	err := s.bus.Tail(t.Context(), bus.StreamEvents, filter, 0, false, func(_ uint64, data []byte) bool {
		var e event.Event
		if err := json.Unmarshal(data, &e); err != nil {
			t.Error(err)
		}
		all = append(all, e)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ids returns the sender's IDs of the deliveries that have become events, in order.
func (s *site) ids(t *testing.T) (ids []string) {
	t.Helper()
	for _, e := range s.events(t, event.GitFilter) {
		var push event.GitPushed
		if err := json.Unmarshal(e.Data, &push); err != nil {
			t.Error(err)
		}
		ids = append(ids, push.Delivery.ID)
	}
	return ids
}

func TestFloodOfRepeatedDeliveries(t *testing.T) {
	t.Parallel()
	const senders, each = 16, 63 // 1008
	s := openSite(t, t.TempDir())
	close(s.gate)
	s.run()
	var all sync.WaitGroup
	for i := range senders {
		random := rand.New(rand.NewPCG(1, uint64(i)))
		all.Go(func() {
			for n := range each {
				for range 1 + random.IntN(3) {
					s.accept(t, fmt.Sprintf("%d %d", i, n))
				}
			}
		})
	}
	all.Wait()
	s.wants(t, senders*each)
	next := map[string]int{}
	for _, id := range s.ids(t) {
		sender, n, _ := strings.Cut(id, " ")
		if n != fmt.Sprint(next[sender]) {
			t.Fatalf("of sender %s, delivery %s came after %d others", sender, n, next[sender])
		}
		next[sender]++
	}
	if status, text := s.push(t, "alone"); status != http.StatusAccepted || !strings.HasPrefix(text, `{"events":["`) {
		t.Errorf("after the flood: %d %s", status, text)
	}
}

func TestFloodOutlivesProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := openSite(t, dir)
	n := first.flood(t)
	for i := range 20 {
		first.accept(t, fmt.Sprint(i))
	}
	if got := first.messages(t, bus.StreamEvents); got != 2 {
		t.Errorf("%d events before anything was moved, want 2", got)
	}
	first.stop()

	second := openSite(t, dir)
	close(second.gate)
	for i := range 20 {
		second.accept(t, fmt.Sprint(i+10)) // ten of them again; none overtakes those of before
	}
	second.run()
	second.wants(t, n+30)
	if got := second.ids(t); got[n] != "0" || got[n+29] != "29" {
		t.Errorf("order: %q", got)
	}
}

func TestIntakeIsFull(t *testing.T) {
	t.Parallel()
	s := openSite(t, t.TempDir())
	n := s.flood(t)
	s.limit(t, bus.StreamIntake, 4<<10)
	full := false
	for i := 0; i < 100 && !full; i++ {
		h := githubHeader("push", fmt.Sprint(i))
		body := githubPush(t, "a", "b")
		h.Set("X-Hub-Signature-256", "sha256="+hexMAC(testSecret, body))
		switch got := s.send(t, http.MethodPost, "/hooks/github/h1", h, body); got.status {
		case http.StatusAccepted:
			n++
		case http.StatusServiceUnavailable:
			if full = true; got.header.Get("Retry-After") != "60" {
				t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
			}
		default:
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	if !full {
		t.Fatal("100 deliveries fit into 4 KB")
	}
	s.run()
	s.wants(t, n)
	s.accept(t, "afterwards")
	s.wants(t, n+1)
}

func TestEventsAreFull(t *testing.T) {
	t.Parallel()
	s := openSite(t, t.TempDir())
	s.limit(t, bus.StreamEvents, 1)
	if n := s.flood(t); n != 1 {
		t.Errorf("%d deliveries are accepted, want 1", n)
	}
	for i := range 5 {
		s.accept(t, fmt.Sprint(i))
	}
	s.run()
	s.await(t, "a complaint", func() bool { return strings.Contains(s.log.String(), "deliveries that are accepted wait") })
	s.limit(t, bus.StreamEvents, 1<<20)
	s.wants(t, 6)
}

func TestDeliveryByBothWaysIsOneEvent(t *testing.T) {
	t.Parallel()
	s := openSite(t, t.TempDir())
	n := s.flood(t) // two directly, one in a batch
	for i := range n {
		s.accept(t, fmt.Sprint("flood", i)) // in a batch
	}
	s.accept(t, "later")
	s.run()
	s.wants(t, n+1)
	if status, text := s.push(t, "later"); status != http.StatusAccepted || !strings.HasPrefix(text, `{"events":["`) {
		t.Errorf("again, directly: %d %s", status, text)
	}
	s.wants(t, n+1)
}

func TestFloodWithMalformedDelivery(t *testing.T) {
	t.Parallel()
	s := openSite(t, t.TempDir())
	n := s.flood(t)
	s.accept(t, "before")
	for _, body := range []string{`{"ref":`, `<xml/>`, ``} {
		if status, text := s.post(t, "github", "h1", githubHeader("push", "cut"), []byte(body)); status != http.StatusBadRequest {
			t.Errorf("%q: %d %s", body, status, text)
		}
	}
	for range 2 {
		if status, text := s.post(t, "github", "h1", githubHeader("push", "bad"), []byte(`{"ref":1}`)); status != http.StatusAccepted || text != "{\"accepted\":true}\n" {
			t.Errorf("%d %s", status, text)
		}
	}
	s.accept(t, "after")
	s.run()
	large := append(githubPush(t, "a", "b"), bytes.Repeat([]byte(" "), 1<<20)...)
	if status, text := s.post(t, "github", "h1", githubHeader("push", "large"), large); status != http.StatusAccepted || !strings.Contains(text, "events") {
		t.Errorf("%d %s", status, text)
	}
	s.wants(t, n+4)
	if got := s.ids(t)[n:]; fmt.Sprint(got) != "[before after large]" {
		t.Errorf("order: %q", got)
	}
	var rejected event.DeliveryRejected
	for _, e := range s.events(t, event.SubjectEvents) {
		if e.Type == event.TypeDeliveryRejected {
			if err := json.Unmarshal(e.Data, &rejected); err != nil || e.Subject != rejected.Reason {
				t.Errorf("%+v: %v", e, err)
			}
		}
	}
	if d := rejected.Delivery; !strings.Contains(rejected.Reason, "another type than documented") || d.ID != "bad" || d.Hook != "h1" || string(d.Body) != `{"ref":1}` {
		t.Errorf("rejected %+v", rejected)
	}
}

func TestFloodWithSecretIsNotStored(t *testing.T) {
	t.Parallel()
	s := openSite(t, t.TempDir())
	n := s.flood(t)
	s.run()
	header := githubHeader("push", "secret")
	header.Set("Content-Type", "application/x-www-form-urlencoded")
	body := strings.Replace(string(githubPush(t, "a", "b")), `{`, `{"note":"`+testSecret+`",`, 1)
	status, text := s.post(t, "github", "h1", header, []byte("payload="+url.QueryEscape(body)))
	if status != http.StatusAccepted || !strings.Contains(text, "events") {
		t.Errorf("%d %s", status, text)
	}
	s.wants(t, n+1)
}
