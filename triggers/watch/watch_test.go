package watch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/natstest"
	"kiln/internal/store"
	"kiln/triggers/watch"
)

// A foreign registry is a real one behind a handler that a test can put in its way.
type foreign struct {
	t    testing.TB
	host string
	// before answers a request for a manifest itself and returns true, or lets the registry.
	before atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]

	mu     sync.Mutex
	all    int      // requests of the watcher
	asked  []string // method and path of requests for manifests, of the watcher alone
	atOnce int      // such requests in progress
	most   int
}

// pusher marks the test's own requests.
const pusher = "kiln-test-pusher"

func startForeign(t testing.TB) *foreign {
	t.Helper()
	f := &foreign{t: t}
	real := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.UserAgent(), pusher) {
			real.ServeHTTP(w, r)
			return
		}
		f.mu.Lock()
		f.all++
		f.mu.Unlock()
		if strings.Contains(r.URL.Path, "/manifests/") {
			f.mu.Lock()
			f.asked = append(f.asked, r.Method+" "+r.URL.Path)
			f.atOnce++
			f.most = max(f.most, f.atOnce)
			f.mu.Unlock()
			defer func() { f.mu.Lock(); f.atOnce--; f.mu.Unlock() }()
		}
		if b := f.before.Load(); b != nil && (*b)(w, r) {
			return
		}
		real.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	f.host = strings.TrimPrefix(srv.URL, "http://")
	return f
}

// answer has the registry's handler give way to another.
func (f *foreign) answer(before func(w http.ResponseWriter, r *http.Request) bool) {
	f.before.Store(&before)
}

func (f *foreign) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.asked...)
}

// calls returns the number of all requests.
func (f *foreign) calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.all
}

// push pushes an image under a tag and returns its digest.
func (f *foreign) push(tag string, img v1.Image) string {
	f.t.Helper()
	ref, err := name.ParseReference(f.host + "/" + tag)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithUserAgent(pusher)); err != nil {
		f.t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		f.t.Fatal(err)
	}
	return d.String()
}

// name returns the canonical name of a tag.
func (f *foreign) name(tag string) graph.Name { return graph.Name(f.host + "/" + tag) }

func image(t testing.TB) v1.Image {
	t.Helper()
	img, err := random.Image(256, 1)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func newWatcher(t testing.TB, b *bus.Bus) *watch.Watcher {
	t.Helper()
	s, err := store.Open(t.Context(), b.JetStream(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return &watch.Watcher{Store: s, Bus: b, Registry: "kiln.example:7070", Every: 30 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
}

// run runs the watcher until stop is called.
func run(t testing.TB, w *watch.Watcher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// moves returns a channel of the events that say that an image has moved.
func moves(t testing.TB, b *bus.Bus) <-chan event.RegistryPushed {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan event.RegistryPushed, 100), make(chan error, 1)
	go func() {
		done <- b.Tail(ctx, bus.StreamEvents, event.RegistryFilter, 0, true, func(_ uint64, data []byte) bool {
			var ev event.Event
			var p event.RegistryPushed
			if err := errors.Join(json.Unmarshal(data, &ev), json.Unmarshal(ev.Data, &p)); err != nil {
				t.Error(err)
			}
			out <- p
			return true
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return out
}

func next[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing came within a minute")
		panic("unreachable")
	}
}

// seen waits until the stored state of an image has a digest.
func seen(t testing.TB, w *watch.Watcher, n graph.Name, digest string) event.TrackedImage {
	t.Helper()
	return until(t, w, n, func(v event.TrackedImage) bool { return v.Digest == digest })
}

func until(t testing.TB, w *watch.Watcher, n graph.Name, ok func(event.TrackedImage) bool) (state event.TrackedImage) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	found := false
	err := w.Store.Images.Watch(ctx, event.Hash(string(n)), func(e *store.Entry[event.TrackedImage]) bool {
		found = e != nil && ok(e.Value)
		if found {
			state = e.Value
		}
		return !found
	})
	if err != nil || !found {
		t.Fatalf("state of %s did not become what it should: %v", n, err)
	}
	return state
}

func TestMovedImageIsToldOfOnceAndTheSameDigestNever(t *testing.T) {
	t.Parallel()
	b, f := natstest.Start(t), startForeign(t)
	w, told := newWatcher(t, b), moves(t, b)
	n, a, z := f.name("team/base:1"), image(t), image(t)
	da := f.push("team/base:1", a)
	w.Track([]graph.Name{n})
	run(t, w)
	seen(t, w, n, da)

	f.push("team/base:1", a)
	f.push("team/base:2", z)
	dz := f.push("team/base:1", z)
	if p := next(t, told); p.Digest != dz || p.Registry != f.host || p.Repository != "team/base" || p.Tag != "1" || p.Provider != watch.Provider {
		t.Errorf("told of %+v, want %s:1 at %s", p, n, dz)
	}
	state := seen(t, w, n, dz)
	if state.Name != string(n) || state.Next.IsZero() || state.Error != "" {
		t.Errorf("state %+v", state)
	}

	// To and fro, each of which is a move.
	for range 2 {
		f.push("team/base:1", a)
		if p := next(t, told); p.Digest != da {
			t.Errorf("told of %s, want %s", p.Digest, da)
		}
		f.push("team/base:1", z)
		if p := next(t, told); p.Digest != dz {
			t.Errorf("told of %s, want %s", p.Digest, dz)
		}
	}
}

func TestMoveWhileTheWatcherWasDownIsTold(t *testing.T) {
	t.Parallel()
	b, f := natstest.Start(t), startForeign(t)
	w, told := newWatcher(t, b), moves(t, b)
	n := f.name("base:1")
	da := f.push("base:1", image(t))
	w.Track([]graph.Name{n})
	stop := run(t, w)
	before := seen(t, w, n, da)
	stop()
	dz := f.push("base:1", image(t))

	w = newWatcher(t, b)
	w.Track([]graph.Name{n})
	stop = run(t, w)
	if p := next(t, told); p.Digest != dz {
		t.Errorf("told of %s, want %s", p.Digest, dz)
	}
	seen(t, w, n, dz)
	stop()

	// As if it had been killed after it has told, before it could store that: it is told once.
	if _, err := w.Store.Images.Put(t.Context(), event.Hash(string(n)), before); err != nil {
		t.Fatal(err)
	}
	w = newWatcher(t, b)
	w.Track([]graph.Name{n})
	run(t, w)
	seen(t, w, n, dz)
	last := f.push("base:1", image(t))
	if p := next(t, told); p.Digest != last {
		t.Errorf("told of %s again, want %s", p.Digest, last)
	}
}

func TestMoveThatSomebodyElseFindsIsTold(t *testing.T) {
	t.Parallel()
	b, f := natstest.Start(t), startForeign(t)
	w, told := newWatcher(t, b), moves(t, b)
	w.Every = time.Hour
	n := f.name("base:1")
	da := f.push("base:1", image(t))
	if d, err := w.Resolve(t.Context(), n, false); err != nil || d != da {
		t.Fatalf("Resolve = %s, %v, want %s", d, err, da)
	}
	// It moves after somebody was told its digest, and before it is tracked.
	dz := f.push("base:1", image(t))
	w.Track([]graph.Name{n})
	run(t, w)
	if p := next(t, told); p.Digest != dz {
		t.Errorf("told of %s, want %s", p.Digest, dz)
	}
	seen(t, w, n, dz)
	dy := f.push("base:1", image(t))
	if d, err := w.Resolve(t.Context(), n, true); err != nil || d != dy {
		t.Fatalf("Resolve = %s, %v, want %s", d, err, dy)
	}
	if p := next(t, told); p.Digest != dy {
		t.Errorf("told of %s, want %s", p.Digest, dy)
	}
}

// TestPollsAreSpread has a watcher that polls as often as it does by default.
func TestPollsAreSpread(t *testing.T) {
	t.Parallel()
	f, w := startForeign(t), newWatcher(t, natstest.Start(t))
	w.Every = 0
	const images = 12
	names := make([]graph.Name, images)
	digests := make([]string, images)
	for i := range names {
		tag := fmt.Sprint("base:v", i)
		names[i], digests[i] = f.name(tag), f.push(tag, image(t))
	}
	begun := time.Now()
	run(t, w)
	w.Track(names)
	var first, last time.Time
	for i, n := range names {
		next := seen(t, w, n, digests[i]).Next
		if next.Before(begun.Add(9*time.Minute)) || next.After(time.Now().Add(11*time.Minute)) {
			t.Errorf("%s is polled again after %s, want 10 minutes, less or more by up to a tenth", n, next.Sub(begun))
		}
		if i == 0 || next.Before(first) {
			first = next
		}
		if next.After(last) {
			last = next
		}
	}
	if last.Sub(first) < time.Second {
		t.Errorf("all are polled again within %s", last.Sub(first))
	}
}

func TestWhatIsPinnedLocalOrAReferrerIsNotPolled(t *testing.T) {
	t.Parallel()
	b, f := natstest.Start(t), startForeign(t)
	w := newWatcher(t, b)
	n := f.name("base:1")
	d := f.push("base:1", image(t))
	fallback := "base:sha256-" + strings.TrimPrefix(d, "sha256:")
	f.push(fallback, image(t))
	f.push(fallback+".sig", image(t))
	w.Registry = f.host
	run(t, w)
	w.Track([]graph.Name{n, f.name("base@" + d)})

	other := newWatcher(t, b)
	other.Track([]graph.Name{f.name("base@" + d), f.name("base:1@" + d), f.name(fallback), f.name(fallback + ".sig"), n})
	run(t, other)
	seen(t, other, n, d)
	other.Track(nil)
	for _, r := range f.requests() {
		if r != "HEAD /v2/base/manifests/1" {
			t.Errorf("request %s", r)
		}
	}
}

func TestManifestThatIsGoneKeepsItsDigestAndSaysWhy(t *testing.T) {
	t.Parallel()
	b, f := natstest.Start(t), startForeign(t)
	w, told := newWatcher(t, b), moves(t, b)
	n, img := f.name("base:1"), image(t)
	d := f.push("base:1", img)
	w.Track([]graph.Name{n})
	run(t, w)
	seen(t, w, n, d)
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	if _, err := w.Resolve(t.Context(), n, true); !errors.Is(err, watch.ErrNotFound) {
		t.Errorf("Resolve: %v, want ErrNotFound", err)
	}
	if v := until(t, w, n, func(v event.TrackedImage) bool { return v.Error != "" }); v.Digest != d || !strings.Contains(v.Error, "no such image") {
		t.Errorf("state %+v, want digest %s", v, d)
	}
	f.answer(func(http.ResponseWriter, *http.Request) bool { return false })
	until(t, w, n, func(v event.TrackedImage) bool { return v.Error == "" })
	last := f.push("base:1", image(t))
	if p := next(t, told); p.Digest != last {
		t.Errorf("told of %s, want %s alone", p.Digest, last)
	}
}
