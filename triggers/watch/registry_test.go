package watch_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kiln/internal/graph"
	"kiln/internal/natstest"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
	"kiln/triggers/watch"
)

// ours is the co-located registry.
type ours struct{ store *registry.Store }

func (o ours) Digest(ctx context.Context, repository, reference string) (string, error) {
	d, err := o.store.Resolve(ctx, repository, reference)
	return d.Digest, err
}

func TestOwnRegistryIsAskedInProcess(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`
	dgst, size, err := r.Store.PutBlob(t.Context(), "team/base", strings.NewReader(config))
	if err != nil {
		t.Fatal(err)
	}
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`,
		mediaType, dgst, size)
	want, err := r.Store.PutManifest(t.Context(), "team/base", "1", mediaType, []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	w := newWatcher(t, natstest.Start(t))
	w.Registry, w.Local = "kiln.example:7070", ours{r.Store}
	if d, err := w.Resolve(t.Context(), "kiln.example:7070/team/base:1", false); err != nil || d != want {
		t.Errorf("Resolve = %s, %v, want %s", d, err, want)
	}
	_, err = w.Resolve(t.Context(), "kiln.example:7070/team/base:2", true)
	if !errors.Is(err, registry.ErrManifestUnknown) || !strings.Contains(err.Error(), "kiln.example:7070/team/base:2") {
		t.Errorf("Resolve: %v, want ErrManifestUnknown with the name", err)
	}
}

func TestPinnedNameNeedsNoRegistry(t *testing.T) {
	t.Parallel()
	w := newWatcher(t, natstest.Start(t))
	want := "sha256:" + strings.Repeat("a", 64)
	if d, err := w.Resolve(t.Context(), graph.Name("registry.invalid/x@"+want), true); err != nil || d != want {
		t.Errorf("Resolve = %s, %v", d, err)
	}
}

func TestAnswersAreSharedUnlessTheyMustBeFresh(t *testing.T) {
	t.Parallel()
	f := startForeign(t)
	w := newWatcher(t, natstest.Start(t))
	d := f.push("base:1", image(t))
	resolve := func(fresh bool) {
		if got, err := w.Resolve(t.Context(), f.name("base:1"), fresh); err != nil || got != d {
			t.Errorf("Resolve = %s, %v, want %s", got, err, d)
		}
	}
	var calls sync.WaitGroup
	for range 50 {
		calls.Go(func() { resolve(false) })
	}
	calls.Wait()
	if n := len(f.requests()); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
	resolve(true)
	if n := len(f.requests()); n != 2 {
		t.Errorf("%d requests after a fresh one, want 2", n)
	}
	for range 50 {
		calls.Go(func() { resolve(true) })
	}
	calls.Wait()
	if f.most != 1 {
		t.Errorf("%d requests for one image at once", f.most)
	}
}

func TestRegistryIsAskedByFewAtOnce(t *testing.T) {
	t.Parallel()
	f := startForeign(t)
	w := newWatcher(t, natstest.Start(t))
	img := image(t)
	release := make(chan struct{})
	var waiting atomic.Int32
	full := make(chan struct{})
	f.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			if waiting.Add(1) == 8 {
				close(full)
			}
			<-release
		}
		return false
	})
	var calls sync.WaitGroup
	for i := range 30 {
		tag := fmt.Sprintf("base:%d", i)
		f.push(tag, img)
		calls.Go(func() {
			if _, err := w.Resolve(t.Context(), f.name(tag), false); err != nil {
				t.Error(err)
			}
		})
	}
	next(t, full)
	close(release)
	calls.Wait()
	if f.most != 8 {
		t.Errorf("%d requests at once, want 8", f.most)
	}
}

func TestRegistryThatAsksToWaitIsLeftInPeace(t *testing.T) {
	t.Parallel()
	f := startForeign(t)
	w := newWatcher(t, natstest.Start(t))
	n, other := f.name("base:1"), f.name("other:1")
	d := f.push("base:1", image(t))
	do := f.push("other:1", image(t))
	var first atomic.Bool
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") || !first.CompareAndSwap(false, true) {
			return false
		}
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	begin := time.Now()
	_, err := w.Resolve(t.Context(), n, false)
	busy, ok := errors.AsType[*watch.BusyError](err)
	if !ok || busy.Host != f.host || busy.Until.Before(begin.Add(time.Second)) {
		t.Fatalf("Resolve: %v, want a BusyError of 2 s", err)
	}
	if _, err := w.Resolve(t.Context(), other, true); err == nil || !strings.Contains(err.Error(), "has asked to wait until") {
		t.Errorf("Resolve of another image: %v", err)
	}
	w.Track([]graph.Name{n, other})
	run(t, w)
	seen(t, w, n, d)
	seen(t, w, other, do)
	if early := time.Until(busy.Until); early > 0 {
		t.Errorf("asked %v early", early)
	}
	if r := f.requests(); len(r) < 3 {
		t.Errorf("requests %q", r)
	}
}

func TestBrokenRegistryIsPolledLessAndStillAsked(t *testing.T) {
	t.Parallel()
	broken, f := startForeign(t), startForeign(t)
	w := newWatcher(t, natstest.Start(t))
	broken.answer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	polls := make(chan struct{}, 100)
	f.answer(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			polls <- struct{}{}
		}
		return false
	})
	f.push("base:1", image(t))
	n := broken.name("base:1")
	var tracked []graph.Name
	for i := range 20 {
		tracked = append(tracked, broken.name(fmt.Sprintf("base:%d", i)))
	}
	w.Track(append(tracked, f.name("base:1")))
	stop := run(t, w)
	for range 10 {
		next(t, polls)
	}
	stop()
	if _, err := w.Resolve(t.Context(), n, true); err == nil || !strings.Contains(err.Error(), "502") {
		t.Errorf("Resolve: %v, want what the registry says", err)
	}
	if n := broken.calls(); n > 5+1 {
		t.Errorf("a broken registry was asked %d times", n)
	}
}

func TestRegistryWithoutHEADIsAskedWithGET(t *testing.T) {
	t.Parallel()
	f := startForeign(t)
	w := newWatcher(t, natstest.Start(t))
	d := f.push("base:1", image(t))
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead {
			return false
		}
		w.WriteHeader(http.StatusMethodNotAllowed)
		return true
	})
	if got, err := w.Resolve(t.Context(), f.name("base:1"), false); err != nil || got != d {
		t.Errorf("Resolve = %s, %v, want %s", got, err, d)
	}
}

func TestUnchangedManifestIsNotSentAgain(t *testing.T) {
	t.Parallel()
	f := startForeign(t)
	w := newWatcher(t, natstest.Start(t))
	d := f.push("base:1", image(t))
	var unchanged atomic.Int32
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("If-None-Match") == `"one"` {
			unchanged.Add(1)
			w.WriteHeader(http.StatusNotModified)
			return true
		}
		w.Header().Set("ETag", `"one"`)
		return false
	})
	for range 3 {
		if got, err := w.Resolve(t.Context(), f.name("base:1"), true); err != nil || got != d {
			t.Errorf("Resolve = %s, %v, want %s", got, err, d)
		}
	}
	if n := unchanged.Load(); n != 2 {
		t.Errorf("%d answers said that nothing has changed, want 2", n)
	}
}

func TestCredentialsGoToTheirRegistry(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"Basic", "Bearer"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := startForeign(t)
			w := newWatcher(t, natstest.Start(t))
			d := f.push("base:1", image(t))
			f.answer(guarded(f, kind))
			if _, err := w.Resolve(t.Context(), f.name("base:1"), false); err == nil || !strings.Contains(err.Error(), "credential") {
				t.Errorf("Resolve without a credential: %v", err)
			}
			w.Login = func(_ context.Context, host string) (string, string, error) {
				if host != f.host {
					return "", "", fmt.Errorf("asked for %s", host)
				}
				return "kim", "secret", nil
			}
			if got, err := w.Resolve(t.Context(), f.name("base:1"), true); err != nil || got != d {
				t.Errorf("Resolve = %s, %v, want %s", got, err, d)
			}
			w.Login = func(context.Context, string) (string, string, error) { return "", "", errors.New("sealed") }
			if _, err := w.Resolve(t.Context(), f.name("other:1"), true); err == nil || !strings.Contains(err.Error(), "credential for registry "+f.host+": sealed") {
				t.Errorf("Resolve with a credential that cannot be read: %v", err)
			}
		})
	}
}

// guarded lets kim in, by password or by a token for one.
func guarded(f *foreign, kind string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		user, password, _ := r.BasicAuth()
		known := user == "kim" && password == "secret"
		switch {
		case r.URL.Path == "/token" && known && strings.HasPrefix(r.URL.Query().Get("scope"), "repository:base:pull"):
			fmt.Fprint(w, `{"token":"let-kim-in"}`)
			return true
		case kind == "Basic" && known, kind == "Bearer" && r.Header.Get("Authorization") == "Bearer let-kim-in":
			return false
		case kind == "Bearer" && r.URL.Path != "/token":
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+f.host+`/token",service="test"`)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}

func TestHostsThatAreNotAllowedAreNotAsked(t *testing.T) {
	t.Parallel()
	f, inner := startForeign(t), startForeign(t)
	w := newWatcher(t, natstest.Start(t))
	w.Allow = func(host string) error {
		if host != f.host {
			return errors.New("it is not on the list")
		}
		return nil
	}
	f.push("base:1", image(t))
	if _, err := w.Resolve(t.Context(), inner.name("base:1"), true); err == nil || !strings.Contains(err.Error(), "it is not on the list") {
		t.Errorf("Resolve: %v", err)
	}
	f.answer(func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, "http://"+inner.host+r.URL.Path, http.StatusTemporaryRedirect)
		return strings.Contains(r.URL.Path, "/manifests/")
	})
	if _, err := w.Resolve(t.Context(), f.name("base:1"), true); err == nil || !strings.Contains(err.Error(), "it is not on the list") {
		t.Errorf("Resolve that is sent elsewhere: %v", err)
	}
	if r := inner.requests(); len(r) != 0 {
		t.Errorf("requests %q", r)
	}
}

func TestResolveEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := startForeign(t)
	w := newWatcher(t, natstest.Start(t))
	d := f.push("base:1", image(t))
	arrived, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.answer(func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() { close(arrived); <-release })
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := w.Resolve(ctx, f.name("base:1"), false)
		done <- err
	}()
	next(t, arrived)
	cancel()
	if err := next(t, done); !errors.Is(err, context.Canceled) {
		t.Errorf("Resolve: %v, want that it was cancelled", err)
	}
	close(release)
	if got, err := w.Resolve(t.Context(), f.name("base:1"), false); err != nil || got != d {
		t.Errorf("Resolve by another = %s, %v, want %s", got, err, d)
	}
}
