package decide_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/cron"
	"kiln/internal/graph"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

const node = "docker.io/library/node:22"

// newTask returns a task that runs every push and follows its bases at once.
func newTask(change func(*task.Task)) *task.Task {
	quiet := task.Duration(0)
	t := &task.Task{Name: "web", UID: "u1", Context: "https://git.example/o/r.git#main", Step: task.Step{Build: &task.Build{}}}
	t.Triggers.Source = []task.SourceTrigger{{SkipCI: task.SkipIgnore}}
	t.Triggers.BaseImage.Quiet = &quiet
	if change != nil {
		change(t)
	}
	t.Normalize()
	return t
}

// A world calls Observe as a consumer would, storing what it is told to store.
type world struct {
	t     *testing.T
	in    decide.Input
	runs  int
	state decide.State // as stored
}

func newWorld(t *testing.T, change func(*task.Task)) *world {
	t.Helper()
	w := &world{t: t}
	w.in = decide.Input{Task: newTask(change), Track: decide.Track{Kind: decide.TrackDefault}, Now: noon,
		Bases: map[string]decide.Base{node: {Kind: graph.Runtime}}}
	w.see(decide.Observation{Origin: decide.FromBaseline, Source: main("c0"), Bases: map[string]string{node: "sha256:d0"}})
	return w
}

func main(head string) *decide.Source {
	return &decide.Source{Name: "main", Default: "main", Head: head}
}

func (w *world) see(o decide.Observation) decide.Outcome {
	w.t.Helper()
	w.runs++
	in := w.in
	if o.Origin == "" {
		o.Origin = decide.FromEvent
	}
	in.Seen, in.State, in.RunID = o, w.state, "r"+string(rune('a'+w.runs))
	out := decide.Observe(in)
	if out.Store {
		w.state = reload(w.t, out.State)
	} else if diff := cmp.Diff(w.state, out.State); diff != "" {
		w.t.Errorf("a state that is not to be stored has changed:\n%s", diff)
	}
	return out
}

// reload returns a state as it comes back from storage.
func reload(t *testing.T, s decide.State) decide.State {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var stored decide.State
	if err := json.Unmarshal(data, &stored); err != nil {
		t.Fatal(err)
	}
	return stored
}

// push observes a head, of which an event spoke.
func (w *world) push(event, head string) decide.Outcome {
	w.t.Helper()
	return w.see(decide.Observation{Event: event, Source: main(head)})
}

func expect(t *testing.T, out decide.Outcome, kind decide.Kind, store bool, words string) {
	t.Helper()
	if out.Decision == nil || out.Decision.Kind != kind || out.Store != store || !strings.Contains(out.Decision.Reason, words) {
		t.Errorf("outcome %+v with decision %+v, want %s, stored: %v, with %q", out, out.Decision, kind, store, words)
	}
}

func TestAPushIsRunOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	out := w.push("e1", "c1")
	expect(t, out, decide.Run, true, "branch main moved from c0 to c1")
	want := &decide.Snapshot{Commit: "c1", Bases: map[string]string{node: "sha256:d0"}, Definition: w.in.Task.Hash()}
	if diff := cmp.Diff(want, out.Decision.Pin); diff != "" || out.Decision.Class != decide.ClassCommit || out.Decision.Run == "" {
		t.Errorf("decision %+v, pin (-want +got):\n%s", out.Decision, diff)
	}
	again := w.push("e1", "c1")
	expect(t, again, decide.Duplicate, false, "decided before")
	if again.Decision.Run != out.Decision.Run {
		t.Errorf("the duplicate names run %q, want %q", again.Decision.Run, out.Decision.Run)
	}
	expect(t, w.push("e2", "c1"), decide.Unchanged, false, "nothing has changed")
	if out := w.see(decide.Observation{Origin: decide.FromReconcile, Source: main("c1")}); out.Decision != nil || out.Store {
		t.Errorf("a sweep without drift says %+v", out.Decision)
	}
}

func TestBackAndForthIsThreeRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	for i, head := range []string{"a", "b", "a"} {
		expect(t, w.push("e"+string(rune('1'+i)), head), decide.Run, true, "to "+head)
	}
	for i, digest := range []string{"sha256:d1", "sha256:d0"} { // and a base rollback is one
		expect(t, w.see(decide.Observation{Event: "i" + string(rune('1'+i)), Bases: map[string]string{node: digest}}), decide.Run, true, "to "+digest)
	}
}

func TestAnOvertakenCommitIsCoalesced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	early := main("c2")
	early.Claimed = "c1"
	out := w.see(decide.Observation{Event: "e1", Source: early})
	expect(t, out, decide.Run, true, "to c2")
	if !slices.Equal(out.Decision.Coalesced, []string{"c1"}) {
		t.Errorf("coalesced %v, want c1", out.Decision.Coalesced)
	}
	late := main("c2")
	late.Claimed = "c0"
	expect(t, w.see(decide.Observation{Event: "e0", Source: late}), decide.Coalesced, false, "overtaken by c2")
}

func TestWhatIsNotDueIsRefusedOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*task.Task)
		bases  map[string]decide.Base
		see    decide.Observation
		kind   decide.Kind
		filter string
		words  string
	}{
		"task disabled":      {change: func(t *task.Task) { t.Status = task.Disabled }, see: decide.Observation{Source: main("c1")}, kind: decide.Disabled, words: `task "web" is disabled`},
		"trigger disabled":   {change: func(t *task.Task) { t.Triggers.Source[0].Status = task.Disabled }, see: decide.Observation{Source: main("c1")}, kind: decide.Disabled, words: "is disabled"},
		"no trigger":         {change: func(t *task.Task) { t.Triggers.Source = nil }, see: decide.Observation{Source: main("c1")}, kind: decide.Disabled, words: "no source trigger"},
		"event":              {change: func(t *task.Task) { t.Triggers.Source[0].Events = []task.SourceEvent{task.Tag} }, see: decide.Observation{Source: main("c1")}, kind: decide.Filtered, filter: "event", words: "does not act on push"},
		"branch":             {change: func(t *task.Task) { t.Triggers.Source[0].Branches = task.Globs{"release/*"} }, see: decide.Observation{Source: main("c1")}, kind: decide.Filtered, filter: "branch", words: "branch main matches no pattern"},
		"deleted":            {see: decide.Observation{Source: main("")}, kind: decide.Filtered, filter: "event", words: "branch-deleted"},
		"skip ci":            {change: func(t *task.Task) { t.Triggers.Source[0].SkipCI = task.SkipHonor }, see: decide.Observation{Source: &decide.Source{Name: "main", Head: "c1", Messages: map[string]string{"c1": "docs [Skip CI]"}}}, kind: decide.Filtered, filter: "skip-ci", words: "asks not to be built"},
		"paths":              {change: func(t *task.Task) { t.Triggers.Source[0].Paths = task.Globs{"src/"} }, see: decide.Observation{Source: &decide.Source{Name: "main", Head: "c1", Files: &decide.Files{From: "c0", To: "c1", Names: []string{"README"}}}}, kind: decide.Filtered, filter: "paths", words: "none of the 1 files"},
		"pinned commit":      {change: func(t *task.Task) { t.Context = "https://git.example/o/r.git#" + strings.Repeat("a", 40) }, see: decide.Observation{Source: main("c1")}, kind: decide.Pinned, words: "names a commit"},
		"base disabled":      {change: func(t *task.Task) { t.Triggers.BaseImage.Status = task.Disabled }, see: decide.Observation{Bases: map[string]string{node: "sha256:d1"}}, kind: decide.Disabled, words: "trigger is disabled"},
		"base of a stage":    {bases: map[string]decide.Base{node: {Kind: graph.Buildtime}}, see: decide.Observation{Bases: map[string]string{node: "sha256:d1"}}, kind: decide.Filtered, filter: "type", words: "only used while building"},
		"pinned base":        {bases: map[string]decide.Base{node: {Pinned: true}}, see: decide.Observation{Bases: map[string]string{node: "sha256:d1"}}, kind: decide.Pinned, words: "to a digest"},
		"circle":             {bases: map[string]decide.Base{node: {Cycle: []string{"web", "base"}}}, see: decide.Observation{Bases: map[string]string{node: "sha256:d1"}}, kind: decide.Cycle, words: "web <- base"},
		"own image":          {bases: map[string]decide.Base{node: {PushedBy: "u1"}}, see: decide.Observation{Bases: map[string]string{node: "sha256:d1"}}, kind: decide.Cycle, words: "this task itself"},
		"parent failed":      {bases: map[string]decide.Base{node: {Blocked: "run r7 failed"}}, see: decide.Observation{Bases: map[string]string{node: "sha256:d1"}}, kind: decide.Blocked, words: "run r7 failed"},
		"found by the sweep": {change: func(t *task.Task) { t.Status = task.Disabled }, see: decide.Observation{Origin: decide.FromReconcile, Source: main("c1")}, kind: decide.Disabled, words: "disabled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.change)
			if c.bases != nil {
				w.in.Bases = c.bases
			}
			out := w.see(c.see)
			expect(t, out, c.kind, true, c.words)
			if out.Decision.Filter != c.filter || out.Decision.Run != "" || !w.state.Attempted.Equal(decide.Snapshot{}) {
				t.Errorf("decision %+v, filter %q wanted, and nothing attempted", out.Decision, c.filter)
			}
			if again := w.see(c.see); again.Store {
				t.Errorf("refused again: %+v", again.Decision)
			}
			if due := w.state.Due(); due != nil {
				t.Errorf("still due: %v", due)
			}
		})
	}
}

func TestOneGoodReasonIsEnough(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(t *task.Task) { t.Triggers.Source[0].Status = task.Disabled })
	out := w.see(decide.Observation{Source: main("c1"), Bases: map[string]string{node: "sha256:d1"}})
	expect(t, out, decide.Run, true, "base image "+node+" moved from sha256:d0 to sha256:d1")
	if len(out.Decision.Verdicts) != 2 || out.Decision.Pin.Commit != "c1" || out.Decision.Class != decide.ClassBase {
		t.Errorf("decision %+v", out.Decision)
	}
}

func TestADefinitionIsRecordedNotRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.in.Task = newTask(func(t *task.Task) { t.Timeout = task.Duration(time.Minute) })
	expect(t, w.see(decide.Observation{}), decide.Unchanged, true, "definition has changed")
	if out := w.see(decide.Observation{}); out.Store {
		t.Errorf("recorded twice: %+v", out.Decision)
	}
	if out := w.push("e", "c1"); out.Decision.Pin.Definition != w.in.Task.Hash() {
		t.Error("the run does not name the new definition")
	}
}

func TestUnknownFilesAreAskedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(t *task.Task) {
		t.Triggers.Source[0].Paths, t.Triggers.Source[0].SkipCI = task.Globs{"src/"}, task.SkipHonor
	})
	out := w.push("e1", "c2")
	if diff := cmp.Diff(&decide.Question{From: "c0", To: "c2", Message: true, Files: true}, out.Question); diff != "" || out.Decision != nil || out.Store {
		t.Fatalf("outcome %+v (-want +got):\n%s", out, diff)
	}
	s := main("c2")
	s.Messages = map[string]string{"c2": "fix"}
	s.Files = &decide.Files{From: "c1", To: "c2", Names: []string{"README"}} // of one push, not of all that is due
	if out := w.see(decide.Observation{Source: s}); out.Question == nil || !out.Question.Files || out.Question.Message {
		t.Errorf("a list of other commits' files is taken: %+v", out)
	}
	s.Files = &decide.Files{From: "c0", To: "c2", Names: []string{"README", "src/a.go"}}
	expect(t, w.see(decide.Observation{Source: s}), decide.Run, true, "to c2")
}

func TestOtherBranchesTagsAndPullRequests(t *testing.T) {
	t.Parallel()
	all := func(t *task.Task) {
		t.Triggers.Source[0].Events = []task.SourceEvent{task.Push, task.Tag, task.BranchDeleted, task.PullRequest}
		t.Triggers.Source[0].Branches, t.Triggers.Source[0].Tags = task.Globs{"main", "release/*"}, task.Globs{"v*"}
	}
	ref := func(kind decide.TrackKind, name string) *world {
		w := &world{t: t}
		w.in = decide.Input{Task: newTask(all), Track: decide.Track{Kind: kind, Name: name}, Now: noon}
		return w
	}
	b := ref(decide.TrackBranch, "release/1")
	s := &decide.Source{Name: "release/1", Default: "main", Head: "c1"}
	expect(t, b.see(decide.Observation{Source: s, Bases: map[string]string{node: "sha256:d0"}}), decide.Run, true, "branch release/1 is new, at c1")
	if out := b.see(decide.Observation{Bases: map[string]string{node: "sha256:d1"}}); out.Decision.Kind != decide.Unchanged {
		t.Errorf("a base makes a branch run: %+v", out.Decision)
	}
	s.Head = ""
	out := b.see(decide.Observation{Source: s})
	expect(t, out, decide.Run, true, "branch release/1 was deleted at c1")
	if out.Decision.Pin.Commit != "c1" || out.Decision.Pin.Bases[node] != "sha256:d1" {
		t.Errorf("pin %+v, want the last commit and the bases of now", out.Decision.Pin)
	}
	tag := ref(decide.TrackTag, "v1")
	expect(t, tag.see(decide.Observation{Source: &decide.Source{Name: "v1", Head: "c1"}}), decide.Run, true, "tag v1 is at c1")
	other := ref(decide.TrackTag, "x1")
	expect(t, other.see(decide.Observation{Source: &decide.Source{Name: "x1", Head: "c1"}}), decide.Filtered, true, "tag x1 matches no pattern")

	pull := ref(decide.TrackPull, "7")
	p := &decide.Source{Name: "main", Default: "main", Head: "p1", Pull: &decide.Pull{Number: 7, Base: "c0", Fork: true}}
	out = pull.see(decide.Observation{Source: p})
	expect(t, out, decide.Run, true, "pull request 7 is at p1")
	if !out.Decision.NeedsApproval || !out.Decision.Restricted || out.Decision.Class != decide.ClassPull {
		t.Errorf("a stranger's pull request: %+v", out.Decision)
	}
	p.Head, p.Pull.Trusted = "p2", true
	if out = pull.see(decide.Observation{Source: p}); out.Decision.NeedsApproval || !out.Decision.Restricted || len(out.Decision.Supersedes) != 1 {
		t.Errorf("a known author's pull request: %+v", out.Decision)
	}
	p.Head = ""
	expect(t, pull.see(decide.Observation{Source: p}), decide.Filtered, true, "was closed")
	never := ref(decide.TrackPull, "8")
	never.in.Task.Triggers.Source[0].Forks = task.ForksNever
	p.Head, p.Pull.Number = "p1", 8
	expect(t, never.see(decide.Observation{Source: p}), decide.Filtered, true, "comes from a fork")
}

func TestPullRequestThatGoesToAnotherBranch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(t *task.Task) { t.Triggers.Source[0].Events = []task.SourceEvent{task.PullRequest} })
	w.in.Track, w.in.State = decide.Track{Kind: decide.TrackPull, Name: "7"}, decide.State{}
	p := &decide.Source{Name: "stable", Default: "main", Head: "p1", Pull: &decide.Pull{Number: 7, Base: "c0"}}
	expect(t, w.see(decide.Observation{Source: p}), decide.Filtered, true, "branch stable matches no pattern")
	p.Name = "main"
	expect(t, w.see(decide.Observation{Source: p}), decide.Run, true, "pull request 7 is at p1")
	p.Name = "stable"
	expect(t, w.see(decide.Observation{Source: p}), decide.Unchanged, true, "to go to branch stable")
	expect(t, w.see(decide.Observation{Source: p}), decide.Unchanged, false, "nothing has changed")
	p.Name = "main"
	expect(t, w.see(decide.Observation{Source: p}), decide.Unchanged, true, "was built")
}

func TestQuietWindows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(t *task.Task) {
		quiet := task.Duration(30 * time.Second)
		t.Triggers.BaseImage.Quiet, t.Triggers.Source[0].Quiet = &quiet, task.Duration(time.Minute)
	})
	hold := func(o decide.Observation, want time.Time, store bool) {
		t.Helper()
		if out := w.see(o); !out.Hold.Equal(want) || out.Decision != nil || out.Store != store {
			t.Fatalf("outcome %+v, want to wait until %v, stored: %v", out, want, store)
		}
	}
	hold(decide.Observation{Event: "e1", Source: main("c1")}, noon.Add(time.Minute), true)
	hold(decide.Observation{Event: "e1", Source: main("c1")}, noon.Add(time.Minute), false)
	w.in.Now = noon.Add(40 * time.Second)
	hold(decide.Observation{Event: "e2", Source: main("c2")}, noon.Add(100*time.Second), true)
	w.in.Now = noon.Add(50 * time.Second)
	hold(decide.Observation{Event: "i1", Source: main("c2"), Bases: map[string]string{node: "sha256:d1"}}, noon.Add(80*time.Second), true)
	w.in.Now = noon.Add(-time.Hour) // set back
	hold(decide.Observation{Source: main("c2"), Bases: map[string]string{node: "sha256:d1"}}, noon.Add(-time.Hour+30*time.Second), true)
	w.in.Now = noon.Add(80 * time.Second)
	out := w.see(decide.Observation{Source: main("c2"), Bases: map[string]string{node: "sha256:d1"}})
	expect(t, out, decide.Run, true, "")
	if p := out.Decision.Pin; p.Commit != "c2" || p.Bases[node] != "sha256:d1" || w.state.Pending != nil {
		t.Errorf("pin %+v", p)
	}
	w.in.Now = noon.Add(time.Hour)
	for i := range 20 { // never quiet, and still run within the longest wait
		out = w.see(decide.Observation{Source: main("x" + string(rune('a'+i)))})
		if out.Decision != nil {
			break
		}
		w.in.Now = w.in.Now.Add(30 * time.Second)
	}
	if waited := w.in.Now.Sub(noon.Add(time.Hour)); out.Decision == nil || waited != 5*time.Minute || len(out.Decision.Coalesced) == 0 {
		t.Errorf("run after %v: %+v", waited, out.Decision)
	}
	expect(t, w.see(decide.Observation{Source: main("urgent"), Urgent: true}), decide.Run, true, "urgent")
	w.see(decide.Observation{Source: main("y")})
	expect(t, w.see(decide.Observation{Source: main("urgent")}), decide.Unchanged, true, "changed back")
}

func TestQueuedRunsOfTheSameClassAreSuperseded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	first := w.push("e1", "c1").Decision
	base := w.see(decide.Observation{Bases: map[string]string{node: "sha256:d1"}}).Decision
	second := w.push("e2", "c2").Decision
	if first.Supersedes != nil || base.Supersedes != nil || !slices.Equal(second.Supersedes, []string{first.Run}) {
		t.Errorf("superseded: %v, %v, %v; want only the first by the last", first.Supersedes, base.Supersedes, second.Supersedes)
	}
}

func TestEveryCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(t *task.Task) { t.Triggers.Source[0].Commits = task.CommitsEvery })
	if out := w.push("e", "c3"); out.Question == nil || !out.Question.Commits {
		t.Fatalf("the commits are not asked for: %+v", out)
	}
	list := []string{"c1", "c2", "c3"}
	var runs []string
	for from := "c0"; ; {
		s := main("c3")
		s.Commits = &decide.Commits{From: from, List: list}
		out := w.see(decide.Observation{Event: "e", Source: s})
		if out.Decision == nil || out.Decision.Kind != decide.Run || out.Decision.Supersedes != nil {
			t.Fatalf("outcome %+v, %+v", out, out.Decision)
		}
		runs = append(runs, out.Decision.Pin.Commit)
		if !out.Again {
			break
		}
		from, list = list[0], list[1:]
	}
	if !slices.Equal(runs, []string{"c1", "c2", "c3"}) || w.state.Due() != nil {
		t.Errorf("runs of %v, want all three in order", runs)
	}
}

func TestLearnedBases(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.push("e1", "c1")
	const alpine = "docker.io/library/alpine:3"
	next, changed := decide.Learn(w.state, map[string]string{alpine: "sha256:a0"})
	if !changed || next.Considered.Bases[alpine] != "sha256:a0" || len(next.Considered.Bases) != 1 || len(w.state.Considered.Bases) != 1 {
		t.Fatalf("learned %+v", next)
	}
	w.state = next
	if _, changed := decide.Learn(next, map[string]string{alpine: "sha256:a0"}); changed {
		t.Error("learning the same again changes the state")
	}
	expect(t, w.see(decide.Observation{Bases: map[string]string{alpine: "sha256:a1"}}), decide.Run, true, "moved from sha256:a0 to sha256:a1")
	expect(t, w.see(decide.Observation{Bases: map[string]string{node: "sha256:d5"}}), decide.Unchanged, true, "followed from here on")
}

func TestRequests(t *testing.T) {
	t.Parallel()
	tk, r := newTask(nil), decide.Request{Key: "k", By: "ann", Pin: decide.Snapshot{Commit: "c1"}}
	out := decide.Ask(tk, decide.State{}, r, "r1", noon)
	expect(t, out, decide.Run, true, "asked for by ann")
	again := decide.Ask(tk, out.State, r, "r2", noon)
	expect(t, again, decide.Duplicate, false, "decided before")
	if again.Decision.Run != "r1" {
		t.Errorf("the repeated request names run %q", again.Decision.Run)
	}
	tk.Status = task.Disabled
	expect(t, decide.Ask(tk, decide.State{}, r, "r3", noon), decide.Disabled, true, "is disabled")
	r.Force, r.RerunOf = true, "r1"
	expect(t, decide.Ask(tk, decide.State{}, r, "r4", noon), decide.Run, true, "repetition of run r1")
}

func TestTimers(t *testing.T) {
	t.Parallel()
	s, err := cron.Parse("0 * * * *")
	if err != nil {
		t.Fatal(err)
	}
	tk := newTask(func(t *task.Task) {
		t.Triggers.Timers = []task.Timer{{Name: "hourly", Schedule: "0 * * * *"}, {Name: "strict", Schedule: "0 * * * *", CatchUp: task.CatchUpNone}, {Name: "off", Schedule: "0 * * * *", Status: task.Disabled}}
	})
	fire := func(name string, state decide.State, armed, now time.Time) decide.Outcome {
		return decide.Fire(tk, reload(t, state), decide.Tick{Timer: name, Armed: armed, Schedule: s, Location: time.UTC, Pin: decide.Snapshot{Commit: "c"}}, "r1", now)
	}
	out := fire("hourly", decide.State{}, noon, noon.Add(time.Second))
	expect(t, out, decide.Run, true, "was due at 2026-05-01T12:00:00Z")
	if !out.Hold.Equal(noon.Add(time.Hour)) || out.Decision.Pin.Commit != "c" {
		t.Errorf("outcome %+v", out)
	}
	again := fire("hourly", out.State, noon, noon.Add(2*time.Second))
	expect(t, again, decide.Duplicate, false, "decided before")
	if !again.Hold.Equal(noon.Add(time.Hour)) {
		t.Errorf("armed for %v", again.Hold)
	}
	back := fire("hourly", out.State, noon.Add(-time.Hour), noon.Add(-time.Hour)) // the clock was set back
	expect(t, back, decide.Duplicate, false, "decided before")
	if !back.Hold.Equal(noon.Add(time.Hour)) {
		t.Errorf("after the clock was set back armed for %v", back.Hold)
	}
	late := fire("hourly", out.State, noon.Add(time.Hour), noon.Add(4*time.Hour+10*time.Minute))
	expect(t, late, decide.Run, true, "and 3 times before")
	expect(t, fire("strict", out.State, noon.Add(time.Hour), noon.Add(4*time.Hour+10*time.Minute)), decide.Filtered, true, "left out")
	expect(t, fire("strict", out.State, noon.Add(time.Hour), noon.Add(time.Hour+time.Minute)), decide.Run, true, "was due")
	expect(t, fire("off", decide.State{}, noon, noon), decide.Disabled, true, "is disabled")
	expect(t, fire("gone", decide.State{}, noon, noon), decide.Disabled, false, "any more")
	expect(t, fire("hourly", decide.State{}, noon.Add(time.Minute), noon.Add(2*time.Minute)), decide.Unchanged, false, "schedule has changed")
	expect(t, fire("hourly", decide.State{Occurrence: noon.AddDate(50, 0, 0)}, noon, noon), decide.Run, true, "was due")
}

func TestTracks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		context, name string
		kind          decide.TrackKind
		want          string
	}{
		{"https://x.example/r.git", "main", decide.TrackBranch, "default"},
		{"https://x.example/r.git", "dev", decide.TrackBranch, "branch:dev"},
		{"https://x.example/r.git#dev", "dev", decide.TrackBranch, "default"},
		{"https://x.example/r.git#refs/tags/v1", "v1", decide.TrackTag, "default"},
		{"https://x.example/r.git#dev", "main", decide.TrackBranch, "branch:main"},
		{"https://x.example/r.git#dev", "7", decide.TrackPull, "pull:7"},
	} {
		ctx, err := task.ParseContext(c.context)
		if err != nil {
			t.Fatal(err)
		}
		if got := decide.RefTrack(ctx, c.kind, c.name, "main").Key(); got != c.want {
			t.Errorf("track of %s %s in %s = %s, want %s", c.kind, c.name, c.context, got, c.want)
		}
	}
}

func TestABaseThatComesToBeIsAMove(t *testing.T) {
	t.Parallel()
	const later = "registry.example/later:1"
	w := newWorld(t, nil)
	w.in.Bases[later] = decide.Base{Kind: graph.Runtime}
	expect(t, w.see(decide.Observation{Bases: map[string]string{later: ""}}), decide.Unchanged, true, "followed from here on")
	out := w.see(decide.Observation{Bases: map[string]string{later: "sha256:e0"}})
	expect(t, out, decide.Run, true, "has come to be")
	if gone := w.see(decide.Observation{Bases: map[string]string{later: ""}}); gone.Store {
		t.Errorf("a base that was deleted is %+v, want nothing", gone.Decision)
	}
	expect(t, w.see(decide.Observation{Bases: map[string]string{later: "sha256:e0"}}), decide.Unchanged, false, "nothing has changed")
}
