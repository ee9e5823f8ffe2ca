package triggers_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"kiln/internal/run"
)

// TestImageOfAnotherRegistryIsPolled follows an image of a registry that tells nobody of pushes.
func TestImageOfAnotherRegistryIsPolled(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64 // for manifests, of which these are refused
	var refuse atomic.Bool
	var refused, early atomic.Int64 // when the last one was, and how many came too early after it
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/manifests/") {
			asked.Add(1)
			since := time.Since(time.Unix(0, refused.Load())) // another may have been under way
			if since > 100*time.Millisecond && since < 900*time.Millisecond {
				early.Add(1)
			}
			if refuse.CompareAndSwap(true, false) {
				refused.Store(time.Now().UnixNano())
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "http://") + "/team/base:1"
	push := func(img v1.Image) string {
		t.Helper()
		if err := crane.Push(img, ref); err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	image := func() v1.Image {
		t.Helper()
		img, err := random.Image(16, 1)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	one := image()
	push(one)

	r := newRig(t)
	r.poll = 50 * time.Millisecond
	repo, url := r.repo("app")
	repo.Write("Dockerfile", "FROM "+ref+"\n", 0)
	repo.Commit("from elsewhere")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	polls := func(n int64) {
		t.Helper()
		from := asked.Load()
		r.eventually("polls", func() bool { return asked.Load() >= from+n })
	}
	push(one) // again
	polls(3)
	r.wantRuns(app, 0)

	two := push(image())
	got := r.wantRuns(app, 1)[0]
	if got.Cause.Kind != run.CauseBase || got.Cause.Moved[0].To != two || got.Spec.Pins[canonical(t, ref)] != two {
		t.Errorf("run %+v, pinned to %v", got.Cause, got.Spec.Pins)
	}
	polls(3)
	r.wantRuns(app, 1)

	refuse.Store(true)
	r.eventually("the refusal", func() bool { return refused.Load() != 0 })
	three := push(image())
	if got := r.wantRuns(app, 2)[1]; got.Cause.Moved[0].To != three {
		t.Errorf("run because of %+v, want %s", got.Cause.Moved, three)
	}
	if n := early.Load(); n > 0 {
		t.Errorf("%d requests while the registry had asked to be left in peace", n)
	}
}
