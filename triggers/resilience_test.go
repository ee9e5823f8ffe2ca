package triggers_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/triggers/decide"
)

func TestErrorsInOtherWordsAreTheSameTrouble(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, location := r.repo("app")
	behind, err := url.Parse(location)
	if err != nil {
		t.Fatal(err)
	}
	path := behind.Path
	behind.Path = ""
	var broken atomic.Bool
	var asked atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(behind)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !broken.Load() {
			proxy.ServeHTTP(w, req)
			return
		}
		w.WriteHeader(500 + int(asked.Add(1)%5)) // never the same twice in a row
	}))
	t.Cleanup(srv.Close)
	r.start()
	app := r.create("app", srv.URL+path+"#main")
	r.ready(app)
	before, after := repo.Git("rev-parse", "HEAD"), strings.Repeat("2", 40)
	broken.Store(true)
	r.pushed("e1", srv.URL+path, "refs/heads/main", before, after)
	r.eventually("looked at again and again", func() bool { return asked.Load() >= 3 })
	r.settled()
	r.caughtUp()
	if all := strings.Split(r.reasons(app, decide.Blocked), "\n"); len(all) != 1 {
		t.Errorf("%d decisions that the track is blocked, want one:\n%s", len(all), strings.Join(all, "\n"))
	}
}

func TestWhatARunHasShownKeepsTheEventThatWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, location := r.repo("app")
	r.push("base", "1", "one")
	hidden := r.push("hidden", "1", "one")
	r.start()
	app := r.create("app", location, quiet(3*time.Second))
	r.ready(app)
	r.push("base", "1", "two")
	track := decide.Track{Kind: decide.TrackDefault}
	r.eventually("changes waited for", func() bool { return !r.last(app, track).Hold.IsZero() })
	cause := r.last(app, track).Made.Event
	done := run.Run{ID: "r00000000001", Task: app.Name, TaskUID: app.UID, State: run.Succeeded, Created: time.Now().UTC().Add(time.Second),
		Cause: run.Cause{Track: "default", Commit: repo.Git("rev-parse", "HEAD")},
		Bases: []run.Base{{Ref: r.base(), Digest: r.push("other", "1", "x")}, {Ref: r.reg.Host + "/hidden:1", Digest: hidden}}}
	r.publish(event.RunSubject(event.TypeRunFinished, done.ID), done.ID, event.TypeRunFinished, event.RunChanged{Run: done})
	r.eventually("the base that was learnt", func() bool {
		_, ok := r.last(app, track).State.Considered.Bases[canonical(t, r.reg.Host+"/hidden:1")]
		return ok
	})
	if got := r.wantRuns(app, 1)[0].Cause; cause == "" || got.Event != cause {
		t.Errorf("run because of event %q, want %q", got.Event, cause)
	}
}

func TestPusherOfAnImageIsThatOfItsLastPush(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, location := r.repo("app")
	r.push("base", "1", "one")
	r.start()
	app := r.create("app", location)
	r.ready(app)
	now := time.Now().UTC()
	for i, id := range []string{"r00000000002", "r00000000001"} { // the later one comes first
		if _, err := r.store.Runs.Put(t.Context(), id, run.Run{ID: id, TaskUID: "t" + id}); err != nil {
			t.Fatal(err)
		}
		ev, err := event.New("image-"+id, "/test", event.TypeImagePushed, now.Add(-time.Duration(i)*time.Second), event.Image{
			Registry: r.reg.Host, Repository: "base", Tag: "1", Digest: "sha256:" + strings.Repeat(id[len(id)-1:], 64), Run: id})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.bus.Publish(t.Context(), event.ImageSubject(event.TypeImagePushed, "base"), ev.ID, ev); err != nil {
			t.Fatal(err)
		}
		r.settled()
	}
	got, _, err := r.store.Images.Get(t.Context(), event.Hash(canonical(t, r.base())))
	if err != nil || got.By != "r00000000002" || got.ByTask != "tr00000000002" {
		t.Errorf("pushed by %+v, %v, want the run of the later push", got, err)
	}
}
