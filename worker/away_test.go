package worker

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/solve"
)

// A front passes requests on to a registry in another process while that is not away.
type front struct {
	*registry.Client
	host  string
	away  atomic.Pointer[http.HandlerFunc] // answers while the registry is away
	asked atomic.Int64                     // then
}

func newFront(t *testing.T, g *rig) *front {
	t.Helper()
	target, err := url.Parse(g.reg.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{}
	proxy := httputil.NewSingleHostReverseProxy(target)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away := f.away.Load(); away != nil {
			f.asked.Add(1)
			(*away)(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	f.Client, f.host = registry.NewClient(srv.URL, srv.Client()), strings.TrimPrefix(srv.URL, "http://")
	g.reg.Host, g.w.Registry, g.w.Apart, g.w.Publisher = f.host, f.host, true, f
	return f
}

// Publish implements Publisher.
func (f *front) Publish(ctx context.Context, t event.Tokens, p registry.Publication) ([]registry.Published, error) {
	return f.Client.Publish(ctx, t.Registry, p)
}

// An attempt whose registry does not answer is handed back, so that another one is made, but not before it does.
func TestAttemptWaitsForTheRegistry(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]http.HandlerFunc{
		"503": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the registry cannot be reached now", http.StatusServiceUnavailable)
		},
		"no answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &script{}
			g := newRig(t, s)
			f := newFront(t, g)
			s.build = func(ctx context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
				_, err := f.Resolve(ctx, g.reg.Token, "base", "1") // as for FROM
				if err != nil && !errors.Is(err, registry.ErrManifestUnknown) {
					return solve.Built{}, err
				}
				return g.stage(ctx, b)
			}
			f.away.Store(&away)
			as := g.assign(t, fileRun("version: v1.1.0\nsteps:\n- build: -t "+f.host+"/app:1 .\n- push: ["+f.host+"/app:1]\n"), nil)
			done := make(chan *event.Report)
			go func() { done <- final(g.execute(t, as)) }()
			for f.asked.Load() < 3 { // the build, and questions whether it is back
				select {
				case rep := <-done:
					t.Fatalf("ended while the registry was away: %+v", rep)
				case <-time.After(10 * time.Millisecond):
				}
			}
			f.away.Store(nil)
			rep := <-done
			if rep == nil || rep.Final != event.HandedBack || rep.Blameless || !strings.Contains(rep.Reason, "the registry did not answer") {
				t.Fatalf("final report = %+v, want it handed back", rep)
			}
			next := as
			next.Run.Attempt = 2
			if rep := final(g.execute(t, g.assign(t, next.Run, nil))); rep == nil || rep.Final != run.Succeeded {
				t.Errorf("the next attempt: %+v", rep)
			}
		})
	}
}

// What is no lack of an answer is told at once.
func TestAttemptDoesNotWaitForOthers(t *testing.T) {
	t.Parallel()
	g := newRig(t, &script{})
	f := newFront(t, g)
	a := &attempt{w: g.w}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, refused := registry.NewClient("http://"+nobody, http.DefaultClient).Resolve(t.Context(), "", "app", "1")
	_, unknown := f.Resolve(t.Context(), g.reg.Token, "app", "1")
	_, denied := f.Resolve(t.Context(), "wrong", "app", "1")
	if !errors.Is(unknown, registry.ErrManifestUnknown) || !errors.Is(denied, registry.ErrUnauthenticated) {
		t.Fatalf("errors of the registry: %v, %v", unknown, denied)
	}
	for _, err := range []error{nil, refused, unknown, denied, errors.Join(solve.ErrUnavailable, errors.New(f.host+": connection refused"))} {
		if got := a.awaitRegistry(t.Context(), err); got != err {
			t.Errorf("awaitRegistry(%v) = %v, want it as it is", err, got)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	together, apart := &attempt{w: &Worker{Registry: nobody}}, &attempt{w: &Worker{Registry: nobody, Apart: true}}
	if got := together.awaitRegistry(t.Context(), refused); got != refused {
		t.Errorf("a registry in the same process: %v", got)
	}
	if got := apart.awaitRegistry(ended, refused); got != refused {
		t.Errorf("an attempt that is to end: %v", got)
	}
	for _, w := range []*Worker{{Registry: nobody, Apart: true}, {Registry: "registry.example.com", RegistryAt: nobody, Apart: true}} {
		if a := (&attempt{w: w}); !a.unanswered(refused.Error()) {
			t.Errorf("%s at %q: not taken for a lack of an answer: %v", w.Registry, w.RegistryAt, refused)
		}
	}
}
