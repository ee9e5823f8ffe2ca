//go:build soak

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kiln/internal/run"
)

// TestSoak submits runs of several kinds while it kills the server, its daemon or both, again and
// again. Every run must end once and well, its tag must hold what its record says, and nothing may be
// left. KILN_SOAK_KILLS is the number of kills, 20 if it is not set.
func TestSoak(t *testing.T) {
	kills := soakKills(t)
	s := startServer(t, "--parallel", "4")
	var ids []string
	for i := range kills {
		for range 1 + rand.IntN(3) {
			ids = append(ids, submit(t, s, len(ids)))
		}
		<-time.After(time.Duration(rand.IntN(4000)) * time.Millisecond) // any moment will do
		switch i % 3 {
		case 0:
			s.kill()
			s.start()
		case 1:
			if pid := s.daemon(); pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		case 2:
			_ = s.cmd.Process.Kill() // the daemon notices by itself
			<-s.gone
			s.start()
		}
	}
	for _, id := range ids {
		waitFor(t, "run "+id+" to end", func() bool { return s.show(id).State.Final() })
		checkRun(t, s, s.show(id))
	}
	s.stop()
	checkNothingLeft(t, s)
}

// soakKills is how often a server is killed.
func soakKills(t *testing.T) int {
	t.Helper()
	v := os.Getenv("KILN_SOAK_KILLS")
	if v == "" {
		return 20
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		t.Fatalf("KILN_SOAK_KILLS is %q, want a number", v)
	}
	return n
}

// TestSoakNothingLostNothingTwice is the long form of TestNothingLostNothingTwice: 50 events for each kill.
func TestSoakNothingLostNothingTwice(t *testing.T) {
	c := newChaos(t, 12)
	kills := soakKills(t)
	c.happen(max(150, 50*kills), kills)
	c.check(c.settle())
}

// submit starts the nth run.
func submit(t *testing.T, s *server, n int) string {
	t.Helper()
	content := map[string]string{"Dockerfile": base + fmt.Sprintf("RUN echo %d > /n; sleep 0.%d\n", n, n%10), "acr-task.yaml": taskSlow}
	if n%2 == 0 {
		return strings.TrimSpace(s.must("run", "--no-wait", files(t, content)))
	}
	return strings.TrimSpace(s.must("build", "--no-wait", "-t", "slow", files(t, content)))
}

// checkRun compares a run that has ended with what it has published. A run that was killed three times
// is given up; that is an end too.
func checkRun(t *testing.T, s *server, r run.Run) {
	t.Helper()
	switch {
	case r.State == run.Error && strings.Contains(r.Reason, "given up after 3"):
	case r.State != run.Succeeded || len(r.Images) == 0:
		t.Errorf("run %s is %s with %d images: %s", r.ID, r.State, len(r.Images), r.Reason)
	default:
		got, err := s.image(s.host() + "/slow:" + r.ID).Digest() // all images of a run are the same
		if err != nil || got.String() != r.Images[0].Digest {
			t.Errorf("run %s: the tag is %s, %v, the record says %s", r.ID, got, err, r.Images[0].Digest)
		}
	}
}
