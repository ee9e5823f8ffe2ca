package scheduler

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/triggers/decide"
)

func waitingIn(lane decide.Class, n int) *entry {
	return &entry{run: run.Run{ID: fmt.Sprintf("%s-%05d", lane, n), Lane: string(lane), Created: t0.Add(time.Duration(n) * time.Second)}}
}

func TestBusyLanesShareByWeight(t *testing.T) {
	p, sum := &pool{}, 0
	for _, l := range laneWeights {
		sum += int(l.weight)
		for n := range 2000 {
			p.add(waitingIn(l.class, n))
		}
	}
	served, last := map[string]int{}, map[string]string{}
	const rounds = 50
	for range rounds * sum {
		e := p.next()
		p.serve(e)
		if e.run.ID <= last[e.run.Lane] {
			t.Fatalf("lane %s: %s after %s", e.run.Lane, e.run.ID, last[e.run.Lane])
		}
		last[e.run.Lane] = e.run.ID
		served[e.run.Lane]++
	}
	for _, l := range laneWeights {
		if got, want := served[string(l.class)], rounds*int(l.weight); got < want-1 || got > want+1 {
			t.Errorf("lane %s was served %d times of %d, want %d", l.class, got, rounds*sum, want)
		}
	}
}

// TestEveryLaneMakesProgress has runs come and go at random: no run waits longer for its turn than its
// lane's share allows, a lane gains nothing by having been empty, and each is first in, first out.
func TestEveryLaneMakesProgress(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		p := &pool{}
		var model [len(laneWeights)][]*entry
		var passed [len(laneWeights)]int // starts of others while the lane waited
		for n := range 3000 {
			lane := rnd.IntN(len(laneWeights))
			switch k := rnd.IntN(10); {
			case k < 5:
				e := waitingIn(laneWeights[lane].class, n)
				p.add(e)
				model[lane] = append(model[lane], e)
			case k == 5 && len(model[lane]) > 0: // cancelled
				i := rnd.IntN(len(model[lane]))
				model[lane][i].leave()
				model[lane] = slices.Delete(model[lane], i, i+1)
			default:
				serveNext(t, p, &model, &passed)
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, n)
			}
		}
	}
}

func serveNext(t *testing.T, p *pool, model *[len(laneWeights)][]*entry, passed *[len(laneWeights)]int) {
	t.Helper()
	e := p.next()
	if e == nil {
		for lane, q := range model {
			if len(q) > 0 {
				t.Errorf("nothing is due, and %d runs wait in lane %d", len(q), lane)
			}
		}
		return
	}
	p.serve(e)
	mine := laneOf(e.run.Lane)
	if model[mine][0] != e {
		t.Errorf("%s is served, want %s, which is older", e.run.ID, model[mine][0].run.ID)
		return
	}
	model[mine] = model[mine][1:]
	passed[mine] = 0
	for lane, q := range model {
		if lane == mine || len(q) == 0 {
			continue
		}
		passed[lane]++
		// In the time of one of its strides each other lane is served by its weight, and once more.
		bound := len(laneWeights)
		for _, l := range laneWeights {
			bound += int(l.weight / laneWeights[lane].weight)
		}
		if passed[lane] > bound {
			t.Errorf("lane %s was passed over %d times, want at most %d", laneWeights[lane].class, passed[lane], bound)
		}
	}
}

func ofTask(id, lane string, limit int) run.Run {
	return run.Run{ID: id, Task: "web", TaskUID: "u1", Lane: lane, Spec: run.Spec{Concurrency: limit}}
}

func TestRequestsComeBeforeTheSweep(t *testing.T) {
	c := newCore(0)
	c.admit(run.Run{ID: "ra", Lane: string(decide.LaneReconcile)}, t0)
	c.admit(run.Run{ID: "rb", Lane: string(decide.ClassBase)}, t0)
	c.admit(run.Run{ID: "rc"}, t0)
	c.join(member1(1), t0)
	c.assign(t0)
	if s := c.runs["rc"].run.State; s != run.Started {
		t.Errorf("the request is %s, want it Started first", s)
	}
}

func TestTaskHasNoMoreRunsThanItAllows(t *testing.T) {
	c := newCore(0)
	c.join(member1(5), t0)
	for _, id := range []string{"ra", "rb", "rc", "rd"} {
		c.admit(ofTask(id, "commit", 2), t0)
	}
	c.admit(run.Run{ID: "re", Task: "other", TaskUID: "u2", Lane: "commit"}, t0)
	c.assign(t0)
	if got := states(c, "ra", "rb", "rc", "rd", "re"); got != "Started Started Queued Queued Started" {
		t.Fatalf("got %s", got)
	}
	if r := c.runs["rc"].run.Reason; r != "waiting: task web already has 2 of 2 runs" {
		t.Errorf("reason %q", r)
	}
	c.cancel(c.runs["rc"], "kim", t0)
	c.report(event.Report{Run: "ra", Attempt: 1, Time: t0, Final: run.Succeeded}, t0)
	c.assign(t0)
	if got := states(c, "rb", "rc", "rd"); got != "Started Canceled Started" {
		t.Errorf("after the end of one: %s", got)
	}
}

func states(c *core, ids ...string) string {
	var all []string
	for _, id := range ids {
		all = append(all, string(c.runs[id].run.State))
	}
	return strings.Join(all, " ")
}

func TestServerHasNoMoreRunsThanItAllows(t *testing.T) {
	c := newCore(2)
	c.join(member1(5), t0)
	c.join(event.Worker{Name: "arm", Instance: "i2", Pool: "arm64", Parallel: 5}, t0)
	for _, id := range []string{"ra", "rb", "rc"} {
		c.admit(decided(id), t0)
	}
	arm := decided("rx")
	arm.Spec.Pool = "arm64"
	c.admit(arm, t0)
	c.assign(t0)
	if got := states(c, "ra", "rb", "rc", "rx"); got != "Started Queued Queued Started" {
		t.Errorf("got %s: one of each pool, and no more than two", got)
	}
	if w := c.places([]string{"rc"})[0]; w.Position != 2 || w.Reason != "waiting: the server already executes 2 of 2 runs" {
		t.Errorf("got %+v", w)
	}
}

func TestReasonsOfWaitingRuns(t *testing.T) {
	c := newCore(0)
	c.join(member1(1), t0)
	c.join(event.Worker{Name: "two", Instance: "i2", Pool: "default", Parallel: 1}, t0)
	arm := decided("rarm")
	arm.Spec.Pool = "arm64"
	held := ofTask("rheld", "pull-request", 0)
	held.NeedsApproval = true
	c.admit(arm, t0)
	c.admit(held, t0)
	for n := range 5 {
		c.admit(ofTask(fmt.Sprint("r", n), "commit", 0), t0)
	}
	c.assign(t0)
	want := map[string]Waiting{
		"rarm":  {"rarm", "manual", "arm64", 1, "waiting for a worker of pool arm64: none is registered"},
		"rheld": {"rheld", "pull-request", "default", 0, "waiting for approval"},
		"r2":    {"r2", "commit", "default", 1, "waiting: 1st in lane commit, 2 workers busy"},
		"r4":    {"r4", "commit", "default", 3, "waiting: 3rd in lane commit, 2 workers busy"},
	}
	all := c.snapshot()
	for id, w := range want {
		if got := c.places([]string{id}); len(got) != 1 || got[0] != w {
			t.Errorf("%s: got %+v, want %+v", id, got, w)
		}
		if !slices.Contains(all, w) {
			t.Errorf("all: no %+v in %+v", w, all)
		}
	}
	if len(all) != 5 {
		t.Errorf("%d runs wait, want 5", len(all))
	}
	c.approve(c.runs["rheld"], "kim")
	c.expire("r0", 1, t0)
	c.assign(t0)
	if r := c.runs["rheld"].run; r.ApprovedBy != "kim" || r.State != run.Queued && r.State != run.Started {
		t.Errorf("approved: %+v", r)
	}
}

func TestSupersededRunsEndIfTheyStillWait(t *testing.T) {
	c := newCore(0)
	c.join(member1(1), t0)
	c.admit(ofTask("ra", "commit", 0), t0)
	c.assign(t0)
	c.admit(ofTask("rb", "commit", 0), t0)
	for _, id := range []string{"ra", "rb", "rc"} {
		c.supersede(id, "rd", t0)
	}
	c.admit(ofTask("rd", "commit", 0), t0)
	c.admit(ofTask("rc", "commit", 0), t0) // its decision was delivered late
	if got := states(c, "ra", "rb", "rc", "rd"); got != "Started Canceled Canceled Queued" {
		t.Errorf("got %s", got)
	}
	if r := c.runs["rb"].run.Reason; r != "superseded by run rd" {
		t.Errorf("reason %q", r)
	}
}

func TestRunsOfOneMomentKeepTheirOrder(t *testing.T) {
	c := newCore(0)
	for _, id := range []string{"rc", "ra", "rb"} {
		c.admit(decided(id), t0)
	}
	got := c.pools[poolKey{name: defaultPool}].lanes[0].line.ordered()
	if got[0].run.ID != "rc" || got[1].run.ID != "ra" || got[2].run.ID != "rb" {
		t.Errorf("order %s %s %s, want that of admission", got[0].run.ID, got[1].run.ID, got[2].run.ID)
	}
}
