package worker

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/internal/store"
)

func TestFinalReportRepeatsEverything(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	r := newReporter(b, run.Run{ID: testRun, Attempt: 2}, time.Now())
	r.begin([]run.Step{{ID: "a", State: run.StepPending}, {ID: "b", State: run.StepPending}})
	first := awaitReport(t, b, func(event.Report) bool { return true })
	if first.Begun.IsZero() || len(first.Steps) != 2 || first.N != 1 || first.Attempt != 2 {
		t.Errorf("first report = %+v", first)
	}
	r.step(run.Step{ID: "a", State: run.StepSucceeded})
	r.images([]run.Image{{Repository: "app", Tag: "v1"}})
	r.bases([]run.Base{{Ref: "node", Digest: someDigest}})
	r.kick()
	second := awaitReport(t, b, func(r event.Report) bool { return r.N == 2 })
	if len(second.Steps) != 1 || !second.Begun.IsZero() || len(second.Images) != 1 || len(second.Bases) != 1 {
		t.Errorf("second report = %+v, want the news alone", second)
	}
	r.step(run.Step{ID: "b", State: run.StepFailed})
	if err := r.final(t.Context(), outcome{state: run.Failed, reason: "why", blameless: true}, 42); err != nil {
		t.Fatal(err)
	}
	r.step(run.Step{ID: "b", State: run.StepCanceled})
	r.kick()
	all := stored[event.Report](t, b, bus.StreamReports, event.ReportSubject(testRun))
	if len(all) != 3 {
		t.Fatalf("%d reports, want 3", len(all))
	}
	f := all[2]
	if f.N != 3 || f.Final != run.Failed || f.Reason != "why" || !f.Blameless || f.LogEnd != 42 || f.Begun.IsZero() || len(f.Steps) != 2 ||
		f.Steps[0].State != run.StepSucceeded || f.Steps[1].State != run.StepFailed || len(f.Images) != 1 || len(f.Bases) != 1 {
		t.Errorf("final report = %+v, want everything", f)
	}
}

// awaitReport waits for a report that fits.
func awaitReport(t *testing.T, b *bus.Bus, fits func(event.Report) bool) event.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var found *event.Report
	err := b.Tail(ctx, bus.StreamReports, event.SubjectReports, 0, true, func(_ uint64, data []byte) bool {
		var r event.Report
		if err := json.Unmarshal(data, &r); err != nil {
			t.Error(err)
		}
		if fits(r) {
			found = &r
		}
		return found == nil
	})
	if err != nil || found == nil {
		t.Fatalf("no such report: %v", err)
	}
	return *found
}

// serve runs the rig's worker; the returned function stops it and waits.
func (g *rig) serve(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.w.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (g *rig) send(t *testing.T, as event.Assignment) {
	t.Helper()
	if _, err := g.bus.Publish(t.Context(), event.WorkSubject(g.w.Instance), "", as); err != nil {
		t.Fatal(err)
	}
}

func TestWorkerExecutesAssignmentsOnceAndCancels(t *testing.T) {
	t.Parallel()
	begun := make(chan string, 8)
	s := &script{run: func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
		begun <- c.Step
		return untilDone(ctx, c, log)
	}}
	g := newRig(t, s)
	stop := g.serve(t)
	as := g.assign(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img}\n"), nil)
	g.send(t, as)
	<-begun
	if w, _, err := g.w.Store.Workers.Get(t.Context(), "one"); err != nil || w.Recipient != g.w.Identity.Recipient() {
		t.Errorf("registration = %+v, %v", w, err)
	}
	g.send(t, as) // delivered again
	other := as
	other.Run.ID = "r0000000next"
	g.send(t, other)
	<-begun
	if n := len(s.steps()); n != 2 {
		t.Errorf("%d executions of two runs", n)
	}
	if err := g.bus.Signal(event.ControlSubject("one"), event.Control{Run: testRun, Attempt: 1, Reason: "by admin"}); err != nil {
		t.Fatal(err)
	}
	rep := awaitReport(t, g.bus, func(r event.Report) bool { return r.Final != "" })
	if rep.Run != testRun || rep.Final != run.Canceled || rep.Reason != "canceled by admin" || rep.Steps[0].State != run.StepCanceled {
		t.Errorf("final report = %+v, want %s canceled by admin", rep, testRun)
	}
	stop() // no grace: what is in hand is handed back
	rep = awaitReport(t, g.bus, func(r event.Report) bool { return r.Final != "" && r.Run == other.Run.ID })
	if rep.Final != event.HandedBack || !rep.Blameless {
		t.Errorf("final report = %+v, want it handed back without blame", rep)
	}
	if w, _, err := g.w.Store.Workers.Get(t.Context(), "one"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("registration after the end = %+v, %v", w, err)
	}
}

func TestWorkInHandFinishesInTheGracePeriod(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan bool), make(chan bool)
	s := &script{run: func(ctx context.Context, _ solve.Container, _ solve.LogFunc) (int, error) {
		begun <- true
		select {
		case <-goOn:
			return 0, nil
		case <-ctx.Done():
			return -1, context.Cause(ctx)
		}
	}}
	g := newRig(t, s)
	g.w.Grace = time.Minute
	stop := g.serve(t)
	g.send(t, g.assign(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img}\n"), nil))
	<-begun
	watched := make(chan error, 1)
	go func() { // the registration goes when the intake has stopped
		watched <- g.w.Store.Workers.Watch(t.Context(), "one", func(e *store.Entry[event.Worker]) bool {
			return e == nil || !e.Gone
		})
		close(goOn)
	}()
	stop()
	if err := <-watched; err != nil {
		t.Error(err)
	}
	if rep := final(g.reports(t, testRun)); rep == nil || rep.Final != run.Succeeded {
		t.Errorf("final report = %+v, want success", rep)
	}
}

func TestAttemptWithoutLeaseIsAborted(t *testing.T) {
	t.Parallel()
	g := newRig(t, &script{run: untilDone})
	g.w.LeaseTTL = 60 * time.Millisecond
	as := g.assign(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img}\n"), nil)
	if err := g.bus.JetStream().DeleteKeyValue(t.Context(), "leases"); err != nil {
		t.Fatal(err)
	}
	if rep := final(g.execute(t, as)); rep != nil {
		t.Errorf("final report = %+v, want none: another attempt has taken over", rep)
	}
}
