package worker

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
	"kiln/internal/run"
)

// A pusher is a rig whose builds are staged, with another registry that asks for a login.
type pusher struct {
	*rig
	other *registrytest.Registry
	n     int
}

// run executes a task of these steps, and returns how it ended.
func (p *pusher) run(t *testing.T, steps ...string) event.Report {
	t.Helper()
	p.n++
	r := fileRun("version: v1.1.0\nsteps:\n- " + strings.Join(steps, "\n- ") + "\n")
	r.ID = fmt.Sprintf("r%011d", p.n)
	rep := final(p.execute(t, p.assign(t, r, nil)))
	if rep == nil {
		t.Fatal("no final report")
	}
	return *rep
}

// server is the other registry for everybody, with a fault that may answer in its place.
func (p *pusher) server(t *testing.T, fault func(w http.ResponseWriter, r *http.Request) bool) (host string) {
	t.Helper()
	handler := p.other.Store.Handler(open{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !fault(w, r) {
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func TestPushes(t *testing.T) {
	t.Parallel()
	s := &script{}
	p := &pusher{rig: newRig(t, s), other: registrytest.Start(t)}
	s.build = p.staging
	t.Run("first image that fails stops the rest", p.stopAtFailure)
	t.Run("a digest is not pushed", p.refuseDigest)
	t.Run("registries that restart are waited for", p.waitForRestart)
	t.Run("logout", p.logout)
}

func (p *pusher) stopAtFailure(t *testing.T) {
	closed := p.server(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			http.Error(w, `{"errors":[{"code":"DENIED","message":"read only"}]}`, http.StatusForbidden)
		}
		return r.Method == http.MethodPost
	})
	far := p.server(t, func(http.ResponseWriter, *http.Request) bool { return false })
	names := []string{far + "/first:1", closed + "/second:1", far + "/third:1"}
	rep := p.run(t, "build: -t "+strings.Join(names, " -t ")+" .", "push: ["+strings.Join(names, ", ")+"]")
	if rep.Final != run.Failed || !strings.Contains(rep.Reason, "push "+closed+"/second:1: ") || !strings.Contains(rep.Reason, "read only") || len(rep.Images) != 1 {
		t.Errorf("final report = %+v", rep)
	}
	for repository, want := range map[string]bool{"first": true, "second": false, "third": false} {
		if _, err := p.other.Store.Resolve(t.Context(), repository, "1"); (err == nil) != want {
			t.Errorf("%s: %v, want it to be there: %t", repository, err, want)
		}
	}
}

func (p *pusher) refuseDigest(t *testing.T) {
	own := p.reg.Host + "/digest"
	if rep := p.run(t, "build: -t "+own+":1 .", "push: ["+own+":1]"); rep.Final != run.Succeeded {
		t.Fatalf("%+v", rep)
	}
	d, err := p.reg.Store.Resolve(t.Context(), "digest", "1")
	if err != nil {
		t.Fatal(err)
	}
	rep := p.run(t, "cmd: docker pull "+own+"@"+d.Digest, "push: ['"+own+"@"+d.Digest+"']")
	if rep.Final != run.Failed || !strings.Contains(rep.Reason, "only a tag can be pushed, not a digest") {
		t.Errorf("%+v", rep)
	}
}

// overHTTP is the run's own registry as a process of its own.
type overHTTP struct{ client *registry.Client }

func (o overHTTP) Publish(ctx context.Context, t event.Tokens, p registry.Publication) ([]registry.Published, error) {
	return o.client.Publish(ctx, t.Registry, p)
}

// A registry that restarts hangs up, then is not ready, and may have published what it did not live to tell.
func (p *pusher) waitForRestart(t *testing.T) {
	handler := p.reg.Store.Handler(registrytest.Authorizer{})
	var asked, uploads atomic.Int32
	own := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			panic(http.ErrAbortHandler)
		case 2:
			http.Error(w, "starting", http.StatusServiceUnavailable)
		case 3:
			handler.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		default:
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(own.Close)
	defer func(direct Publisher) { p.w.Publisher = direct }(p.w.Publisher)
	p.w.Publisher = overHTTP{registry.NewClient(own.URL, nil)}
	far := p.server(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost || uploads.Add(1) > 1 {
			return false
		}
		http.Error(w, "starting", http.StatusServiceUnavailable)
		return true
	})
	names := []string{p.reg.Host + "/waits:{{.Run.ID}}", far + "/waits:1"}
	rep := p.run(t, "build: -t "+strings.Join(names, " -t ")+" .", "push: ['"+strings.Join(names, "', '")+"']")
	if rep.Final != run.Succeeded || len(rep.Images) != 2 || asked.Load() != 4 || uploads.Load() < 2 || rep.Steps[1].Tries != 1 {
		t.Errorf("final report = %+v after %d publications and %d uploads", rep, asked.Load(), uploads.Load())
	}
}

// A registry is named by its URL, too, and a run that has signed out is a stranger again.
func (p *pusher) logout(t *testing.T) {
	fill := strings.NewReplacer("HOST", p.other.Host, "TOKEN", p.other.Token).Replace
	rep := p.run(t, fill("cmd: docker login -u me -p TOKEN http://HOST/v2/"), fill("{cmd: docker pull HOST/none:1, ignoreErrors: true}"),
		fill("cmd: docker logout https://HOST/"), fill("cmd: docker pull HOST/none:1"))
	if rep.Final != run.Failed || !strings.Contains(rep.Steps[1].Error, "UNKNOWN") || !strings.Contains(rep.Reason, "UNAUTHORIZED") {
		t.Errorf("final report = %+v", rep)
	}
}
