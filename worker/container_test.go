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
	"kiln/taskspec"
)

// cmdRun is a run of one cmd step with these further lines.
func cmdRun(lines string) run.Run {
	return fileRun("version: v1.1.0\nvolumes:\n- name: v\n  secret: {f: aGk=}\nsteps:\n- id: a\n  cmd: img\n" + lines)
}

func TestPrivilegedNeedsServerAndTask(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                     string
		server, task, restricted bool
		want                     string
	}{
		{"neither", false, false, false, "privileged containers are not allowed on this server"},
		{"task only", false, true, false, "privileged containers are not allowed on this server; its operator may start it with --allow-privileged"},
		{"server only", true, false, false, "the task does not allow privileged containers"},
		{"both", true, true, false, ""},
		{"a stranger's pull request", true, true, true, "privileged containers are never allowed to a pull request"},
	} {
		r := cmdRun("  privileged: true\n")
		r.Spec.Privileged, r.Spec.Restricted = c.task, c.restricted
		_, _, err := Plan(r, PlanOptions{Privileged: c.server})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), `step "a": privileged: `+c.want)) {
			t.Errorf("%s: Plan = %v, want %q", c.name, err, c.want)
		}
	}
}

func TestUnfitContainersAreRefusedByName(t *testing.T) {
	t.Parallel()
	for lines, want := range map[string]string{
		"  cpus: many\n":  `cpus: "many" is no number of processors`,
		"  cpus: 0.001\n": `cpus: "0.001" is no number of processors`,
		"  volumeMounts:\n  - {name: v, mountPath: x/y}\n":         `volumeMounts: mountPath "x/y" is not absolute; write /x/y`,
		"  volumeMounts:\n  - {name: v, mountPath: /workspace/}\n": "volumeMounts: mountPath /workspace is needed for the run",
		"  volumeMounts:\n  - {name: v, mountPath: /..}\n":         "volumeMounts: mountPath / is needed",
	} {
		_, _, err := Plan(cmdRun(lines), PlanOptions{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: Plan = %v, want %q", lines, err, want)
		}
	}
	if _, _, err := Plan(fileRun("steps:\n- cmd: -m 1m img\n"), PlanOptions{}); err == nil || !strings.Contains(err.Error(), `cmd: --memory: "1m" is no amount of memory`) {
		t.Errorf("-m 1m: %v", err)
	}
	for flag, want := range map[string]string{"db": `"db": want HOST:IP`, "db:host-gateway": `"db:host-gateway": "host-gateway" is no IP address`, "a/b:192.0.2.1": `"a/b:192.0.2.1": want HOST:IP`} {
		if _, _, err := Plan(fileRun("steps:\n- cmd: --add-host "+flag+" img\n"), PlanOptions{}); err == nil || !strings.Contains(err.Error(), "cmd: --add-host: "+want) {
			t.Errorf("--add-host %s: %v", flag, err)
		}
	}
	task := &taskspec.Task{Volumes: []taskspec.Volume{{Name: "v", Files: map[string][]byte{"f": make([]byte, maxVolumeFile+1)}}}}
	if why := unfitMount(task, taskspec.Mount{Volume: "v", Path: "/v"}); !strings.Contains(why, "at most 512000 are possible") {
		t.Errorf("a file that is too large: %q", why)
	}
}

func TestAmountsOfMemoryAreDockers(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"": 0, "0": 0, "6291456": 6 << 20, "512m": 512 << 20, "2G": 2 << 30, "1.5gb": 3 << 29, "7MiB": 7 << 20, "1t": 1 << 40, "8388608b": 8 << 20} {
		if got, err := parseMemory(text); err != nil || got != want {
			t.Errorf("parseMemory(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"b", "m", "x", "-1g", "5m", "nan", "inf", "1e40", "1p"} {
		if got, err := parseMemory(text); err == nil {
			t.Errorf("parseMemory(%q) = %d", text, got)
		}
	}
}

// TestLimitsAreTheLowerOfStepAndTask asks for a container with limits of both.
func TestLimitsAreTheLowerOfStepAndTask(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	r := fileRun("steps:\n- cmd: --cpus 4 -m 64m img\n- cmd: --cpus 0.5 img\n- cmd: img\n")
	r.Spec.CPU, r.Spec.Memory = 2, 1<<30
	if rep := final(g.execute(t, g.assign(t, r, nil))); rep == nil || rep.Final != run.Succeeded {
		t.Fatalf("final report = %+v", rep)
	}
	for i, want := range []solve.Container{{CPUs: 2, Memory: 64 << 20}, {CPUs: 0.5, Memory: 1 << 30}, {CPUs: 2, Memory: 1 << 30}} {
		if c := s.runs[i]; c.CPUs != want.CPUs || c.Memory != want.Memory {
			t.Errorf("step %d: %v processors, %d bytes; want %v, %d", i, c.CPUs, c.Memory, want.CPUs, want.Memory)
		}
	}
}

func TestPullIsRetriedAsTheStepSays(t *testing.T) {
	t.Parallel()
	s := &script{}
	pulls := 0
	s.run = func(_ context.Context, c solve.Container, _ solve.LogFunc) (int, error) {
		if pulls++; pulls < 3 {
			return -1, &solve.StepError{ExitCode: -1, Pull: true, Message: "image img: 503"}
		}
		return 0, nil
	}
	g := newRig(t, s)
	r := fileRun("steps:\n- cmd: img\n  pull: true\n  cmdDownloadRetries: 2\n- cmd: img\n")
	if rep := final(g.execute(t, g.assign(t, r, nil))); rep == nil || rep.Final != run.Succeeded || pulls != 4 || !s.runs[0].Pull || s.runs[3].Pull {
		t.Errorf("final report = %+v after %d pulls", rep, pulls)
	}
	s.run = func(context.Context, solve.Container, solve.LogFunc) (int, error) {
		return -1, &solve.StepError{ExitCode: -1, Message: "no such program"}
	}
	n := len(s.runs)
	var failed *solve.StepError
	_, err := (&attempt{w: g.w, session: s, logs: testLogs(t, g.bus, nil, "a")}).runPatiently(t.Context(),
		&taskspec.Step{ID: "a", Cmd: &taskspec.Cmd{Pull: true, PullRetries: 5, PullDelay: time.Hour}}, solve.Container{})
	if !errors.As(err, &failed) || len(s.runs) != n+1 {
		t.Errorf("another failure: %v after %d tries", err, len(s.runs)-n)
	}
}

func TestDelayOfPullsIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		began := time.Now()
		s := &script{run: func(context.Context, solve.Container, solve.LogFunc) (int, error) {
			at = append(at, time.Since(began))
			return -1, &solve.StepError{ExitCode: -1, Pull: true, Message: "image img: 503"}
		}}
		a := detached(t, fileRun("steps:\n- {cmd: --pull always img, cmdDownloadRetries: 2, cmdDownloadRetryDelay: 7}\n"), s)
		if err := a.runGraph(t.Context()); err == nil || !strings.Contains(err.Error(), "image img: 503") {
			t.Errorf("runGraph = %v", err)
		}
		if want := []time.Duration{0, 7 * time.Second, 14 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("pulled at %v, want %v", at, want)
		}
	})
}

// What a step pulls comes from the registry, and an image of the run that has the name is said to be passed over.
func TestPullPassesOverImagesOfTheRun(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	r := fileRun("steps:\n- {id: b, build: \"-t app .\"}\n- {id: ours, cmd: app}\n- {id: theirs, cmd: app, pull: true}\n")
	if rep := final(g.execute(t, g.assign(t, r, nil))); rep == nil || rep.Final != run.Succeeded {
		t.Fatalf("%+v", rep)
	}
	if ours, theirs := s.runs[0].Image, s.runs[1].Image; !strings.Contains(ours, "@sha256:") || theirs != "docker.io/library/app:latest" {
		t.Errorf("executed %s, then %s", ours, theirs)
	}
	if log := g.log(t, testRun); strings.Count(log, "warning: pull has app taken from its registry, not the image of that name that step b has built") != 1 {
		t.Error(log)
	}
}
