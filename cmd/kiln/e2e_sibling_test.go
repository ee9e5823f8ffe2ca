package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"kiln/internal/run"
)

// taskSiblings fails while a step that ends at SIGTERM, one that ignores it, a service and a build are at work.
// Nothing but these processes has the number in its command line.
const taskSiblings = `version: v1.1.0
steps:
  - id: polite
    cmd: $Registry/siblings:1 sh -c 'trap "echo got SIGTERM; exit 0" TERM; touch polite; while :; do sleep 0.1; done; %[1]d'
    when: ["-"]
  - id: stubborn
    cmd: $Registry/siblings:1 sh -c 'trap "echo ignored" TERM; touch stubborn; while :; do sleep 0.1; done; %[1]d'
    when: ["-"]
  - id: service
    cmd: $Registry/siblings:1 sh -c 'trap "echo got SIGTERM; exit 0" TERM; touch service; while :; do sleep 0.1; done; %[1]d'
    detach: true
    when: ["-"]
  - id: build
    build: -t siblings .
    when: ["-"]
  - id: fails
    cmd: $Registry/siblings:1 sh -c 'until test -e polite -a -e stubborn -a -e service; do sleep 0.1; done; sleep 2; exit 3'
    when: ["-"]
  - id: never
    cmd: $Registry/siblings:1 true
`

// testSiblings looks at what a failed step does to those that run beside it.
func testSiblings(t *testing.T, s *server) {
	mark := 864_000_000 + os.Getpid()
	s.must("build", "-t", "siblings:1", files(t, map[string]string{"Dockerfile": base}))
	dir := files(t, map[string]string{"acr-task.yaml": fmt.Sprintf(taskSiblings, mark),
		"Dockerfile": base + fmt.Sprintf("RUN echo building; sleep 600; : %d\n", mark)})
	atWork := func() []int {
		return processes(t, func(cmdline string, _ int) bool { return strings.Contains(cmdline, fmt.Sprint(mark)) })
	}
	res := s.kiln("run", "-o", "json", dir)
	left := atWork() // at once
	if res.code != 1 {
		t.Fatalf("exit code %d, want 1\n%s", res.code, res.err)
	}
	if len(left) > 0 {
		t.Errorf("processes %v are still there when the run has ended", left)
	}
	r := s.show(field(t, res.out, "id"))
	if r.State != run.Failed || !strings.Contains(r.Reason, "fails") || !strings.Contains(r.Reason, "exit code 3") {
		t.Errorf("the run is %s: %s", r.State, r.Reason)
	}
	steps := map[string]run.Step{}
	for _, st := range r.Steps {
		steps[st.ID] = st
	}
	for id, want := range map[string]run.StepState{"polite": run.StepCanceled, "stubborn": run.StepCanceled, "service": run.StepCanceled,
		"build": run.StepCanceled, "fails": run.StepFailed, "never": run.StepSkipped} {
		if steps[id].State != want {
			t.Errorf("step %s is %s, want %s", id, steps[id].State, want)
		}
	}
	for _, want := range []string{"polite | got SIGTERM", "stubborn | ignored", "service | got SIGTERM", "build | building"} {
		if !strings.Contains(res.err, want+"\n") {
			t.Errorf("log lacks %q:\n%s", want, res.err)
		}
	}
	after := func(id string) time.Duration { return steps[id].Finished.Sub(steps["fails"].Finished) }
	if took := after("polite"); took > 8*time.Second {
		t.Errorf("the step that ends at SIGTERM ended %s after the failure", took)
	}
	if took := after("stubborn"); took < 9*time.Second || took > soon {
		t.Errorf("the step that ignores SIGTERM ended %s after the failure, want the ten seconds it has", took)
	}
}
