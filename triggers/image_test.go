package triggers_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

func quiet(d time.Duration) func(*task.Task) {
	return func(t *task.Task) { q := task.Duration(d); t.Triggers.BaseImage.Quiet = &q }
}

func TestBaseMovedAndMovedBack(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	one := r.push("base", "1", "one")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	r.push("base", "2", "another tag")
	r.push("base", "1", "one") // again
	two := r.push("base", "1", "two")
	got := r.wantRuns(app, 1)[0]
	name := canonical(t, r.base())
	want := run.Move{Ref: name, From: one, To: two}
	if c := got.Cause; c.Kind != run.CauseBase || len(c.Moved) != 1 || c.Moved[0] != want || c.Commit != repo.Git("rev-parse", "HEAD") ||
		got.Spec.Pins[name] != two || got.Lane != string(decide.ClassBase) {
		t.Errorf("run %+v", got)
	}
	r.push("base", "1", "one")
	if got := r.wantRuns(app, 2)[1].Cause.Moved[0]; got.To != one || got.From != two {
		t.Errorf("moved %+v, want back to %s", got, one)
	}
}

func TestTwoBasesInAQuietWindow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	repo.Write("Dockerfile", "FROM "+r.base()+" AS a\nFROM "+r.reg.Host+"/other:1\nCOPY --from=a /x /x\n", 0)
	repo.Commit("two bases")
	r.push("base", "1", "one")
	r.push("other", "1", "one")
	r.start()
	app := r.create("app", url, quiet(1500*time.Millisecond), func(t *task.Task) { t.Triggers.BaseImage.Type = task.All })
	r.ready(app)
	one, two := r.push("base", "1", "two"), r.push("other", "1", "two")
	r.eventually("changes waited for", func() bool { return !r.last(app, decide.Track{Kind: decide.TrackDefault}).Hold.IsZero() })
	got := r.wantRuns(app, 1)[0]
	if len(got.Cause.Moved) != 2 || got.Spec.Pins[canonical(t, r.base())] != one || got.Spec.Pins[canonical(t, r.reg.Host+"/other:1")] != two {
		t.Errorf("run because of %+v, pinned to %v; want both bases", got.Cause, got.Spec.Pins)
	}
	if got.Cause.Event == "" || got.Cause.Seq == 0 {
		t.Errorf("the run names no event: %+v", got.Cause)
	}
}

func TestOwnImageIsACycle(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, url := r.repo("app")
	r.push("base", "1", "one")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Step.Build.Images = []string{r.base()} })
	r.ready(app)
	r.push("base", "1", "two")
	r.eventually("refusal", func() bool { return r.reasons(app, decide.Cycle) != "" })
	r.wantRuns(app, 0)
}

func TestUnscannedBaseIsLearnt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	digest := r.push("hidden", "1", "one")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	commit := repo.Git("rev-parse", "HEAD")
	done := run.Run{ID: "r00000000001", Task: app.Name, TaskUID: app.UID, State: run.Succeeded, Created: time.Now().UTC().Add(time.Second),
		Cause: run.Cause{Track: "default", Commit: commit}, Bases: []run.Base{{Ref: r.reg.Host + "/hidden:1", Digest: digest}},
		Images: []run.Image{{Registry: r.reg.Host, Repository: "app", Tag: "stable"}, {Registry: r.reg.Host, Repository: "app", Tag: "r00000000001"}}}
	r.publish(event.RunSubject(event.TypeRunFinished, done.ID), done.ID, event.TypeRunFinished, event.RunChanged{Run: done})
	r.eventually("links of the run", func() bool {
		l, _, err := r.store.Links.Get(t.Context(), app.UID)
		return err == nil && l.From == "run" && l.Run == done.ID && len(l.Bases) == 1 && len(l.Builds) == 2
	})
	r.push("hidden", "1", "two")
	r.wantRuns(app, 1)
}

func TestQuietWindowSurvivesARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, url := r.repo("app")
	r.push("base", "1", "one")
	r.start()
	app := r.create("app", url, quiet(2*time.Second))
	r.ready(app)
	r.push("base", "1", "two")
	r.eventually("changes waited for", func() bool { return !r.last(app, decide.Track{Kind: decide.TrackDefault}).Hold.IsZero() })
	r.settled()
	r.stop()
	r.start()
	r.wantRuns(app, 1)
}

func TestDeletedAndRecreatedTask(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, url := r.repo("app")
	r.push("base", "1", "one")
	r.start()
	first := r.create("app", url, func(t *task.Task) { t.Triggers.Timers = []task.Timer{{Name: "t", Schedule: "0 0 1 1 *"}} })
	r.ready(first)
	track := decide.Track{Kind: decide.TrackTimer, Name: "t"}.Key()
	armed := func(uid string) bool {
		var a event.Alarm
		_, err := r.bus.Last(t.Context(), "TIMERS", event.ScheduleSubject(uid, track), &a)
		return err == nil
	}
	r.eventually("timer set", func() bool { return armed(first.UID) })
	if err := r.store.Tasks.Delete(t.Context(), store.TaskKey("app")); err != nil {
		t.Fatal(err)
	}
	r.eventually("timer taken back", func() bool { return !armed(first.UID) })
	r.push("base", "1", "two")
	second := r.create("app", url)
	r.ready(second)
	r.push("base", "1", "three")
	r.wantRuns(second, 1)
	r.wantRuns(first, 0)
}

func TestTimerFires(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, url := r.repo("app")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Timers = []task.Timer{{Name: "t", Schedule: "* * * * *"}} })
	r.ready(app)
	track := decide.Track{Kind: decide.TrackTimer, Name: "t"}
	var a event.Alarm
	r.eventually("timer set", func() bool {
		_, err := r.bus.Last(t.Context(), "TIMERS", event.ScheduleSubject(app.UID, track.Key()), &a)
		return err == nil && a.At.After(time.Now())
	})
	// As if it had been due this minute; the next one may begin meanwhile.
	a.At = time.Now().UTC().Truncate(time.Minute)
	if err := r.d.Clock.Set(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	got := r.wantRuns(app, 1)[0]
	if got.Cause.Occurrence.Before(a.At) || got.Cause.Occurrence.Second() != 0 || got.Cause.Kind != run.CauseTimer || got.Cause.Trigger != "t" || got.Cause.Commit == "" {
		t.Errorf("run because of %+v, want the timer at %s", got.Cause, a.At)
	}
	r.eventually("timer set again", func() bool {
		var next event.Alarm
		_, err := r.bus.Last(t.Context(), "TIMERS", event.ScheduleSubject(app.UID, track.Key()), &next)
		return err == nil && next.At.After(a.At)
	})
}

func TestRequestOfATask(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	old := repo.Git("rev-parse", "HEAD")
	head := repo.Commit("head")
	digest := r.push("base", "1", "one")
	r.start()
	app := r.create("app", url, func(t *task.Task) { t.Triggers.Source = nil })
	ask := func(key string, ask event.TaskAsk) event.Decision {
		t.Helper()
		told := hints(t, r.bus, key)
		request(t, r.bus, 1, event.RunRequested{Key: key, By: "kim", TaskUID: app.UID, Ask: ask})
		next(t, told)
		return r.last(app, decide.Track{Kind: decide.TrackRequest, Name: key})
	}
	if d := ask("k1", event.TaskAsk{}); d.Run == nil || d.Run.Cause.Commit != head || d.Run.Cause.Kind != run.CauseManual || d.Seq == 0 {
		t.Errorf("decision %+v, want a run of the head", d)
	}
	r.ready(app)
	d := ask("k2", event.TaskAsk{Commit: old, Args: map[string]string{"A": "b"}})
	if d.Run == nil || d.Run.Cause.Commit != old || d.Run.Spec.Pins[canonical(t, r.base())] != digest || fmt.Sprint(d.Run.Spec.Build.BuildArgs) != "[A=b]" {
		t.Errorf("decision %+v, want a run of %s", d.Run, old)
	}
	if d := ask("k3a", event.TaskAsk{Commit: old[:8]}); d.Made.Kind != decide.Blocked || !strings.Contains(d.Made.Reason, "give all 40 digits") {
		t.Errorf("an abbreviated commit: %+v", d.Made)
	}
	if d := ask("k3", event.TaskAsk{Commit: "nowhere"}); d.Made.Kind != decide.Blocked || d.Run != nil {
		t.Errorf("decision %+v, want none to run", d.Made)
	}
	app.Status = task.Disabled
	if _, err := r.store.Tasks.Put(t.Context(), store.TaskKey("app"), *app); err != nil {
		t.Fatal(err)
	}
	if d := ask("k4", event.TaskAsk{}); d.Made.Kind != decide.Disabled {
		t.Errorf("decision %+v about a disabled task", d.Made)
	}
	r.wantRuns(app, 2)
}

func TestReplay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	head := repo.Commit("x")
	r.pushed("e1", url, "refs/heads/main", "", head)
	r.wantRuns(app, 1)
	for _, dry := range []bool{true, false} {
		found, err := r.d.Replay(t.Context(), 1, dry)
		if err != nil || len(found.Found) != 1 || found.Found[0].Decision.Kind != decide.Duplicate {
			t.Errorf("replay found %+v, %v; want a duplicate", found, err)
		}
	}
	r.wantRuns(app, 1)
	if _, err := r.d.Replay(t.Context(), 99, true); err == nil {
		t.Error("an event that is not stored was replayed")
	}
}
