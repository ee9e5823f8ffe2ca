package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kiln/internal/run"
	"kiln/internal/solve"
)

// TestStepsTakeTurns executes two wide runs on a worker of four steps: never more are executed at once,
// the run that comes second does not wait for the first one to end, and both then advance alike.
func TestStepsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const width = 12
		file := "version: v1.1.0\nsteps:\n"
		for i := range width {
			file += fmt.Sprintf("- {id: s%d, cmd: img, when: ['-']}\n", i)
		}
		w := &Worker{Registry: "reg.test:5000", Log: slog.New(slog.DiscardHandler)}
		w.turns.steps, w.turns.runs = 4, 2
		var mu sync.Mutex
		atWork, ended := map[string]int{}, map[string]int{}
		var runs sync.WaitGroup
		begin := func(id string) {
			s := &script{run: func(ctx context.Context, _ solve.Container, _ solve.LogFunc) (int, error) {
				mu.Lock()
				atWork[id]++
				if n := atWork["first"] + atWork["second"]; n > 4 {
					t.Errorf("%d steps at work, want at most 4", n)
				}
				if n := atWork[id]; n == 4 {
					t.Errorf("run %s has all steps of the worker", id)
				}
				mu.Unlock()
				err := pause(ctx, time.Minute)
				mu.Lock()
				atWork[id]--
				ended[id]++
				mu.Unlock()
				return 0, err
			}}
			r := fileRun(file)
			r.ID = id
			a := detached(t, r, s)
			a.w = w
			runs.Go(func() {
				if err := a.runGraph(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		at := func(id string) int {
			mu.Lock()
			defer mu.Unlock()
			return atWork[id]
		}
		begin("first")
		synctest.Wait()
		if at("first") != 3 {
			t.Errorf("alone, the first run has %d steps at work, want 3", at("first"))
		}
		begin("second")
		synctest.Wait()
		if at("second") != 1 {
			t.Errorf("the second run has %d steps at work, want 1 at once", at("second"))
		}
		<-time.After(4*time.Minute + time.Second)
		if at("first") != 2 || at("second") != 2 {
			t.Errorf("after some minutes the runs have %d and %d steps at work, want 2 and 2", at("first"), at("second"))
		}
		runs.Wait()
		if ended["first"] != width || ended["second"] != width {
			t.Errorf("%v steps have ended, want %d of each", ended, width)
		}
		if w.turns.total != 0 || len(w.turns.busy) != 0 || len(w.turns.waiting) != 0 {
			t.Errorf("in the end %d at work, %v, %d waiting", w.turns.total, w.turns.busy, len(w.turns.waiting))
		}
	})
}

// A step may wait for a service that the task does not make it wait for.
func TestServicesTakeNoTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := make(chan struct{})
		s := &script{run: func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
			if c.Step == "db" {
				c.Started()
				close(up)
				return untilDone(ctx, c, log)
			}
			select {
			case <-up:
				return 0, nil
			case <-ctx.Done():
				return -1, context.Cause(ctx)
			}
		}}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: client, cmd: img, when: ['-']}\n- {id: db, cmd: img, detach: true, when: ['-'], startDelay: 5}\n"), s)
		a.w.turns.steps, a.w.turns.runs = 1, 1
		if err := a.runGraph(t.Context()); err != nil {
			t.Errorf("runGraph = %v, steps %v", err, s.steps())
		}
	})
}

func TestWaitForATurnCanBeCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{run: untilDone}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img, when: ['-']}\n- {id: b, cmd: img, when: ['-']}\n"), s)
		a.w.turns.steps, a.w.turns.runs = 1, 1
		for _, s := range a.task.Steps {
			s.Timeout = 48 * time.Hour
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Hour, func() { cancel(errCanceled) })
		if err := a.runGraph(ctx); !errors.Is(err, errCanceled) {
			t.Errorf("runGraph = %v, want errCanceled", err)
		}
		if n := len(s.steps()); n != 1 {
			t.Errorf("%d steps were executed, want 1", n)
		}
		waited := "b"
		if s.steps()[0] == "b" {
			waited = "a"
		}
		if r := a.record(waited); r.State != run.StepPending || !r.Started.IsZero() {
			t.Errorf("the step that waited is %+v", r)
		}
		if a.w.turns.total != 0 || len(a.w.turns.waiting) != 0 {
			t.Errorf("in the end %d at work, %d waiting", a.w.turns.total, len(a.w.turns.waiting))
		}
	})
}
