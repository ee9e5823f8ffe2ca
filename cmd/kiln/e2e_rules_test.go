package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"kiln/internal/run"
)

// taskRules has builds and pushes that fail, all at once, under the rules that most tasks have for commands. Nothing
// but the process of slow has the number in its command line.
const taskRules = `version: v1.1.0
steps:
  - {id: slow, build: --build-arg DO='sleep %d' ., timeout: 3, ignoreErrors: true, when: ["-"]}
  - {id: again, build: --build-arg DO='echo of no use; exit 4' ., retries: 1, retryDelay: 1, retryOnErrors: [other, of no use], ignoreErrors: true, when: ["-"]}
  - {id: once, build: --build-arg DO='echo hopeless; exit 4' ., retries: 5, retryOnErrors: [of no use], ignoreErrors: true, when: ["-"]}
  - {id: twice, build: -t PIT/far:1 --build-arg DO=true ., repeat: 1, when: ["-"]}
  - {id: far, push: [PIT/far:1], startDelay: 2, timeout: 3, ignoreErrors: true, when: [twice]}
  - {id: later, build: --build-arg DO=true ., startDelay: 2, when: ["-"]}
  - {id: unbuilt, push: ["$Registry/rules/never:1"], ignoreErrors: true, when: ["-"]}
  - {id: last, push: ["$Registry/rules/never:2"], when: [slow, again, once, far, later, unbuilt]}
`

// testRulesOfBuilds looks at what time limits, retries, delays and ignored errors do to builds and pushes.
func testRulesOfBuilds(t *testing.T, s *server) {
	mark := 865_000_000 + os.Getpid()
	pit := strings.Replace(newTarpit(t).host, "127.0.0.1", "localhost", 1)
	dir := files(t, map[string]string{"Dockerfile": base + "ARG DO\nRUN eval \"$DO\"\n", "acr-task.yaml": strings.ReplaceAll(fmt.Sprintf(taskRules, mark), "PIT", pit)})
	res := s.kiln("run", "-o", "json", dir)
	left := processes(t, func(cmdline string, _ int) bool { return strings.Contains(cmdline, fmt.Sprint(mark)) })
	if res.code != 1 {
		t.Fatalf("exit code %d, want 1\n%s", res.code, res.err)
	}
	if len(left) > 0 {
		t.Errorf("processes %v are still there when the run has ended", left)
	}
	r := s.show(field(t, res.out, "id"))
	if r.State != run.Failed || !strings.Contains(r.Reason, "rules/never:2") {
		t.Errorf("the run is %s: %s", r.State, r.Reason)
	}
	for _, st := range r.Steps {
		want := map[string]struct {
			state run.StepState
			tries int
			err   string
		}{
			"slow": {run.StepSucceeded, 1, "timed out after 3s"}, "again": {run.StepSucceeded, 2, "exit code 4"}, "once": {run.StepSucceeded, 1, "exit code 4"},
			"twice": {run.StepSucceeded, 2, ""}, "far": {run.StepSucceeded, 1, "timed out after 3s"}, "later": {run.StepSucceeded, 1, ""}, "unbuilt": {run.StepSucceeded, 1, "rules/never:1"}, "last": {run.StepFailed, 1, "rules/never:2"},
		}[st.ID]
		if st.State != want.state || st.Tries != want.tries || !strings.Contains(st.Error, want.err) || want.err == "" && st.Error != "" {
			t.Errorf("step %s is %s after %d executions (%s), want %+v", st.ID, st.State, st.Tries, st.Error, want)
		}
		after := map[string]time.Time{"later": r.Started, "far": r.Steps[3].Finished}[st.ID] // which is twice
		if waited := st.Started.Sub(after); !after.IsZero() && waited.Seconds() < 2 {
			t.Errorf("step %s has begun after %s", st.ID, waited)
		}
	}
	if t.Failed() {
		t.Log(res.err)
	}
}

// testOutside gives a task from outside what its steps do not say themselves.
func testOutside(t *testing.T, s *server) {
	s.must("build", "-t", "outside/box:1", files(t, map[string]string{"Dockerfile": base}))
	dir := files(t, map[string]string{"sub/names.yaml": "box: outside/box:1\n", "acr-task.yaml": `version: v1.1.0
alias: {src: [names.yaml]}
steps:
  - id: default
    cmd: $Registry/$box sh -c 'echo $A $B $(pwd) $(ls /sys/class/net)'
  - id: own
    cmd: $Registry/$box sh -c 'echo $A $B $(pwd) $(ls /sys/class/net)'
    env: [A=of-step]
    workingDirectory: other
    network: bridge
`})
	res := s.kiln("run", "--env", "A=outer", "--env", "B=outer too", "--working-directory", "sub", "--network", "none", dir)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	if strings.Contains(res.err, "warning") {
		t.Error(res.err)
	}
	for _, want := range []string{"default | outer outer too /workspace/sub lo\n", "own | of-step outer too /workspace/other eth0 lo\n"} {
		if !strings.Contains(res.err, want) {
			t.Errorf("log lacks %q:\n%s", want, res.err)
		}
	}
	if res := s.kiln("run", "--working-directory", "../up", "--cmd", "box true", "/dev/null"); res.code != 2 || !strings.Contains(res.err, `working directory "../up" leaves /workspace`) {
		t.Errorf("a directory outside: exit code %d\n%s", res.code, res.err)
	}
}
