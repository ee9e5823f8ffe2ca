package worker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kiln/internal/run"
	"kiln/internal/solve"
)

const serviceTask = `version: v1.1.0
steps:
- {id: db, cmd: "--network back postgres", detach: true}
- {id: web, cmd: nginx, detach: true, when: ["-"]}
- {id: test, cmd: "--network back curl web", when: [db, web]}
networks:
- {name: front, isDefault: true}
- {name: back}
`

// serviceRun executes the task in a bubble. Containers of services get until they are stopped, unless
// ends says what becomes of them; test is the container of the step test.
func serviceRun(t *testing.T, ends map[string]error, test func(context.Context, *attempt) (int, error)) (*attempt, *script, error) {
	t.Helper()
	s := &script{}
	a := detached(t, fileRun(serviceTask), s)
	s.run = func(ctx context.Context, c solve.Container, _ solve.LogFunc) (int, error) {
		if c.Started == nil {
			return test(ctx, a)
		}
		c.Started()
		err := ends[c.Step]
		if err == nil {
			<-ctx.Done()
			time.Sleep(time.Second) // it takes its time to stop
			return -1, context.Cause(ctx)
		}
		time.Sleep(time.Second)
		var exit exitCode
		if errors.As(err, &exit) {
			return int(exit), nil
		}
		return -1, err
	}
	err := a.runGraph(t.Context())
	return a, s, err
}

// exitCode is how a service ends that has run.
type exitCode int

func (exitCode) Error() string { return "exit code" }

func TestServicesLiveUntilTheStepsHaveEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, s, err := serviceRun(t, nil, func(ctx context.Context, a *attempt) (int, error) {
			time.Sleep(time.Hour / 10)
			if db, web := a.record("db"), a.record("web"); db.State != run.StepRunning || web.State != run.StepRunning {
				t.Errorf("while the test runs, db is %s and web %s, want both running", db.State, web.State)
			}
			return 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"db", "web", "test"} {
			if r := a.record(id); r.State != run.StepSucceeded || r.Error != "" || r.Finished.Sub(r.Started) < time.Hour/10 {
				t.Errorf("%s: %+v, want it to have succeeded when the steps had ended", id, r)
			}
		}
		for _, c := range s.runs {
			want := map[string]string{"db": "back", "web": "front", "test": "back"}[c.Step]
			if c.NetworkName != want || !slices.Equal(c.Peers, map[string][]string{"back": {"db"}, "front": {"web"}}[want]) {
				t.Errorf("%s is on %q with %q", c.Step, c.NetworkName, c.Peers)
			}
		}
	})
}

func TestServiceThatEndsDoesNotEndTheRun(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		end  error
		want run.StepState
		code int
		says string
	}{
		{"crash", exitCode(3), run.StepFailed, 3, "ended by itself after 1s, with exit code 3"},
		{"end", exitCode(0), run.StepSucceeded, 0, "ended by itself after 1s, with exit code 0"},
		{"out of memory", &solve.StepError{ExitCode: 137, Message: "killed: out of memory"}, run.StepFailed, 137, "out of memory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, _, err := serviceRun(t, map[string]error{"db": tc.end}, func(ctx context.Context, a *attempt) (int, error) {
					time.Sleep(time.Minute)
					if r := a.record("db"); r.State != tc.want || r.ExitCode == nil || *r.ExitCode != tc.code {
						t.Errorf("db while the run goes on: %+v, want %s with %d", r, tc.want, tc.code)
					}
					return 0, nil
				})
				if err != nil {
					t.Errorf("the run failed: %v", err)
				}
				if got := a.text("db"); !strings.Contains(got, tc.says) {
					t.Errorf("log of db = %q, want %q in it", got, tc.says)
				}
			})
		})
	}
}

func TestServiceThatDoesNotComeUpFailsTheRun(t *testing.T) {
	t.Parallel()
	engine := errors.New("the daemon is gone")
	for name, tc := range map[string]struct {
		end  error
		want string
	}{
		"no such program": {&solve.StepError{ExitCode: 127, Message: "no nginx"}, "step web: no nginx"},
		"engine":          {engine, engine.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				a, _, err := serviceRun(t, map[string]error{"web": tc.end}, func(ctx context.Context, _ *attempt) (int, error) {
					return untilDone(ctx, solve.Container{}, nil)
				})
				if err == nil || err.Error() != tc.want {
					t.Errorf("runGraph = %v, want %q", err, tc.want)
				}
				if took := time.Since(begin); took != 2*time.Second {
					t.Errorf("it took %s, want 2s: the end of web, then that of db", took)
				}
				if r := a.record("web"); r.State != run.StepFailed {
					t.Errorf("web: %+v, want it to have failed", r)
				}
				for _, id := range []string{"db", "test"} {
					if r := a.record(id); r.State != run.StepCanceled {
						t.Errorf("%s: %+v, want it to be canceled", id, r)
					}
				}
			})
		})
	}
}

// However quick the steps are: that a service has not come up is not overlooked.
func TestServiceThatDoesNotComeUpInTimeFailsTheRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, _, err := serviceRun(t, map[string]error{"web": &solve.StepError{ExitCode: 127, Message: "no nginx"}}, func(context.Context, *attempt) (int, error) { return 0, nil })
		if err == nil || err.Error() != "step web: no nginx" || a.record("web").State != run.StepFailed || a.record("test").State != run.StepSucceeded {
			t.Errorf("runGraph = %v, web %+v, test %+v", err, a.record("web"), a.record("test"))
		}
	})
}

// TestServicesStopWithTheSteps: services are not first asked to stop when the steps are gone, which would
// make two periods of grace out of one.
func TestServicesStopWithTheSteps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := detached(t, fileRun(serviceTask), nil)
		stopped := map[string]time.Time{}
		ctx, cancel := context.WithCancelCause(t.Context())
		s := &script{run: func(ctx context.Context, c solve.Container, _ solve.LogFunc) (int, error) {
			if c.Started != nil {
				c.Started()
			}
			if c.Step == "test" {
				time.AfterFunc(time.Second, func() { cancel(errCanceled) })
			}
			<-ctx.Done()
			time.Sleep(10 * time.Second)
			a.logs.mu.Lock()
			defer a.logs.mu.Unlock()
			stopped[c.Step] = time.Now()
			return -1, context.Cause(ctx)
		}}
		a.session = s
		begin := time.Now()
		if err := a.runGraph(ctx); !errors.Is(err, errCanceled) {
			t.Errorf("runGraph = %v, want %v", err, errCanceled)
		}
		for _, id := range []string{"db", "web", "test"} {
			if took := stopped[id].Sub(begin); took != 11*time.Second {
				t.Errorf("%s ended after %s, want 11s", id, took)
			}
			if r := a.record(id); r.State != run.StepCanceled {
				t.Errorf("%s: %+v, want it to be canceled", id, r)
			}
		}
	})
}

func TestNetworksOfATask(t *testing.T) {
	t.Parallel()
	plan := func(text string) (string, error) {
		_, warnings, err := Plan(fileRun(text), PlanOptions{Registry: "reg.test:5000"})
		return warnings.String(), err
	}
	if _, err := plan("version: v1.1.0\nsteps:\n- {id: a, cmd: img, network: bakc}\n"); err == nil || !strings.Contains(err.Error(), `step "a": network: network "bakc" is not declared`) {
		t.Errorf("an undeclared network: %v", err)
	}
	for option, want := range map[string]string{"--network host": "the host's network is never given to a step", "--cpus many": `"many" is no number of processors`} {
		if _, err := plan("version: v1.1.0\nsteps:\n- {id: a, cmd: " + option + " img}\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", option, err, want)
		}
	}
	got, err := plan("version: v1.1.0\nnetworks:\n- {name: n, driver: overlay, ipv6: true, skipCreation: true}\nsteps:\n- {id: a, cmd: -p 80:80 img, detach: true, repeat: 1, network: n}\n- {id: b, build: ., detach: true}\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"skipCreation has no effect", `driver "overlay" has no effect`, "ipv6 has no effect", "ports: nothing is published", `"a": repeat: has no effect`, `"b": detach: has no effect`} {
		if !strings.Contains(got, want) {
			t.Errorf("warnings %q, want %q among them", got, want)
		}
	}
}

func TestNoticeOfTheWorkerIsInTheLog(t *testing.T) {
	t.Parallel()
	g := newRig(t, &script{})
	g.w.Notice = "nothing is isolated"
	r := fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img}\n")
	g.execute(t, g.assign(t, r, nil))
	if got := g.log(t, r.ID); !strings.Contains(got, "warning: nothing is isolated\n") {
		t.Errorf("log = %q, want the notice", got)
	}
}
