package notify_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/netguard"
	"kiln/internal/notify"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
)

const (
	signingKey = "the key that notifications are signed with"
	forgeToken = "the token of the forge"
	commit     = "0123456789abcdef0123456789abcdef01234567"
)

// A site is a notifier on real NATS.
type site struct {
	bus   *bus.Bus
	store *store.Store
	log   *lockedBuffer

	identity secret.Identity
}

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

func start(t *testing.T, change func(*notify.Notifier)) *site {
	t.Helper()
	s := &site{bus: natstest.Start(t), log: &lockedBuffer{}}
	var err error
	s.store, err = store.Open(t.Context(), s.bus.JetStream(), time.Minute)
	check(t, err)
	s.identity, err = secret.NewIdentity()
	check(t, err)
	loopback := netguard.Guard{Allow: func(_ string, addr netip.Addr) bool { return addr.IsLoopback() }}
	n := &notify.Notifier{Bus: s.bus, Store: s.store, Log: slog.New(slog.NewTextHandler(s.log, nil)), Guard: loopback, ForgeGuard: loopback,
		Secret: func(_ context.Context, name string) (string, error) {
			return map[string]string{"signing": signingKey, "forge": forgeToken}[name], nil
		},
		Unseal:  s.identity.Open,
		RunURL:  func(id string) string { return "https://kiln.test/runs/" + id },
		Backoff: func(int) time.Duration { return 10 * time.Millisecond }}
	if change != nil {
		change(n)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() { cancel(); check(t, <-done) })
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// target stores a target of all events, or of those of one task.
func (s *site) target(t *testing.T, id, url string, task ...string) {
	t.Helper()
	sealed, err := secret.Seal(s.identity.Recipient(), url)
	check(t, err)
	_, err = s.store.Targets.Create(t.Context(), id, event.Target{ID: id, Name: id, URL: "http://127.0.0.1", Address: sealed, Events: event.NotifiedTypes, Secret: "signing", Task: strings.Join(task, "")})
	check(t, err)
	// It is in effect when the notifier has made its queue.
	await(t, func() bool {
		_, err := s.bus.JetStream().Consumer(t.Context(), bus.StreamNotify, "notify-"+id)
		return err == nil
	})
}

// changed stores a run and publishes the event of its change.
func (s *site) changed(t *testing.T, typ string, r run.Run) {
	t.Helper()
	_, err := s.store.Runs.Put(t.Context(), r.ID, r)
	check(t, err)
	e, err := event.New(typ+"-"+r.ID, "/runs/"+r.ID, typ, time.Now().UTC(), event.RunChanged{Run: r})
	check(t, err)
	_, err = s.bus.Create(t.Context(), event.RunSubject(typ, r.ID), e, 0)
	check(t, err)
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Fatal("it did not happen within 10 s")
}

// A receiver takes notifications and checks each of them as Standard Webhooks says.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	answer []int // one for each request; then 204
	got    []event.Event
	bad    []string
}

func receive(t *testing.T, answer ...int) *receiver {
	r := &receiver{answer: answer}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	body, err := io.ReadAll(req.Body)
	var e event.Event
	m := hmac.New(sha256.New, []byte(signingKey))
	fmt.Fprintf(m, "%s.%s.%s", req.Header.Get("webhook-id"), req.Header.Get("webhook-timestamp"), body)
	want := "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
	switch {
	case err != nil || json.Unmarshal(body, &e) != nil || e.SpecVersion != "1.0":
		r.bad = append(r.bad, "not a CloudEvent")
	case req.Header.Get("webhook-signature") != want || req.Header.Get("webhook-id") != e.ID:
		r.bad = append(r.bad, "signature "+req.Header.Get("webhook-signature"))
	case !strings.HasPrefix(req.Header.Get("Content-Type"), "application/cloudevents+json"):
		r.bad = append(r.bad, "content type "+req.Header.Get("Content-Type"))
	}
	status := http.StatusNoContent
	if len(r.answer) > 0 {
		status, r.answer = r.answer[0], r.answer[1:]
	}
	if status/100 == 2 {
		r.got = append(r.got, e)
	}
	w.WriteHeader(status)
}

func (r *receiver) received() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func TestNotificationIsSignedAndRepeatedAfterAnError(t *testing.T) {
	t.Parallel()
	s, r := start(t, nil), receive(t, 500, 503)
	s.target(t, "a", r.URL+"/?token=in-the-address")
	s.changed(t, event.TypeRunFinished, run.Run{ID: "r1", State: run.Succeeded, Spec: run.Spec{Secrets: []byte("sealed secret")}})
	await(t, func() bool { return r.received() == 1 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.bad) > 0 {
		t.Errorf("bad notifications: %q", r.bad)
	}
	if bytes.Contains(r.got[0].Data, []byte(base64.StdEncoding.EncodeToString([]byte("sealed secret")))) {
		t.Error("the notification holds the run's sealed secrets")
	}
	var data struct{ RunURL string }
	if err := json.Unmarshal(r.got[0].Data, &data); err != nil || data.RunURL != "https://kiln.test/runs/r1" {
		t.Errorf("the notification does not link to its run: %s, %v", r.got[0].Data, err)
	}
	if log := s.log.String(); strings.Contains(log, signingKey) || strings.Contains(log, "in-the-address") {
		t.Error("the log holds a secret")
	}
}

// imaged publishes the event of an image, as the registry's relay does.
func (s *site) imaged(t *testing.T, typ, id, runID string) {
	t.Helper()
	e, err := event.New(id, "/v2/team/app", typ, time.Now().UTC(), event.Image{Registry: "reg.test", Repository: "team/app", Tag: "1", Digest: "sha256:1", Run: runID})
	check(t, err)
	_, err = s.bus.Publish(t.Context(), event.ImageSubject(typ, "team/app"), e.ID, e)
	check(t, err)
}

func TestEventsOfImagesAreSent(t *testing.T) {
	t.Parallel()
	s, all, web := start(t, nil), receive(t, 500), receive(t)
	s.target(t, "all", all.URL)
	s.target(t, "web", web.URL, "web")
	_, err := s.store.Runs.Put(t.Context(), "rw", run.Run{ID: "rw", Task: "web", State: run.Succeeded})
	check(t, err)
	s.imaged(t, event.TypeImagePushed, "i1", "")
	s.imaged(t, event.TypeImageDeleted, "i3", "")
	s.imaged(t, event.TypeImagePushed, "i2", "rw")
	await(t, func() bool { return all.received() == 3 && web.received() > 0 })
	web.mu.Lock()
	defer web.mu.Unlock()
	if len(web.got) != 1 || web.got[0].ID != "i2" {
		t.Errorf("the target of a task got %+v, want the image of its run", web.got)
	}
	all.mu.Lock()
	defer all.mu.Unlock()
	types := map[string]string{}
	for _, e := range all.got {
		var image event.Image
		if types[e.ID] = e.Type; json.Unmarshal(e.Data, &image) != nil || image.Repository != "team/app" || image.Digest != "sha256:1" || e.Source != "/v2/team/app" {
			t.Errorf("sent %s of %s", e.Data, e.Source)
		}
	}
	if want := map[string]string{"i1": event.TypeImagePushed, "i2": event.TypeImagePushed, "i3": event.TypeImageDeleted}; len(all.bad) > 0 || fmt.Sprint(types) != fmt.Sprint(want) {
		t.Errorf("sent %v, want %v; bad: %q", types, want, all.bad)
	}
}

func TestDeadTargetDelaysNobodyAndIsSeen(t *testing.T) {
	t.Parallel()
	s := start(t, func(n *notify.Notifier) { n.GiveUp = 200 * time.Millisecond })
	dead, alive := httptest.NewServer(http.NotFoundHandler()), receive(t)
	dead.Close()
	s.target(t, "dead", dead.URL)
	s.target(t, "alive", alive.URL)
	for i := range 20 {
		s.changed(t, event.TypeRunQueued, run.Run{ID: fmt.Sprintf("r%d", i), State: run.Queued})
	}
	await(t, func() bool { return alive.received() == 20 })
	await(t, func() bool { return s.undelivered(t) == 20 })
}

// What waits for a target that nobody reaches is told of in few bytes, or it would fill the queues of all.
func TestQueueOfADeadTargetIsSmall(t *testing.T) {
	t.Parallel()
	s := start(t, func(n *notify.Notifier) { n.Backoff = func(int) time.Duration { return time.Minute } })
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	s.target(t, "dead", dead.URL)
	for i := range 10 {
		s.changed(t, event.TypeRunQueued, run.Run{ID: fmt.Sprintf("r%d", i), State: run.Queued, Reason: strings.Repeat("x", 100_000)})
	}
	await(t, func() bool {
		queues, err := s.bus.JetStream().Stream(t.Context(), bus.StreamNotify)
		check(t, err)
		at := queues.CachedInfo().State
		if at.Bytes > 10_000 {
			t.Fatalf("%d notifications take %d bytes", at.Msgs, at.Bytes)
		}
		return at.Msgs == 10
	})
}

func (s *site) undelivered(t *testing.T) int {
	t.Helper()
	n := 0
	check(t, s.store.Undelivered.List(t.Context(), func(e store.Entry[event.Undelivered]) bool {
		if n := e.Value.Notification; n.Target != "dead" || n.Event == nil || e.Value.Error == "" || e.Value.Attempts == 0 {
			t.Errorf("given up: %+v", e.Value)
		}
		n++
		return true
	}))
	return n
}

func TestTargetThatIsGoneIsDisabled(t *testing.T) {
	t.Parallel()
	s, r := start(t, nil), receive(t, http.StatusGone)
	s.target(t, "a", r.URL)
	s.changed(t, event.TypeRunQueued, run.Run{ID: "r1", State: run.Queued})
	await(t, func() bool {
		a, _, err := s.store.Targets.Get(t.Context(), "a")
		return err == nil && a.Disabled && a.Reason != ""
	})
}

func TestPrivateAddressIsRefused(t *testing.T) {
	t.Parallel()
	r := receive(t)
	identity, err := secret.NewIdentity()
	check(t, err)
	sealed, err := secret.Seal(identity.Recipient(), r.URL)
	check(t, err)
	n := &notify.Notifier{Secret: func(context.Context, string) (string, error) { return signingKey, nil }, Unseal: identity.Open}
	err = n.Test(t.Context(), event.Target{ID: "a", Name: "a", URL: r.URL, Address: sealed})
	if err == nil || !strings.Contains(err.Error(), "loopback") || r.received() > 0 {
		t.Errorf("Test of a loopback address: %v, want a refusal", err)
	}
}

func TestRemovedTargetGetsNothingAndLeavesNoQueue(t *testing.T) {
	t.Parallel()
	s, r := start(t, nil), receive(t)
	s.target(t, "a", r.URL)
	check(t, s.store.Targets.Delete(t.Context(), "a"))
	await(t, func() bool {
		_, err := s.bus.JetStream().Consumer(t.Context(), bus.StreamNotify, "notify-a")
		return err != nil
	})
	s.changed(t, event.TypeRunQueued, run.Run{ID: "r1", State: run.Queued})
	other := receive(t)
	s.target(t, "b", other.URL)
	s.changed(t, event.TypeRunQueued, run.Run{ID: "r2", State: run.Queued})
	await(t, func() bool { return other.received() > 0 })
	if n := r.received(); n > 0 {
		t.Errorf("the removed target got %d notifications", n)
	}
}

// statuses is a forge that keeps the statuses of a commit, as GitHub's and Gitea's API documents them.
type statuses struct {
	*httptest.Server
	mu   sync.Mutex
	fail int // answers with 502 first
	got  []map[string]string
}

func (f *statuses) last() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.got) == 0 {
		return nil
	}
	return f.got[len(f.got)-1]
}

func startStatuses(t *testing.T, path string) *statuses {
	f := &statuses{fail: 1}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		auth := r.Header.Get("Authorization") + r.Header.Get("Private-Token")
		var m map[string]string
		switch {
		case !strings.HasSuffix(auth, forgeToken) || json.NewDecoder(r.Body).Decode(&m) != nil:
			w.WriteHeader(http.StatusUnauthorized)
		case f.fail > 0:
			f.fail--
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusBadGateway)
		default:
			f.got = append(f.got, m)
			w.WriteHeader(http.StatusCreated)
		}
	})
	f.Server = httptest.NewServer(mux)
	t.Cleanup(f.Close)
	return f
}

func TestCommitGetsTheStatusOfItsRun(t *testing.T) {
	t.Parallel()
	for provider, at := range map[string]struct{ path, context, failure string }{
		"github":  {"/api/v3/repos/team/app/statuses/" + commit, "context", "failure"},
		"gitea":   {"/api/v1/repos/team/app/statuses/" + commit, "context", "failure"},
		"forgejo": {"/api/v1/repos/team/app/statuses/" + commit, "context", "failure"},
		"gitlab":  {"/api/v4/projects/team%2Fapp/statuses/" + commit, "name", "failed"},
	} {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			f := startStatuses(t, at.path)
			s := start(t, func(n *notify.Notifier) {
				n.Forges = map[string]string{strings.TrimPrefix(f.URL, "http://"): provider}
			})
			r := run.Run{ID: "r1", Task: "app", TaskUID: "u1", State: run.Queued, Cause: run.Cause{Kind: run.CauseCommit,
				Repository: f.URL + "/team/app.git", Commit: commit}, Spec: run.Spec{Refs: &run.SecretRefs{Context: "forge"}}}
			s.changed(t, event.TypeRunQueued, r)
			await(t, func() bool { return f.last()["state"] == "pending" })
			r.State, r.Reason = run.Failed, "step build: exit code 1"
			s.changed(t, event.TypeRunFinished, r)
			await(t, func() bool { return f.last()["state"] == at.failure })
			got := f.last()
			if got[at.context] != "kiln/app" || got["target_url"] != "https://kiln.test/runs/r1" || !strings.Contains(got["description"], "exit code 1") {
				t.Errorf("status %v", got)
			}
			if strings.Contains(s.log.String(), forgeToken) {
				t.Error("the log holds the forge's token")
			}
		})
	}
}

func TestForgesThatHangDelayNoOther(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	var mu sync.Mutex
	asked := map[string]int{}
	silent := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.Host]++
		mu.Unlock()
		<-hang
	})
	s := start(t, func(n *notify.Notifier) { n.Forges = map[string]string{}; n.Backoff = nil })
	hook := func(url string) {
		_, err := s.store.Hooks.Create(t.Context(), event.Hash(url), event.Hook{ID: event.Hash(url), Provider: "github", URL: url + "/team/app"})
		check(t, err)
	}
	commitOf := func(id, url string) run.Run {
		return run.Run{ID: id, Task: "app", TaskUID: "u1", State: run.Succeeded, Cause: run.Cause{Kind: run.CauseCommit,
			Repository: url + "/team/app.git", Commit: commit}, Spec: run.Spec{Refs: &run.SecretRefs{Context: "forge"}}}
	}
	live := startStatuses(t, "/api/v3/repos/team/app/statuses/"+commit)
	live.fail = 0
	hook(live.URL)
	for i := range 24 {
		f := httptest.NewServer(silent)
		t.Cleanup(f.Close)
		hook(f.URL)
		for j := range 8 {
			s.changed(t, event.TypeRunFinished, commitOf(fmt.Sprintf("h%dx%d", i, j), f.URL))
		}
	}
	t.Cleanup(func() { close(hang) }) // before the servers are closed
	await(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(asked) == 24 })
	begin := time.Now()
	for i := range 20 {
		s.changed(t, event.TypeRunFinished, commitOf(fmt.Sprintf("l%d", i), live.URL))
	}
	await(t, func() bool { live.mu.Lock(); defer live.mu.Unlock(); return len(live.got) == 20 })
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the status of a live forge took %s", took)
	}
	mu.Lock()
	defer mu.Unlock()
	for host, n := range asked {
		if n > 4 {
			t.Errorf("%s was asked %d times at once", host, n)
		}
	}
}
