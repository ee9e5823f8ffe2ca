package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/taskspec"
)

// randomTask returns n steps in random order, each waiting for some of those that come before it in
// another random order.
func randomTask(rnd *rand.Rand, n int) *taskspec.Task {
	order := rnd.Perm(n)
	task := &taskspec.Task{Steps: make([]*taskspec.Step, n)}
	for pos, i := range order {
		s := &taskspec.Step{ID: fmt.Sprint("s", i), Kind: taskspec.KindCmd, Cmd: &taskspec.Cmd{Image: "img"}, Timeout: time.Hour, WorkingDirectory: workspace}
		for _, j := range order[:pos] {
			if rnd.IntN(3) == 0 {
				s.After = append(s.After, fmt.Sprint("s", j))
			}
		}
		task.Steps[i] = s
	}
	return task
}

// schedule computes by brute force when each step of a task starts and ends.
func schedule(task *taskspec.Task, takes map[string]time.Duration) (starts, ends map[string]time.Duration) {
	starts, ends = map[string]time.Duration{}, map[string]time.Duration{}
	for len(ends) < len(task.Steps) {
		for _, s := range task.Steps {
			ready, at := true, time.Duration(0)
			for _, id := range s.After {
				end, ok := ends[id]
				ready, at = ready && ok, max(at, end)
			}
			if ready {
				starts[s.ID], ends[s.ID] = at, at+takes[s.ID]
			}
		}
	}
	return starts, ends
}

// TestRandomGraphs executes random graphs, of which some have a step that fails, and compares the time
// at which each step starts and the state in which it ends with a schedule made by brute force.
func TestRandomGraphs(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) { randomGraph(t, rand.New(rand.NewPCG(seed, 1)), seed) })
	}
}

func randomGraph(t *testing.T, rnd *rand.Rand, seed uint64) {
	task := randomTask(rnd, 1+rnd.IntN(9))
	takes := map[string]time.Duration{}
	for _, s := range task.Steps {
		takes[s.ID] = time.Duration(1 + rnd.Int64N(int64(time.Minute)))
	}
	starts, ends := schedule(task, takes)
	failing, over := "", time.Duration(1<<62)
	if rnd.IntN(2) == 0 {
		failing = task.Steps[rnd.IntN(len(task.Steps))].ID
		over = ends[failing]
	}
	var mu sync.Mutex
	began, got := time.Now(), map[string]time.Duration{}
	s := &script{run: func(ctx context.Context, c solve.Container, _ solve.LogFunc) (int, error) {
		mu.Lock()
		got[c.Step] = time.Since(began)
		mu.Unlock()
		if err := pause(ctx, takes[c.Step]); err != nil {
			return -1, err
		}
		if c.Step == failing {
			return 1, nil
		}
		return 0, nil
	}}
	a := detached(t, fileRun("version: v1.1.0\nsteps:\n- cmd: img\n"), s)
	a.task, a.reports = task, &reporter{ended: true}
	err := a.runGraph(t.Context())
	if (err != nil) != (failing != "") {
		t.Errorf("seed %d: runGraph = %v with failing step %q", seed, err, failing)
	}
	for _, s := range task.Steps {
		at, ran := got[s.ID]
		if want := starts[s.ID]; ran != (want < over) || ran && at != want {
			t.Errorf("seed %d: %s after %v ran: %v at %s, want %s unless it is over at %s", seed, s.ID, s.After, ran, at, want, over)
		}
		want := run.StepSucceeded
		switch {
		case s.ID == failing:
			want = run.StepFailed
		case !ran:
			want = ""
		case ends[s.ID] > over:
			want = run.StepCanceled
		}
		if got := a.record(s.ID).State; got != want {
			t.Errorf("seed %d: %s ended %q, want %q", seed, s.ID, got, want)
		}
	}
}

func TestFailureCancelsSiblingsAndLeavesOutTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{}
		s.run = func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
			if c.Step == "bad" {
				return 3, pause(ctx, time.Second)
			}
			return untilDone(ctx, c, log)
		}
		a := detached(t, fileRun(`version: v1.1.0
steps:
- {id: bad, cmd: img, when: ['-']}
- {id: long, cmd: img, when: ['-']}
- {id: after, cmd: img, when: [bad]}
- {id: last, cmd: img, when: [long]}
`), s)
		err := a.runGraph(t.Context())
		var failure *stepFailure
		if !errors.As(err, &failure) || failure.id != "bad" || !strings.Contains(err.Error(), "exit code 3") {
			t.Errorf("runGraph = %v, want the failure of bad", err)
		}
		asked := s.steps()
		slices.Sort(asked)
		if !slices.Equal(asked, []string{"bad", "long"}) {
			t.Errorf("executed %v, want bad and long", asked)
		}
		if r := a.record("bad"); r.State != run.StepFailed || r.ExitCode == nil || *r.ExitCode != 3 || r.Error == "" {
			t.Errorf("bad = %+v", r)
		}
		if r := a.record("long"); r.State != run.StepCanceled || !strings.Contains(r.Error, errSibling.Error()) {
			t.Errorf("long = %+v", r)
		}
		for _, id := range []string{"after", "last"} {
			if r := a.record(id); r.State != run.StepPending {
				t.Errorf("%s = %+v, want it not started", id, r)
			}
		}
	})
}

func TestIgnoredErrorCountsAsSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{run: func(_ context.Context, c solve.Container, _ solve.LogFunc) (int, error) {
			if c.Step == "shaky" {
				return 4, nil
			}
			return 0, nil
		}}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: shaky, cmd: img, ignoreErrors: true}\n- {id: next, cmd: img}\n"), s)
		if err := a.runGraph(t.Context()); err != nil {
			t.Fatal(err)
		}
		r := a.record("shaky")
		if r.State != run.StepSucceeded || r.ExitCode == nil || *r.ExitCode != 4 || !strings.Contains(r.Error, "exit code 4") {
			t.Errorf("shaky = %+v, want success with exit code 4 and its error", r)
		}
		if !strings.Contains(a.text("shaky"), "ignoreErrors") || a.record("next").State != run.StepSucceeded {
			t.Errorf("log %q, next %+v", a.text("shaky"), a.record("next"))
		}
	})
}

func TestEnginesErrorIsNotIgnoredNorRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{run: func(context.Context, solve.Container, solve.LogFunc) (int, error) { return -1, solve.ErrUnavailable }}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img, ignoreErrors: true, retries: 3}\n"), s)
		if err := a.runGraph(t.Context()); !errors.Is(err, solve.ErrUnavailable) {
			t.Errorf("runGraph = %v, want ErrUnavailable", err)
		}
		if n := len(s.steps()); n != 1 {
			t.Errorf("%d executions, want 1", n)
		}
	})
}

func TestRetriesAndRepetitions(t *testing.T) {
	for _, tc := range []struct {
		name, properties string
		succeed          int // the execution that succeeds, 0 for none
		tries            int
		fails            bool
	}{
		{"retries: 2, repeat: 1 and always failing", "retries: 2, repeat: 1", 0, 6, true},
		{"retries: 2", "retries: 2", 0, 3, true},
		{"retries: 2, second succeeds", "retries: 2", 2, 2, false},
		{"repeat: 2, failing", "repeat: 2", 0, 3, true},
		{"repeat: 2, one succeeds", "repeat: 2", 2, 3, true},
		{"none", "", 0, 1, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			s := &script{run: func(context.Context, solve.Container, solve.LogFunc) (int, error) {
				if n++; n == tc.succeed {
					return 0, nil
				}
				return 1, nil
			}}
			a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img, retryDelay: 7, "+tc.properties+"}\n"), s)
			err := a.runGraph(t.Context())
			if (err != nil) != tc.fails || n != tc.tries || a.record("a").Tries != tc.tries {
				t.Errorf("%s: %d executions (recorded %d), %v, want %d", tc.name, n, a.record("a").Tries, err, tc.tries)
			}
		})
	}
}

func TestRetryDelayIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		began := time.Now()
		s := &script{run: func(context.Context, solve.Container, solve.LogFunc) (int, error) {
			at = append(at, time.Since(began))
			return 1, nil
		}}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img, startDelay: 11, retries: 2, retryDelay: 7}\n"), s)
		_ = a.runGraph(t.Context())
		if want := []time.Duration{11 * time.Second, 18 * time.Second, 25 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("executed at %v, want %v", at, want)
		}
		if got := a.record("a").Started; !got.Equal(began.Add(11 * time.Second)) {
			t.Errorf("step started at %s, want it after the delay", got.Sub(began))
		}
	})
}

func TestRetryOnlyWhenOutputMatches(t *testing.T) {
	for _, tc := range []struct {
		name   string
		chunks []string
		tries  int
	}{
		{"no match", []string{"all is bad\n"}, 1},
		{"no output", nil, 1},
		{"match", []string{"error: connection reset by peer\n"}, 3},
		{"second word", []string{"i/o timeout"}, 3},
		{"across two chunks", []string{"xx connection re", "set yy"}, 3},
		{"one byte at a time", strings.Split("a connection reset b", ""), 3},
		{"parts of it", []string{"connection re", "fused ", "set"}, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{run: func(_ context.Context, _ solve.Container, log solve.LogFunc) (int, error) {
				for _, c := range tc.chunks {
					log(output(c))
				}
				return 1, nil
			}}
			a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img, retries: 2, retryOnErrors: [connection reset, i/o timeout]}\n"), s)
			_ = a.runGraph(t.Context())
			if n := len(s.steps()); n != tc.tries {
				t.Errorf("%s: %d executions, want %d", tc.name, n, tc.tries)
			}
		})
	}
}

// TestRetryWhenTheFailureMatches has what the engine says of a failure, which no process has printed.
func TestRetryWhenTheFailureMatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{run: func(context.Context, solve.Container, solve.LogFunc) (int, error) {
			return -1, &solve.StepError{ExitCode: -1, Message: "image img: connection reset by peer"}
		}}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img, retries: 2, retryOnErrors: [connection reset]}\n"), s)
		_ = a.runGraph(t.Context())
		if n := len(s.steps()); n != 3 {
			t.Errorf("%d executions, want 3", n)
		}
	})
}

// TestExitCodeIsThatOfTheOutcome has executions that end differently.
func TestExitCodeIsThatOfTheOutcome(t *testing.T) {
	for _, tc := range []struct {
		name, step string
		codes      []int // of the executions in turn
		want       int   // -1 for none
		reason     string
	}{
		{"success after a failure", "cmd: img, retries: 1", []int{3, 0}, 0, ""},
		{"a build's success after a failure", "build: ., retries: 1", []int{3, 0}, -1, ""},
		{"failure of one of several repetitions", "cmd: img, repeat: 2", []int{0, 5, 0}, 5, "exit code 5"},
		{"several failures", "cmd: img, repeat: 2", []int{4, 0, 6}, 6, "exit code 4; exit code 6"},
	} {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			next := func() int { n++; return tc.codes[n-1] }
			s := &script{
				run: func(context.Context, solve.Container, solve.LogFunc) (int, error) { return next(), nil },
				build: func(_ context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
					if code := next(); code != 0 {
						return solve.Built{}, &solve.StepError{ExitCode: code, Message: "RUN false"}
					}
					return solve.Built{Digest: someDigest, Ref: b.Staging + "@" + someDigest}, nil
				},
			}
			a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, "+tc.step+"}\n"), s)
			_ = a.runGraph(t.Context())
			got, rec := -1, a.record("a")
			if rec.ExitCode != nil {
				got = *rec.ExitCode
			}
			if got != tc.want || strings.TrimPrefix(rec.Error, "step a: ") != tc.reason || n != len(tc.codes) {
				t.Errorf("%s: exit code %d, error %q after %d executions, want %d, %q", tc.name, got, rec.Error, n, tc.want, tc.reason)
			}
		})
	}
}

// TestMatchCountsForItsExecutionOnly has the words only in the first execution's output.
func TestMatchCountsForItsExecutionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		s := &script{run: func(_ context.Context, _ solve.Container, log solve.LogFunc) (int, error) {
			if n++; n == 1 {
				log(output("connection reset"))
			}
			return 1, nil
		}}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img, retries: 5, retryOnErrors: [connection reset]}\n"), s)
		_ = a.runGraph(t.Context())
		if n != 2 {
			t.Errorf("%d executions, want 2", n)
		}
	})
}

func TestStepTimeout(t *testing.T) {
	for name, properties := range map[string]string{
		"running": "timeout: 30", "the task's": "", "between retries": "timeout: 30, retries: 9, retryDelay: 60", "start delay does not count": "timeout: 30, startDelay: 100"} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{run: untilDone}
			if name == "between retries" {
				s.run = func(context.Context, solve.Container, solve.LogFunc) (int, error) { return 1, nil }
			}
			a := detached(t, fileRun("version: v1.1.0\nstepTimeout: 30\nsteps:\n- {id: slow, cmd: img, "+properties+"}\n- {id: next, cmd: img}\n"), s)
			err := a.runGraph(t.Context())
			var failure *stepFailure
			if !errors.As(err, &failure) || !strings.Contains(err.Error(), "30s") || !strings.Contains(err.Error(), "timeout property") {
				t.Errorf("%s: runGraph = %v, want a time-out that names the property", name, err)
			}
			r := a.record("slow")
			if r.State != run.StepTimeout || r.Finished.Sub(r.Started) != 30*time.Second || r.Error == "" {
				t.Errorf("%s: slow = %+v after %s", name, r, r.Finished.Sub(r.Started))
			}
			if a.record("next").State != run.StepPending {
				t.Errorf("%s: next = %+v", name, a.record("next"))
			}
		})
	}
}

func TestTimeoutCanBeIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{run: func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
			if c.Step == "slow" {
				return untilDone(ctx, c, log)
			}
			return 0, nil
		}}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: slow, cmd: img, timeout: 30, ignoreErrors: true}\n- {id: next, cmd: img}\n"), s)
		if err := a.runGraph(t.Context()); err != nil || a.record("next").State != run.StepSucceeded {
			t.Errorf("runGraph = %v, next %+v", err, a.record("next"))
		}
	})
}

func TestDelayedStepIsCanceledWithItsSiblings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{run: func(context.Context, solve.Container, solve.LogFunc) (int, error) { return 1, nil }}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: bad, cmd: img, when: ['-']}\n- {id: late, cmd: img, when: ['-'], startDelay: 3600}\n"), s)
		began := time.Now()
		if err := a.runGraph(t.Context()); err == nil || !strings.Contains(err.Error(), "step bad") {
			t.Errorf("runGraph = %v", err)
		}
		if waited := time.Since(began); waited != 0 || !slices.Equal(s.steps(), []string{"bad"}) {
			t.Errorf("waited %s, executed %v", waited, s.steps())
		}
	})
}

func TestTheWorkspaceIsPreparedForThoseWhoUseIt(t *testing.T) {
	for steps, want := range map[string]int{
		"- build: -t a .\n- cmd: img\n- cmd: img2\n": 1,
		"- build: -t a .\n- push: [a]\n":             0,
		"- cmd: docker version\n":                    0,
	} {
		s := &script{}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n"+steps), s)
		a.prepare(t.Context())
		if s.prepared != want {
			t.Errorf("%q: prepared %d times, want %d", steps, s.prepared, want)
		}
	}
}

// TestRetainingEndsWithTheWorker lets the engine prepare for later runs: not after a run that was stopped, and no
// longer than the worker works.
func TestRetainingEndsWithTheWorker(t *testing.T) {
	t.Parallel()
	retained, stopping := 0, make(chan struct{})
	s := &script{retain: func() {
		retained++
		close(stopping)
	}}
	a := detached(t, fileRun("version: v1.1.0\nsteps:\n- cmd: img\n"), s)
	a.w.stopping = stopping
	a.retain(t.Context()) // without a source there is nothing to be kept
	a.src = &files{}
	ended, end := context.WithCancel(t.Context())
	end()
	a.retain(ended)
	if retained != 0 {
		t.Fatal("retained after a run that was stopped, or that has no source")
	}
	a.retain(t.Context())
	if retained != 1 {
		t.Errorf("retained %d times, want once", retained)
	}
}
