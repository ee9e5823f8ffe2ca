package main

import (
	"strings"
	"testing"
	"time"

	"kiln/internal/run"
)

// testEndings looks at how the logs of runs end that did not succeed: what became of each step, what was
// published, and what it was made from.
func testEndings(t *testing.T, s *server) {
	s.must("build", "-t", "endings/base:1", files(t, map[string]string{"Dockerfile": base}))
	for name, c := range map[string]struct {
		script, status, reason string
		flags                  []string
		state                  run.State
	}{
		"failed":    {"exit 3", "Failed", "step work: exit code 3", nil, run.Failed},
		"canceled":  {"sleep 600", "Canceled", "canceled by admin", nil, run.Canceled},
		"timed out": {"sleep 600", "Canceled", "the run took longer than 8s; raise --timeout", []string{"--timeout", "8s"}, run.Timeout},
	} {
		t.Run(name, func(t *testing.T) {
			dir := files(t, map[string]string{"Dockerfile": "FROM " + s.host() + "/endings/base:1\nRUN echo app > /app\n", "acr-task.yaml": `version: v1.1.0
steps:
  - id: image
    build: -t $Registry/endings/app:$ID .
  - push: ["$Registry/endings/app:$ID"]
  - id: work
    cmd: $Registry/endings/app:$ID sh -c 'echo begun; ` + c.script + `'
  - id: never
    cmd: $Registry/endings/app:$ID true
`})
			id := strings.TrimSpace(s.must(append(append([]string{"run", "--no-wait"}, c.flags...), dir)...))
			if c.state == run.Canceled {
				log, _ := s.follow("logs", "-f", id)
				waitUntil(t, time.Minute, func() bool { return strings.Contains(log.String(), "begun") }, func() string { return "the step does not work:\n" + log.String() })
				s.must("cancel", id)
			}
			var r run.Run
			waitUntil(t, time.Minute, func() bool { r = s.record(id); return r.State.Final() }, func() string { return "the run does not end" })
			log := s.must("logs", id)
			if r.State != c.state || r.Reason != c.reason || len(r.Images) != 1 || len(r.Dependencies()) != 1 {
				t.Fatalf("the run is %s (%s) with images %v, dependencies %v\n%s", r.State, r.Reason, r.Images, r.Dependencies(), log)
			}
			_, summary, _ := strings.Cut(log, "STEP ")
			words := strings.Join(strings.Fields(summary), " ")
			dep := r.Dependencies()[0]
			for _, want := range []string{"image build Succeeded", "acb_step_1 push Succeeded", "work cmd " + c.status, "never cmd Skipped",
				"images: kiln | => " + r.Images[0].String(), "the following dependencies were found:", "tag: " + id, "digest: " + r.Images[0].Digest,
				"runtime-dependency:", "repository: endings/base", "digest: " + dep.Runtime.Digest, c.reason} {
				if _, after, ok := strings.Cut(words, want); ok {
					words = after
				} else {
					t.Errorf("the summary lacks %q, or says it too early:\n%s", want, summary)
				}
			}
		})
	}
}
