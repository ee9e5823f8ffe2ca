package scheduler_test

import (
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
)

// Runs are executed as they were decided, whatever becomes of their task.
func TestTaskIsEditedAndDeletedWhileItsRunsWait(t *testing.T) {
	t.Parallel()
	s := newSite(t, time.Minute)
	stop := s.schedule(t)
	def := task.Task{Name: "web", UID: "u1", Step: task.Step{Build: &task.Build{Images: []string{"web:1"}}}}
	put := func() {
		t.Helper()
		if _, err := s.store.Tasks.Put(t.Context(), store.TaskKey(def.Name), def); err != nil {
			t.Fatal(err)
		}
	}
	put()
	w := s.worker(t, "one", "i1")
	for _, id := range []string{"ra", "rb", "rc"} {
		s.decide(t, run.Run{ID: id, Task: "web", TaskUID: "u1", Spec: run.Spec{Build: &run.BuildSpec{Images: []string{"web:1"}}}})
		s.await(t, id, func(r run.Run) bool { return r.State != "" })
	}
	w.assigned(t, "ra", 1)
	def.Step.Build.Images, def.Status = []string{"web:2"}, task.Disabled
	put()
	s.report(t, event.Report{Run: "ra", Attempt: 1, N: 1, Final: run.Succeeded})
	if as := w.assigned(t, "rb", 1); as.Run.Spec.Build.Images[0] != "web:1" {
		t.Errorf("the run that waited builds %v, want what was decided", as.Run.Spec.Build.Images)
	}
	if err := s.store.Tasks.Delete(t.Context(), store.TaskKey(def.Name)); err != nil {
		t.Fatal(err)
	}
	stop()
	s.schedule(t)
	s.report(t, event.Report{Run: "rb", Attempt: 1, N: 1, Final: run.Failed, Reason: "exit code 1"})
	if r := s.await(t, "rb", in(run.Failed)); r.Reason != "exit code 1" || r.Task != "web" {
		t.Errorf("the run under way when its task was deleted ended as %+v", r)
	}
	w.assigned(t, "rc", 1)
	s.report(t, event.Report{Run: "rc", Attempt: 1, N: 1, Final: run.Succeeded})
	s.await(t, "rc", in(run.Succeeded))
}
