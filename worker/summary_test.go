package worker

import (
	"context"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/solve"
)

const otherDigest = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

// summaryOf is the part of a log from its summary on.
func summaryOf(t *testing.T, log string) string {
	t.Helper()
	i := strings.Index(log, "STEP ")
	if i < 0 {
		t.Fatalf("log has no summary:\n%s", log)
	}
	return log[i:]
}

// fields returns the words of each line.
func fields(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}

func TestRunEndsWithASummary(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = func(ctx context.Context, b solve.Build, log solve.LogFunc) (solve.Built, error) {
		built, err := g.stage(ctx, b)
		built.Bases = append(built.Bases, run.Base{Ref: "docker.io/library/golang:1.26", Digest: otherDigest})
		built.Runtime = built.Bases[0].Ref + "@" + built.Bases[0].Digest
		return built, err
	}
	r := buildRun(run.BuildSpec{Images: []string{"app"}})
	r.Cause.Commit = "c0ffee"
	rep := final(g.execute(t, g.assign(t, r, nil)))
	if rep == nil || rep.Final != run.Succeeded {
		t.Fatalf("final report = %+v", rep)
	}
	got := fields(summaryOf(t, g.log(t, r.ID)))
	took := func(i int) string {
		s := rep.Steps[i]
		return duration(s.Finished.Sub(s.Started))
	}
	digest := rep.Steps[0].Output.Digest
	want := []string{
		"STEP KIND STATUS DURATION EXIT",
		"build build Succeeded " + took(0) + " -",
		"push push Succeeded " + took(1) + " -",
		"images:",
		g.reg.Host + "/app:" + testRun + "@" + digest,
		"the following dependencies were found:",
		"- image:", "registry: " + g.reg.Host, "repository: app", "tag: " + testRun, "digest: " + digest,
		"runtime-dependency:", "registry: docker.io", "repository: library/node", "tag: 22", "digest: " + someDigest,
		"buildtime-dependency:", "- registry: docker.io", "repository: library/golang", "tag: 1.26", "digest: " + otherDigest,
		"git:", "git-head-revision: c0ffee",
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
		t.Errorf("summary is\n%s\nwant\n%s", a, b)
	}
}

// TestSummaryOfFailedRuns has steps that end in every way there is.
func TestSummaryOfFailedRuns(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	started := make(chan struct{})
	s.run = func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
		switch c.Step {
		case "shaky":
			return 4, nil
		case "long":
			close(started)
			return untilDone(ctx, c, log)
		case "bad":
			<-started
			return 7, nil
		}
		return 0, nil
	}
	r := fileRun(`version: v1.1.0
steps:
- {id: again, build: -t a ., when: ['-']}
- {id: shaky, cmd: img, ignoreErrors: true, when: [again]}
- {id: long, cmd: img, when: [shaky]}
- {id: bad, cmd: img, when: [shaky]}
- {id: never, cmd: img, when: [bad]}
- {id: late, cmd: img, when: ['-'], startDelay: 3000}
`)
	r.Attempt = 2
	r.Steps = []run.Step{{ID: "again", Kind: "build", State: run.StepSucceeded, Attempt: 1,
		Output: &run.Output{Digest: someDigest, Ref: "reg.test:5000/kiln/staging/run-local@" + someDigest, Tags: []string{"a"}}}}
	reports := g.execute(t, g.assign(t, r, nil))
	if rep := final(reports); rep == nil || rep.Final != run.Failed {
		t.Fatalf("final report = %+v", rep)
	}
	log := g.log(t, r.ID)
	lines := fields(summaryOf(t, log))
	for i, want := range []string{"again build Succeeded in attempt 1 - -", "shaky cmd Succeeded, failure ignored # 4", "long cmd Canceled # -",
		"bad cmd Failed # 7", "never cmd Skipped - -", "late cmd Skipped - -"} {
		before, after, timed := strings.Cut(want, "#")
		if got := lines[i+1]; !strings.HasPrefix(got, before) || !strings.HasSuffix(got, after) || !timed && got != want {
			t.Errorf("line %d is %q, want %q", i+1, got, want)
		}
	}
	if !strings.Contains(log, "attempt 2, on worker w") || !strings.Contains(log, "step bad: exit code 7") {
		t.Errorf("log does not tell the attempt and the reason:\n%s", log)
	}
}

// TestNoSummaryWithoutAnOutcome has an attempt that is given up: the run goes on.
func TestNoSummaryWithoutAnOutcome(t *testing.T) {
	t.Parallel()
	s := &script{run: func(context.Context, solve.Container, solve.LogFunc) (int, error) { return -1, solve.ErrUnavailable }}
	g := newRig(t, s)
	rep := final(g.execute(t, g.assign(t, fileRun("version: v1.1.0\nsteps:\n- {id: a, cmd: img}\n"), nil)))
	if rep == nil || rep.Final != event.HandedBack {
		t.Fatalf("final report = %+v", rep)
	}
	if log := g.log(t, testRun); strings.Contains(log, "STEP") || !strings.Contains(log, "attempt 1 given up") {
		t.Errorf("log is\n%s", log)
	}
}
