package triggers_test

import (
	"errors"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// ended tells that a run has succeeded and which base images it has used, and waits until that is known.
func (r *rig) ended(of *run.Run, bases ...run.Base) {
	r.t.Helper()
	done := *of
	done.State, done.Finished, done.Bases = run.Succeeded, time.Now().UTC(), bases
	r.publish(event.RunSubject(event.TypeRunFinished, done.ID), done.ID, event.TypeRunFinished, event.RunChanged{Run: done})
	r.eventually("links of run "+of.ID, func() bool {
		l, _, err := r.store.Links.Get(r.t.Context(), of.TaskUID)
		return err == nil && l.Run == of.ID
	})
}

// wantMove checks that a run was decided because an image has moved.
func wantMove(t *testing.T, r *run.Run, name, from, to string) {
	t.Helper()
	want := run.Move{Ref: name, From: from, To: to}
	if c := r.Cause; c.Kind != run.CauseBase || len(c.Moved) != 1 || c.Moved[0] != want || r.Spec.Pins[name] != to {
		t.Errorf("run because of %+v with pins %v, want %+v", c, r.Spec.Pins, want)
	}
}

func TestBaseMovedDuringTheRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, url := r.repo("app")
	one := r.push("base", "1", "one")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	name := canonical(t, r.base())
	two := r.push("base", "1", "two")
	first := r.wantRuns(app, 1)[0]
	wantMove(t, first, name, one, two)
	three := r.push("base", "1", "three") // the run is under way, pinned to the one before
	second := r.wantRuns(app, 2)[1]
	wantMove(t, second, name, two, three)
	r.ended(first, run.Base{Ref: r.base(), Digest: two})
	r.wantRuns(app, 2)
	r.ended(second, run.Base{Ref: r.base(), Digest: three})
	r.sweepsNothing()
	r.wantRuns(app, 2)
}

// Nobody knows of the base before the run has shown it, and by then it has moved.
func TestBaseThatARunShowsMovedDuringIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	one := r.push("hidden", "1", "one")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	head := repo.Commit("change")
	r.pushed("e1", url, "refs/heads/main", "", head)
	first := r.wantRuns(app, 1)[0]
	r.eventually("links of the commit", func() bool {
		l, _, err := r.store.Links.Get(t.Context(), app.UID)
		return err == nil && l.Commit == head
	})
	two := r.push("hidden", "1", "two")
	r.ended(first, run.Base{Ref: r.reg.Host + "/hidden:1", Digest: one})
	second := r.wantRuns(app, 2)[1]
	wantMove(t, second, canonical(t, r.reg.Host+"/hidden:1"), one, two)
	r.ended(second, run.Base{Ref: r.reg.Host + "/hidden:1", Digest: two})
	r.sweepsNothing()
	r.wantRuns(app, 2)
}

// edit stores another definition of a task and waits until it is in effect.
func (r *rig) edit(t *task.Task, image string) {
	r.t.Helper()
	t.Step.Build.Images, t.Updated = []string{image}, time.Now().UTC()
	if _, err := r.store.Tasks.Put(r.t.Context(), store.TaskKey(t.Name), *t); err != nil {
		r.t.Fatal(err)
	}
	r.ready(t)
}

func TestTaskEditedWhileItsRunIsQueued(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	r.push("base", "1", "one")
	r.start()
	app := r.create("app", url)
	r.ready(app)
	head := repo.Commit("change")
	r.pushed("e1", url, "refs/heads/main", "", head)
	r.wantRuns(app, 1)
	r.edit(app, "edited:1")
	r.sweepsNothing()
	r.pushed("e1", url, "refs/heads/main", "", head) // again
	if got := r.wantRuns(app, 1)[0]; got.Spec.Build.Images[0] != "app:latest" || got.Cause.Commit != head {
		t.Errorf("the run that waits builds %v of %s, want what was decided", got.Spec.Build.Images, got.Cause.Commit)
	}
	next := repo.Commit("another")
	r.pushed("e2", url, "refs/heads/main", head, next)
	if got := r.wantRuns(app, 2)[1]; got.Spec.Build.Images[0] != "edited:1" || got.Cause.Commit != next {
		t.Errorf("the run after the edit builds %v of %s", got.Spec.Build.Images, got.Cause.Commit)
	}
}

// A change that still waits for its quiet window is decided by the definition of its end.
func TestTaskEditedInItsQuietWindow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	_, url := r.repo("app")
	one := r.push("base", "1", "one")
	r.start()
	app := r.create("app", url, quiet(3*time.Second))
	r.ready(app)
	two := r.push("base", "1", "two")
	r.eventually("changes waited for", func() bool { return !r.last(app, decide.Track{Kind: decide.TrackDefault}).Hold.IsZero() })
	r.edit(app, "edited:1")
	got := r.wantRuns(app, 1)[0]
	wantMove(t, got, canonical(t, r.base()), one, two)
	if got.Spec.Build.Images[0] != "edited:1" {
		t.Errorf("the run builds %v, want what the task says now", got.Spec.Build.Images)
	}
}

// A run that was decided is the scheduler's; nothing more comes of a task that is gone.
func TestTaskDeletedWhileItsRunIsUnderWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	repo, url := r.repo("app")
	digest := r.push("base", "1", "one")
	r.start()
	app, other := r.create("app", url), r.create("other", url)
	r.ready(app)
	r.ready(other)
	head := repo.Commit("change")
	r.pushed("e1", url, "refs/heads/main", "", head)
	under := r.wantRuns(app, 1)[0]
	r.wantRuns(other, 1)
	if err := r.store.Tasks.Delete(t.Context(), store.TaskKey("app")); err != nil {
		t.Fatal(err)
	}
	r.eventually("links gone", func() bool {
		_, _, err := r.store.Links.Get(t.Context(), app.UID)
		return errors.Is(err, store.ErrNotFound)
	})
	done := *under
	done.State, done.Finished, done.Bases = run.Succeeded, time.Now().UTC(), []run.Base{{Ref: r.base(), Digest: digest}}
	r.publish(event.RunSubject(event.TypeRunFinished, done.ID), done.ID, event.TypeRunFinished, event.RunChanged{Run: done})
	r.pushed("e1", url, "refs/heads/main", "", head) // again
	r.pushed("e2", url, "refs/heads/main", head, repo.Commit("another"))
	r.push("base", "1", "two")
	r.wantRuns(other, 3)
	r.stop()
	r.start()
	r.reconcile(false)
	r.wantRuns(app, 1)
	if _, _, err := r.store.Links.Get(t.Context(), app.UID); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the run's end has brought back what the deleted task is built on: %v", err)
	}
}
