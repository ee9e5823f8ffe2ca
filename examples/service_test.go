package examples_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"kiln/internal/run"
)

// service is a run whose test asks a server that the run itself has started.
func (s *server) service(t *testing.T) {
	r := s.run(t, 0, "run", "service")
	for _, id := range []string{"image", "web", "test"} {
		if got := step(t, r, id); got.State != run.StepSucceeded {
			t.Errorf("step %s: %s (%s)", id, got.State, got.Error)
		}
	}
	if web, test := step(t, r, "web"), step(t, r, "test"); web.Finished.Before(test.Finished) {
		t.Error("the service ended before the test")
	}
	log := s.logs(t, r.ID)
	if !strings.Contains(log, "<p>Served by a step of the run.</p>") || !strings.Contains(log, "response:200") {
		t.Errorf("log of the run lacks the page that test has got, or what web said of it:\n%s", log)
	}
}

// logs returns the log of a run as the program prints it.
func (s *server) logs(t *testing.T, id string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program("kiln"), "logs", id)
	cmd.Env = append(os.Environ(), "KILN_DATA="+s.data, "KILN_SERVER=", "KILN_TOKEN=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kiln logs: %v\n%s", err, out)
	}
	return string(out)
}
