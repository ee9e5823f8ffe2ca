package scheduler

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func decided(id string) run.Run { return run.Run{ID: id, Spec: run.Spec{Timeout: time.Hour}} }

func member1(parallel int) event.Worker {
	return event.Worker{Name: "one", Instance: "i1", Parallel: parallel}
}

func TestDecisionDeliveredTwiceMakesOneRun(t *testing.T) {
	c := newCore(0)
	c.join(member1(5), t0)
	c.admit(decided("ra"), t0)
	c.admit(decided("ra"), t0)
	c.assign(t0)
	c.admit(decided("ra"), t0)
	c.assign(t0)
	if got := c.runs["ra"].run.Attempt; got != 1 || len(c.runs) != 1 {
		t.Errorf("attempt %d of %d runs, want attempt 1 of 1", got, len(c.runs))
	}
}

func TestRunsWaitForASlotInOrderOfAge(t *testing.T) {
	c := newCore(0)
	c.admit(decided("rb"), t0.Add(time.Second))
	c.admit(decided("ra"), t0)
	c.assign(t0)
	if s := c.runs["ra"].run.State; s != run.Queued {
		t.Fatalf("without a worker: %s, want Queued", s)
	}
	c.join(member1(1), t0)
	c.assign(t0)
	if a, b := c.runs["ra"].run.State, c.runs["rb"].run.State; a != run.Started || b != run.Queued {
		t.Fatalf("one slot: %s %s, want Started Queued", a, b)
	}
	c.report(event.Report{Run: "ra", Attempt: 1, Time: t0, Final: run.Succeeded}, t0)
	c.assign(t0)
	if a, b := c.runs["ra"].run.State, c.runs["rb"].run.State; a != run.Succeeded || b != run.Started {
		t.Errorf("slot free: %s %s, want Succeeded Started", a, b)
	}
}

func TestReportOfALostAttemptChangesNothing(t *testing.T) {
	c := newCore(0)
	c.join(member1(1), t0)
	c.admit(decided("ra"), t0)
	c.assign(t0)
	c.expire("ra", 1, t0)
	c.join(member1(1), t0)
	c.assign(t0)
	c.report(event.Report{Run: "ra", Attempt: 1, Time: t0, Final: run.Failed, Reason: "zombie"}, t0)
	if r := c.runs["ra"].run; r.State != run.Started || r.Attempt != 2 {
		t.Errorf("got %s attempt %d, want Started attempt 2", r.State, r.Attempt)
	}
}

func TestWorkerThatWasNotHeardOfGetsNoRunUntilItIs(t *testing.T) {
	c := newCore(0)
	c.join(member1(1), t0)
	c.admit(decided("ra"), t0)
	c.assign(t0)
	c.expire("ra", 1, t0) // its registration has not expired yet
	c.assign(t0)
	if r := c.runs["ra"].run; r.State != run.Queued || r.Attempt != 1 {
		t.Errorf("got %s attempt %d, want Queued attempt 1", r.State, r.Attempt)
	}
	if w := c.places([]string{"ra"})[0]; !strings.HasPrefix(w.Reason, "waiting for a worker: one is not heard of") {
		t.Errorf("it waits: %s", w.Reason)
	}
	c.join(member1(1), t0)
	c.assign(t0)
	if r := c.runs["ra"].run; r.State != run.Started || r.Attempt != 2 {
		t.Errorf("heard of again: got %s attempt %d, want Started attempt 2", r.State, r.Attempt)
	}
}

// A drained worker, one whose build daemon is away and one of another platform are given no runs while others are there.
func TestRunsGoToWorkersThatTakeThem(t *testing.T) {
	c := newCore(0)
	arm := event.Worker{Name: "arm", Instance: "i2", Parallel: 4, Platforms: []string{"linux/arm64"}}
	x86 := event.Worker{Name: "x86", Instance: "i3", Parallel: 1, Platforms: []string{"linux/amd64", "linux/386"}}
	c.join(arm, t0)
	c.join(x86, t0)
	next := func(id, platform string) string {
		t.Helper()
		r := decided(id)
		r.Spec.Platform = platform
		c.admit(r, t0)
		c.assign(t0)
		return c.runs[id].attempt().Worker
	}
	if got := next("ra", "linux/amd64"); got != "x86" {
		t.Errorf("a run for linux/amd64 goes to %q", got)
	}
	if got := next("rb", "linux/amd64"); got != "" {
		t.Errorf("the second, while the worker of its platform is busy, goes to %q", got)
	}
	if got := next("rc", "linux/s390x"); got != "arm" {
		t.Errorf("a run of a platform that no worker has goes to %q, want the one with free slots", got)
	}
	c.drain("arm", true)
	if got := next("rd", ""); got != "" {
		t.Errorf("a run goes to %q, which is drained", got)
	}
	c.drain("arm", false)
	c.assign(t0)
	if got := c.runs["rd"].attempt().Worker; got != "arm" {
		t.Errorf("undrained: a run goes to %q", got)
	}
	arm.Unfit = "cannot reach its build daemon"
	c.join(arm, t0)
	if got := next("re", "linux/arm64"); got != "" {
		t.Errorf("a run goes to %q, which is not fit", got)
	}
}

func TestLostAttemptKeepsBuildsAndRepeatsCmds(t *testing.T) {
	c := newCore(0)
	c.join(member1(1), t0)
	c.admit(decided("ra"), t0)
	c.assign(t0)
	c.report(event.Report{Run: "ra", Attempt: 1, Time: t0, Begun: t0, Steps: []run.Step{
		{ID: "b", Kind: "build", State: run.StepSucceeded, Attempt: 1, Output: &run.Output{Digest: "sha256:1"}},
		{ID: "c", Kind: "cmd", State: run.StepSucceeded, Attempt: 1},
		{ID: "p", Kind: "push", State: run.StepRunning, Attempt: 1},
	}}, t0)
	c.expire("ra", 1, t0)
	want := map[string]run.StepState{"b": run.StepSucceeded, "c": run.StepPending, "p": run.StepPending}
	for _, s := range c.runs["ra"].run.Steps {
		if s.State != want[s.ID] {
			t.Errorf("step %s is %s, want %s", s.ID, s.State, want[s.ID])
		}
	}
}

func TestRunThatKillsThreeWorkersIsGivenUp(t *testing.T) {
	c := newCore(0)
	c.join(member1(1), t0)
	c.admit(decided("ra"), t0)
	for n := 1; n <= 3; n++ {
		c.assign(t0)
		c.expire("ra", n, t0)
		c.join(member1(1), t0)
	}
	if r := c.runs["ra"].run; r.State != run.Error || r.Attempt != 3 {
		t.Errorf("got %s after attempt %d, want Error after 3", r.State, r.Attempt)
	}
}

func TestShutdownOfAWorkerIsNotHeldAgainstTheRun(t *testing.T) {
	c := newCore(0)
	c.join(member1(1), t0)
	c.admit(decided("ra"), t0)
	for n := 1; n <= 5; n++ {
		c.assign(t0)
		c.report(event.Report{Run: "ra", Attempt: n, Time: t0, Final: event.HandedBack, Blameless: true}, t0)
	}
	if r := c.runs["ra"].run; r.State != run.Queued || r.Attempt != 5 {
		t.Errorf("got %s after attempt %d, want Queued after 5", r.State, r.Attempt)
	}
}

func TestRestartedWorkerLosesItsAttemptsAtOnce(t *testing.T) {
	c := newCore(0)
	c.adopt(run.Run{ID: "ra", State: run.Running, Attempt: 1,
		Attempts: []run.Attempt{{N: 1, Worker: "one", Instance: "i0"}}, Spec: run.Spec{Timeout: time.Hour}}, 7, t0.Add(time.Minute))
	c.join(member1(1), t0)
	c.assign(t0)
	if r := c.runs["ra"].run; r.State != run.Started || r.Attempt != 2 || r.Attempts[1].Instance != "i1" {
		t.Errorf("got %s attempt %d, want Started attempt 2 on i1", r.State, r.Attempt)
	}
}

func TestCancel(t *testing.T) {
	t.Run("queued", func(t *testing.T) {
		c := newCore(0)
		c.admit(decided("ra"), t0)
		c.cancel(c.runs["ra"], "kim", t0)
		if r := c.runs["ra"].run; r.State != run.Canceled || c.runs["ra"].line != nil {
			t.Errorf("got %s, in a line: %v", r.State, c.runs["ra"].line != nil)
		}
	})
	t.Run("worker does not answer", func(t *testing.T) {
		c := newCore(0)
		c.join(member1(1), t0)
		c.admit(decided("ra"), t0)
		c.assign(t0)
		c.cancel(c.runs["ra"], "kim", t0)
		c.tick(t0.Add(cancelGrace))
		if r := c.runs["ra"]; r.run.State != run.Started || !r.stop {
			t.Fatalf("within the grace period: %s, stop %v", r.run.State, r.stop)
		}
		c.tick(t0.Add(cancelGrace + time.Second))
		if r := c.runs["ra"].run; r.State != run.Canceled || c.workers["i1"].busy != 0 {
			t.Errorf("got %s, %d slots busy", r.State, c.workers["i1"].busy)
		}
	})
	t.Run("worker is lost meanwhile", func(t *testing.T) {
		c := newCore(0)
		c.join(member1(1), t0)
		c.admit(decided("ra"), t0)
		c.assign(t0)
		c.cancel(c.runs["ra"], "kim", t0)
		c.expire("ra", 1, t0)
		if r := c.runs["ra"].run; r.State != run.Canceled {
			t.Errorf("got %s, want Canceled and no second attempt", r.State)
		}
	})
}

// TestInvariants throws random facts at the core and checks after each what must always hold.
func TestInvariants(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		c, now := newCore(int(seed%3)*4), t0
		ended := map[string]run.State{}
		for range 300 {
			now = now.Add(time.Duration(rnd.IntN(2000)) * time.Millisecond)
			fact(c, rnd, now)
			c.assign(now)
			check(t, c, ended, seed)
			if t.Failed() {
				return
			}
		}
	}
}

// anyRun is one of a pool, of a task with a limit, or one that is to be approved.
func anyRun(id string, rnd *rand.Rand) run.Run {
	r := decided(id)
	r.Lane = string(laneWeights[rnd.IntN(len(laneWeights))].class)
	r.NeedsApproval = rnd.IntN(4) == 0
	if n := rnd.IntN(3); n > 0 {
		r.TaskUID, r.Spec.Concurrency = fmt.Sprint("u", n), n
	}
	return r
}

func fact(c *core, rnd *rand.Rand, now time.Time) {
	id := fmt.Sprintf("r%d", rnd.IntN(12))
	instance := fmt.Sprintf("i%d", rnd.IntN(4))
	e := c.runs[id]
	switch rnd.IntN(11) {
	case 0, 1:
		c.admit(anyRun(id, rnd), now)
	case 9:
		c.supersede(id, "rx", now)
	case 10:
		if e != nil {
			c.approve(e, "kim")
		}
	case 2:
		c.join(event.Worker{Name: "w" + instance[1:], Instance: instance, Parallel: 1 + rnd.IntN(3)}, now)
	case 3:
		c.leave(instance)
	case 4:
		c.expire(id, rnd.IntN(4), now)
	case 5:
		if e != nil {
			c.cancel(e, "kim", now)
		}
	case 6:
		c.tick(now)
	default:
		finals := []run.State{"", run.Succeeded, run.Failed, event.HandedBack, run.Canceled}
		c.report(event.Report{Run: id, Attempt: rnd.IntN(4), Begun: now, Time: now, Final: finals[rnd.IntN(len(finals))]}, now)
	}
}

func check(t *testing.T, c *core, ended map[string]run.State, seed uint64) {
	t.Helper()
	held := map[string]int{}
	for id, e := range c.runs {
		if was, ok := ended[id]; ok && was != e.run.State {
			t.Errorf("seed %d: run %s left its end %s for %s", seed, id, was, e.run.State)
		}
		if e.run.State.Final() {
			ended[id] = e.run.State
		}
		if queued := e.line != nil; queued != (e.run.State == run.Queued && !e.unapproved()) {
			t.Errorf("seed %d: run %s is %s, in the queue: %v", seed, id, e.run.State, queued)
		}
		if e.assigned() {
			held[e.attempt().Instance]++
		}
		if len(e.run.Attempts) != e.run.Attempt {
			t.Errorf("seed %d: run %s has %d attempts, the last is %d", seed, id, len(e.run.Attempts), e.run.Attempt)
		}
		if e.assigned() && e.attempt().Outcome != "" {
			t.Errorf("seed %d: run %s is under way in an attempt that has ended", seed, id)
		}
	}
	checkLimits(t, c, seed)
	for instance, m := range c.workers {
		if m.busy != held[instance] {
			t.Errorf("seed %d: worker %s: %d slots busy, %d runs assigned", seed, instance, m.busy, held[instance])
		}
	}
}

// checkLimits checks what is held against what may be, and that nothing waits that need not.
func checkLimits(t *testing.T, c *core, seed uint64) {
	t.Helper()
	held, free := map[string]int{}, 0
	for _, m := range c.workers {
		if m.closed() == "" {
			free += max(0, m.Parallel-m.busy)
		}
	}
	total := 0
	for _, e := range c.runs {
		if e.assigned() {
			held[e.run.TaskUID]++
			total++
		}
	}
	if total != c.held || c.maxRuns > 0 && total > c.maxRuns {
		t.Errorf("seed %d: %d runs are assigned, counted %d, at most %d", seed, total, c.held, c.maxRuns)
	}
	for _, e := range c.runs {
		limit := e.run.Spec.Concurrency
		if e.run.TaskUID != "" && held[e.run.TaskUID] > limit {
			t.Errorf("seed %d: task %s has %d runs, at most %d", seed, e.run.TaskUID, held[e.run.TaskUID], limit)
		}
		may := limit == 0 || held[e.run.TaskUID] < limit
		if e.run.State == run.Queued && !e.unapproved() && may && free > 0 && !c.full() {
			t.Errorf("seed %d: run %s waits, and nothing is in its way", seed, e.run.ID)
		}
	}
}
