package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/event"
	"kiln/internal/netguard"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
	"kiln/internal/run"
	"kiln/internal/solve"
)

func TestBuildIsPublished(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	r := buildRun(run.BuildSpec{Images: []string{"team/app", "team/app:latest"}})
	r.Spec.Context = "context://x"
	rep := final(g.execute(t, g.assign(t, r, map[string]string{"npm": "hunter22"})))
	if rep == nil || rep.Final != run.Succeeded || rep.LogEnd == 0 || len(rep.Images) != 2 || rep.Begun.IsZero() {
		t.Fatalf("final report = %+v", rep)
	}
	for _, tag := range []string{testRun, "latest"} {
		d, err := g.reg.Store.Resolve(t.Context(), "team/app", tag)
		if err != nil || d.Digest != rep.Images[0].Digest {
			t.Errorf("team/app:%s = %+v, %v, want %s", tag, d, err, rep.Images[0].Digest)
		}
	}
	build := rep.Steps[0]
	if build.Output == nil || build.Output.Digest != rep.Images[0].Digest || len(rep.Bases) != 1 || rep.Bases[0].Step != "build" {
		t.Errorf("build = %+v, bases %+v", build, rep.Bases)
	}
	if b := s.builds[0]; b.Staging != g.reg.Host+"/kiln/staging/team/app" || b.Context != "." || b.FromWorkspace {
		t.Errorf("asked to build %+v", b)
	}
	user, password := s.cfg.Credentials(g.reg.Host)
	other, _ := s.cfg.Credentials("docker.io")
	if user == "" || password != g.reg.Token || other != "" || s.cfg.SourceKey != "dir" {
		t.Errorf("session for %q, %q, foreign %q, source %q", user, password, other, s.cfg.SourceKey)
	}
	if s.closed != 1 {
		t.Errorf("session closed %d times", s.closed)
	}
}

// TestOutcomes executes a cmd step that ends in every way and checks what the scheduler is told.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	fails := func(err error) func(context.Context, solve.Container, solve.LogFunc) (int, error) {
		return func(context.Context, solve.Container, solve.LogFunc) (int, error) { return -1, err }
	}
	exits := func(code int) func(context.Context, solve.Container, solve.LogFunc) (int, error) {
		return func(context.Context, solve.Container, solve.LogFunc) (int, error) { return code, nil }
	}
	s := &script{}
	g := newRig(t, s)
	for i, tc := range []struct {
		name      string
		run       func(context.Context, solve.Container, solve.LogFunc) (int, error)
		cancel    error
		timeout   time.Duration
		want      run.State // empty: nothing is said
		reason    string
		blameless bool
	}{
		{name: "success", run: exits(0), want: run.Succeeded},
		{name: "exit code", run: exits(7), want: run.Failed, reason: "step a: exit code 7"},
		{name: "no such image", run: fails(&solve.StepError{ExitCode: -1, Message: "no image hunter22"}), want: run.Failed, reason: "step a: no image ***"},
		{name: "daemon gone", run: fails(errors.Join(solve.ErrUnavailable, errors.New("hunter22"))), want: event.HandedBack, reason: "***"},
		{name: "superseded", run: fails(registry.ErrFenced)},
		{name: "engine's error", run: fails(errors.New("disk of hunter22 is full")), want: run.Error, reason: "disk of *** is full"},
		{name: "canceled", run: untilDone, cancel: errCanceled, want: run.Canceled, reason: "canceled"},
		{name: "shutdown", run: untilDone, cancel: errShutdown, want: event.HandedBack, reason: "shutting down", blameless: true},
		{name: "lease lost", run: untilDone, cancel: errLeaseLost},
		{name: "given up", run: untilDone, cancel: errGivenUp},
		{name: "run's time limit", run: untilDone, timeout: time.Millisecond, want: run.Timeout, reason: "longer than 1ms; raise --timeout"},
		{name: "canceled too late", run: exits(0), cancel: errCanceled, want: run.Succeeded},
	} {
		r := fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img}\n")
		r.ID, r.Spec.Timeout = testRun[:11]+string(rune('a'+i)), tc.timeout
		ctx, cancel := context.WithCancelCause(t.Context())
		s.run = func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
			if tc.cancel != nil {
				cancel(tc.cancel)
			}
			return tc.run(ctx, c, log)
		}
		g.w.execute(ctx, cancel, g.assign(t, r, map[string]string{"pw": "hunter22"}))
		cancel(nil)
		rep := final(g.reports(t, r.ID))
		if rep == nil {
			rep = &event.Report{}
		}
		if rep.Final != tc.want || !strings.Contains(rep.Reason, tc.reason) || rep.Blameless != tc.blameless {
			t.Errorf("%s: %q, %q, blameless %v, want %q, %q, %v", tc.name, rep.Final, rep.Reason, rep.Blameless, tc.want, tc.reason, tc.blameless)
		}
		if text := g.log(t, r.ID) + rep.Reason; strings.Contains(text, "hunter22") {
			t.Errorf("%s: the secret is in %q", tc.name, text)
		}
	}
}

func TestSupersededAttemptPublishesAndSaysNothing(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	r := buildRun(run.BuildSpec{Images: []string{"app"}})
	s.build = func(ctx context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
		if err := g.reg.Store.RaiseFence(ctx, r.ID, 2); err != nil {
			return solve.Built{}, err
		}
		return g.stage(ctx, b)
	}
	reports := g.execute(t, g.assign(t, r, nil))
	if rep := final(reports); rep != nil {
		t.Errorf("final report = %+v, want none", rep)
	}
	if d, err := g.reg.Store.Resolve(t.Context(), "app", testRun); err == nil {
		t.Errorf("app:%s = %+v, want nothing published", testRun, d)
	}
}

// publishTwice executes a run, and then another attempt that knows nothing of the first, makes another image and
// publishes it in the step that edit names. It returns both final reports.
func publishTwice(t *testing.T, edit func(*registry.Publication)) (first, second *event.Report) {
	t.Helper()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	as := g.assign(t, buildRun(run.BuildSpec{Images: []string{"app"}}), nil)
	if first = final(g.execute(t, as)); first == nil || first.Final != run.Succeeded {
		t.Fatalf("first attempt = %+v", first)
	}
	r := as.Run
	r.Attempt, r.Steps = 2, nil
	s.build = func(ctx context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
		b.Step = "another content"
		return g.stage(ctx, b)
	}
	g.w.Publisher = editing{g.w.Publisher, edit}
	return first, final(g.execute(t, g.assign(t, r, nil)))
}

// editing is a Publisher of changed publications.
type editing struct {
	Publisher
	edit func(*registry.Publication)
}

func (e editing) Publish(ctx context.Context, tokens event.Tokens, p registry.Publication) ([]registry.Published, error) {
	e.edit(&p)
	return e.Publisher.Publish(ctx, tokens, p)
}

func TestTakenTagFailsTheStep(t *testing.T) {
	t.Parallel()
	_, rep := publishTwice(t, func(p *registry.Publication) { p.Step = "another" })
	if rep == nil || rep.Final != run.Failed || !strings.Contains(rep.Reason, "app:"+testRun) {
		t.Errorf("final report = %+v, want Failed because of app:%s", rep, testRun)
	}
}

// An attempt that is lost after its publication, before it can say so, has published nevertheless.
func TestPublicationOfALostAttemptIsTheRuns(t *testing.T) {
	t.Parallel()
	first, rep := publishTwice(t, func(*registry.Publication) {})
	if rep == nil || rep.Final != run.Succeeded || !slices.Equal(rep.Images, first.Images) {
		t.Errorf("second attempt = %+v, want Succeeded with %v", rep, first.Images)
	}
}

func TestUnreadableSourceIsAnError(t *testing.T) {
	t.Parallel()
	broken := errors.New("pack is truncated")
	s, src := &script{}, &files{}
	g := newRig(t, s)
	g.w.Open = func(context.Context, OpenRequest) (Source, error) { return nil, broken }
	r := fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img}\n")
	rep := final(g.execute(t, g.assign(t, r, nil)))
	if rep == nil || rep.Final != run.Error || rep.Reason != "source: pack is truncated" {
		t.Errorf("source that cannot be opened: %+v", rep)
	}
	g.w.Open = func(context.Context, OpenRequest) (Source, error) { return src, nil }
	s.run = func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
		src.guard(broken)
		return untilDone(ctx, c, log)
	}
	r.ID = "r0000000next"
	rep = final(g.execute(t, g.assign(t, r, nil)))
	if rep == nil || rep.Final != run.Error || rep.Reason != "source: pack is truncated" {
		t.Errorf("source that cannot be read: %+v", rep)
	}
}

func TestTaskThatCannotBePlannedFails(t *testing.T) {
	t.Parallel()
	g := newRig(t, &script{})
	rep := final(g.execute(t, g.assign(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img, retries: x}\n"), nil)))
	if rep == nil || rep.Final != run.Failed || !strings.Contains(rep.Reason, "kiln.yaml:3:") || !strings.Contains(g.log(t, testRun), "retries") {
		t.Errorf("final report = %+v", rep)
	}
}

// open lets everybody do everything, as a test registry on loopback may.
type open struct{}

func (open) Authorize(*http.Request, string, registry.Action) error { return nil }

func TestPushToAnotherRegistry(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	st, err := registry.Open(t.TempDir(), registry.Options{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(st.Handler(open{}))
	t.Cleanup(func() { srv.Close(); _ = st.Close() })
	host := strings.TrimPrefix(srv.URL, "http://")
	rep := final(g.execute(t, g.assign(t, buildRun(run.BuildSpec{Images: []string{host + "/far/app:v1"}}), nil)))
	if rep == nil || rep.Final != run.Succeeded {
		t.Fatalf("final report = %+v", rep)
	}
	d, err := st.Resolve(t.Context(), "far/app", "v1")
	if err != nil || d.Digest != rep.Steps[0].Output.Digest {
		t.Errorf("%s/far/app:v1 = %+v, %v, want %s", host, d, err, rep.Steps[0].Output.Digest)
	}
	srv.Close()
	r := buildRun(run.BuildSpec{Images: []string{host + "/far/app:v1"}})
	r.ID = "r0000000next"
	if rep := final(g.execute(t, g.assign(t, r, nil))); rep == nil || rep.Final != run.Failed || !strings.Contains(rep.Reason, host+"/far/app:v1") {
		t.Errorf("registry is gone: %+v", rep)
	}
}

// What a task names as a registry may not be in the network of the worker, unless that is allowed; the
// co-located registry may.
func TestRegistriesInsideAreRefused(t *testing.T) {
	t.Parallel()
	other, n := registrytest.Start(t), 0
	for _, allowed := range []bool{false, true} {
		s := &script{}
		g := newRig(t, s)
		s.build = g.staging
		g.w.Outside = netguard.Guard{Allow: func(string, netip.Addr) bool { return allowed }}.Client(0).Transport
		for step, cmd := range map[string]string{
			"push":  "  - push: [" + other.Host + "/far/app:v1]\n",
			"login": "  - cmd: docker login -u me -p " + other.Token + " " + other.Host + "\n",
			"pull":  "  - cmd: docker pull " + other.Host + "/far/app:v1\n",
		} {
			r := fileRun("version: v1.1.0\nsteps:\n  - build: -t " + other.Host + "/far/app:v1 -t " + g.reg.Host + "/own:v1 .\n  - push: [" + g.reg.Host + "/own:v1]\n" + cmd)
			n++
			r.ID = fmt.Sprintf("r%011d", n)
			reports := g.execute(t, g.assign(t, r, nil))
			rep, why := final(reports), ""
			if rep != nil {
				why = rep.Reason
			}
			if got := strings.Contains(why, "refused address"); got == allowed || strings.Contains(why, "own:v1") {
				t.Errorf("docker %s, allowed is %t: %s", step, allowed, why)
			}
		}
		if _, err := g.reg.Store.Resolve(t.Context(), "own", "v1"); err != nil {
			t.Errorf("the co-located registry: %v", err)
		}
	}
}

// attempts is a task whose steps use what earlier ones built.
const attempts = `version: v1.1.0
steps:
- {id: tool, build: -t tool ., when: ['-']}
- {id: pushed, push: ['reg.test:5000/done:v1'], when: [tool]}
- {id: use, cmd: tool run, when: [pushed]}
- {id: again, build: -t reg.test:5000/app:v1 ., when: [use]}
`

func TestFinishedStepsAreNotRepeated(t *testing.T) {
	t.Parallel()
	out := &run.Output{Digest: someDigest, Ref: "reg.test:5000/kiln/staging/run-local@" + someDigest, Tags: []string{"tool"}}
	r := fileRun(attempts)
	r.Attempt, r.Steps = 2, []run.Step{
		{ID: "tool", Kind: "build", State: run.StepSucceeded, Attempt: 1, Output: out},
		{ID: "pushed", Kind: "push", State: run.StepSucceeded, Attempt: 1},
		{ID: "use", Kind: "cmd", State: run.StepSucceeded, Attempt: 1},
		{ID: "again", Kind: "build", State: run.StepRunning, Attempt: 1},
	}
	s := &script{}
	a := detached(t, r, s)
	if err := a.runGraph(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.steps(), []string{"use", "again"}) {
		t.Errorf("executed %v, want use and again", s.steps())
	}
	if s.runs[0].Image != out.Ref {
		t.Errorf("use runs %s, want what the earlier attempt built, %s", s.runs[0].Image, out.Ref)
	}
	b := s.builds[0]
	if b.Images["docker.io/library/tool:latest"] != out.Ref || !b.FromWorkspace || b.Staging != "reg.test:5000/kiln/staging/app" {
		t.Errorf("again is built with %+v", b)
	}
	if rec := a.record("tool"); rec.Attempt != 1 || rec.Output == nil || rec.State != run.StepSucceeded {
		t.Errorf("record of tool = %+v, want that of attempt 1", rec)
	}
	if rec := a.record("use"); rec.Attempt != 2 || rec.Tries != 1 {
		t.Errorf("record of use = %+v, want that of attempt 2", rec)
	}
	if !strings.Contains(a.text("tool"), "not repeated") {
		t.Errorf("log of tool = %q", a.text("tool"))
	}
}

func TestPushOfWhatWasNotBuiltFails(t *testing.T) {
	t.Parallel()
	a := detached(t, fileRun("version: v1.1.0\nsteps:\n- {id: p, push: ['reg.test:5000/app:v1']}\n"), &script{})
	var failure *stepFailure
	if err := a.runGraph(t.Context()); !errors.As(err, &failure) || !strings.Contains(err.Error(), "reg.test:5000/app:v1 was not built") {
		t.Errorf("runGraph = %v", err)
	}
}

func TestContextOutsideTheSourceFails(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"build: -t a ../..", "build: -t a -f ../Dockerfile .", "build: -t a .\n  workingDirectory: /etc"} {
		s := &script{}
		a := detached(t, fileRun("version: v1.1.0\nsteps:\n- id: b\n  "+step+"\n"), s)
		var failure *stepFailure
		if err := a.runGraph(t.Context()); !errors.As(err, &failure) || len(s.steps()) != 0 {
			t.Errorf("%q: %v, executed %v", step, err, s.steps())
		}
	}
}
