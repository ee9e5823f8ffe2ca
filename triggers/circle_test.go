package triggers_test

import (
	"fmt"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// built creates a task that builds an image of the registry from another.
func (r *rig) built(name, from, image string) *task.Task {
	r.t.Helper()
	repo, url := r.repo(name)
	repo.Write("Dockerfile", "FROM "+r.reg.Host+"/"+from+":1\nRUN true\n", 0)
	repo.Commit("from " + from)
	return r.create(name, url, func(t *task.Task) { t.Step.Build.Images = []string{r.reg.Host + "/" + image + ":1"} })
}

func TestTasksInACircleAreStartedByNobodyButPeople(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			for i := range n {
				r.push(fmt.Sprint("image", i), "1", "one")
			}
			r.start()
			var circle []*task.Task
			for i := range n { // task i builds image i from that of the task before
				circle = append(circle, r.built(fmt.Sprint("task", i), fmt.Sprint("image", (i+n-1)%n), fmt.Sprint("image", i)))
			}
			outside := r.built("outside", "image0", "else")
			for _, made := range append([]*task.Task{outside}, circle...) {
				r.ready(made)
			}
			r.push("image0", "1", "two")
			r.wantRuns(outside, 1)
			member := circle[1%n]
			r.eventually("refusal", func() bool { return r.reasons(member, decide.Cycle) != "" })
			reason := r.reasons(member, decide.Cycle)
			for _, made := range circle {
				r.wantRuns(made, 0)
				if !strings.Contains(reason, made.Name) {
					t.Errorf("%q does not name %s", reason, made.Name)
				}
			}
			if strings.Contains(reason, "\n") || strings.Contains(reason, "outside") {
				t.Errorf("refused with %q, want one refusal that names the circle alone", reason)
			}
			r.reconcile(false)
			r.wantRuns(member, 0)

			told := hints(t, r.bus, "asked")
			request(t, r.bus, 1, event.RunRequested{Key: "asked", By: "kim", TaskUID: member.UID})
			next(t, told)
			if d := r.last(member, decide.Track{Kind: decide.TrackRequest, Name: "asked"}); d.Run == nil {
				t.Errorf("decision %+v, want the run that was asked for", d.Made)
			}
		})
	}
}
