package worker

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/run"
	"kiln/taskspec"
)

const testRun = "r0000000test"

func buildRun(b run.BuildSpec) run.Run {
	return run.Run{ID: testRun, Attempt: 1, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Spec: run.Spec{Build: &b}}
}

func fileRun(yaml string) run.Run {
	return run.Run{ID: testRun, Attempt: 1, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Spec: run.Spec{Context: "context://x", TaskFile: &run.TaskFileSpec{Name: "kiln.yaml", Content: []byte(yaml)}}}
}

// mustPlan plans a task file that is valid.
func mustPlan(t *testing.T, r run.Run) *taskspec.Task {
	t.Helper()
	task, _, err := Plan(r, PlanOptions{Registry: "reg.test:5000"})
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func TestNamesOfBuiltImages(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ given, want string }{
		{"app", "reg.test:5000/app:" + testRun},
		{"team/app", "reg.test:5000/team/app:" + testRun},
		{"app:v1", "reg.test:5000/app:v1"},
		{"app:{{.Run.ID}}", "reg.test:5000/app:" + testRun},
		{"app:x-{{.Run.ID}}", "reg.test:5000/app:x-" + testRun},
		{"{{.Run.Registry}}/app:v2", "reg.test:5000/app:v2"},
		{"other.test/app", "other.test/app:" + testRun},
		{"other.test/app:v1", "other.test/app:v1"},
		{"localhost/app:v1", "localhost/app:v1"},
		{"127.0.0.1:7070/app", "127.0.0.1:7070/app:" + testRun},
		{"docker.io/library/app:v1", "docker.io/library/app:v1"},
	} {
		task := mustPlan(t, buildRun(run.BuildSpec{Images: []string{tc.given}}))
		if got := task.Steps[0].Build.Tags; !slices.Equal(got, []string{tc.want}) {
			t.Errorf("-t %s names %v, want %s", tc.given, got, tc.want)
		}
	}
}

func TestBadImageNamesAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "UPPER", "app:bad tag", "app:v1:v2", "-app", "reg.test/App", "app:{{.Run.Nothing}}", "app:{{"} {
		_, _, err := Plan(buildRun(run.BuildSpec{Images: []string{name}}), PlanOptions{Registry: "reg.test:5000"})
		if err == nil {
			t.Errorf("-t %q is accepted", name)
		} else if !strings.Contains(err.Error(), "image name") {
			t.Errorf("-t %q: %v, which does not say what is wrong", name, err)
		}
	}
}

func TestBuildIsOneBuildAndOnePush(t *testing.T) {
	t.Parallel()
	r := buildRun(run.BuildSpec{Dockerfile: "deploy/Dockerfile", Images: []string{"a", "b:v1"}, BuildArgs: []string{"K=V=W", "BARE"}, Target: "t", NoCache: true})
	r.Spec.Platform, r.Spec.Timeout = "linux/arm64", 7*time.Minute
	task := mustPlan(t, r)
	if len(task.Steps) != 2 {
		t.Fatalf("%d steps, want a build and a push", len(task.Steps))
	}
	b, p := task.Steps[0], task.Steps[1]
	want := []taskspec.KeyValue{{Key: "K", Value: "V=W"}, {Key: "BARE", Bare: true}}
	if b.Kind != taskspec.KindBuild || b.Build.Dockerfile != "deploy/Dockerfile" || b.Build.Target != "t" || !b.Build.NoCache ||
		!slices.Equal(b.Build.BuildArgs, want) || !slices.Equal(b.Build.Platforms, []string{"linux/arm64"}) || b.Timeout != 7*time.Minute {
		t.Errorf("build step = %+v of %+v", b.Build, b)
	}
	if p.Kind != taskspec.KindPush || !slices.Equal(p.Push, b.Build.Tags) || !slices.Equal(p.After, []string{"build"}) {
		t.Errorf("push step = %+v", p)
	}
	for name, spec := range map[string]run.BuildSpec{"--no-push": {Images: []string{"a"}, NoPush: true}, "no image": {}} {
		if task := mustPlan(t, buildRun(spec)); len(task.Steps) != 1 || task.Steps[0].Kind != taskspec.KindBuild {
			t.Errorf("%s: %d steps, want the build alone", name, len(task.Steps))
		}
	}
}

func TestErrorsOfTaskFileHavePositions(t *testing.T) {
	t.Parallel()
	_, _, err := Plan(fileRun("version: v1.1.0\nsteps:\n- id: a\n  cmd: img\n  retries: x\n- push: y\n"), PlanOptions{Registry: "reg.test:5000"})
	var errs taskspec.Errors
	if !errors.As(err, &errs) || len(errs) != 2 {
		t.Fatalf("Plan = %v, want two errors", err)
	}
	if e := errs[0]; e.File != "kiln.yaml" || e.Line != 5 || e.Col != 12 || e.Step != "a" || e.Property != "retries" {
		t.Errorf("first error = %+v, want kiln.yaml:5:12 about retries of a", e)
	}
	if e := errs[1]; e.Line != 6 {
		t.Errorf("second error = %+v, want line 6", e)
	}
}

func TestUnsupportedPropertiesAreRefusedByName(t *testing.T) {
	t.Parallel()
	for property, step := range map[string]string{
		"network": "cmd: --network host img",
		"build":   "build: -t a --network host .",
	} {
		_, _, err := Plan(fileRun("version: v1.1.0\nsteps:\n- id: first\n  cmd: img\n- id: bad\n  "+step+"\n"), PlanOptions{Registry: "reg.test:5000"})
		var errs taskspec.Errors
		if !errors.As(err, &errs) || len(errs) != 1 {
			t.Errorf("%s: Plan = %v, want one error", property, err)
			continue
		}
		if e := errs[0]; e.Property != property || e.Step != "bad" || e.File != "kiln.yaml" || e.Line != 5 || e.Message == "" {
			t.Errorf("%s: error = %+v", property, e)
		}
	}
}

func TestSecretValuesAreNotInMessagesOfThePlan(t *testing.T) {
	t.Parallel()
	const value = "hunter22-hunter"
	for _, step := range []string{"cmd: img\n  when: ['{{.Values.token}}']", "cmd: img\n  timeout: '{{.Values.token}}'", "push: ['{{.Values.token}}/Img']"} {
		_, warnings, err := Plan(fileRun("version: v1.1.0\nsteps:\n- "+step+"\n"), PlanOptions{Registry: "reg.test:5000", Secrets: map[string]string{"token": value}})
		if err == nil {
			t.Errorf("%q is accepted", step)
			continue
		}
		if text := err.Error() + warnings.String(); strings.Contains(text, value) {
			t.Errorf("%q: %s", step, text)
		}
	}
}

func TestValuesAndSecretsReachTheTask(t *testing.T) {
	t.Parallel()
	r := fileRun("version: v1.1.0\nsteps:\n- cmd: img {{.Values.a}} {{.Values.b}} {{.Run.ID}}\n")
	r.Spec.TaskFile.Values, r.Spec.TaskFile.Set = []byte("a: one\nb: two\n"), []string{"b=three"}
	task := mustPlan(t, r)
	if got, want := task.Steps[0].Cmd.Args, []string{"one", "three", testRun}; !slices.Equal(got, want) {
		t.Errorf("args = %q, want %q", got, want)
	}
}

func TestRunWithNothingToDoIsRefused(t *testing.T) {
	t.Parallel()
	if _, _, err := Plan(run.Run{ID: testRun}, PlanOptions{}); err == nil {
		t.Error("a run without build and task file is planned")
	}
}
