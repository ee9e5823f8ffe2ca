//go:build soak

package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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

// TestSoakMixedRunsLeaveNothing is the long form of TestMixedRunsLeaveNothing: 50 runs, which fill a small build
// cache many times over. It goes back to its limit.
func TestSoakMixedRunsLeaveNothing(t *testing.T) {
	const limit = 32_000_000
	s := startServer(t, "--parallel", "4", "--max-log", "1", "--cache-max", fmt.Sprint(limit/1_000_000, "MB"))
	mixedRuns(t, s, 15, 35)
	size := func() (n int64) {
		for _, k := range s.cache().Kinds {
			n += k.Size
		}
		return n
	}
	waitUntil(t, 5*time.Minute, func() bool { return size() <= limit }, func() string { return fmt.Sprintf("the build cache has %d bytes, want %d at most", size(), limit) })
	if used := diskUse(t, s.data+"/buildkit"); used > 2*limit {
		t.Errorf("the build daemon's files take %d bytes, its cache %d", used, size())
	}
	s.stop()
	checkNothingLeft(t, s)
}

// TestSoakOutput is the long form of the test of output: 200 MB at full speed.
func TestSoakOutput(t *testing.T) {
	const lines, bound = 2_000_000, 1 << 30 // with the race detector, which takes about four times as much
	s := startServer(t)
	dir := files(t, map[string]string{"box.Dockerfile": base, "acr-task.yaml": fmt.Sprintf(`version: v1.1.0
steps:
  - build: -t obox -f box.Dockerfile .
  - id: much
    cmd: obox awk 'BEGIN { for (i = 1; i <= %d; i++) printf "%%d %%s\n", i, "%s" }'
`, lines, strings.Repeat("0123456789", 10))})
	pids := []int{s.cmd.Process.Pid, s.daemon()}
	for _, pid := range pids {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil { // forget the peak
			t.Fatal(err)
		}
	}
	begun := time.Now()
	id := strings.TrimSpace(s.must("run", "--no-wait", dir))
	for _, args := range [][]string{{"logs", "-f", id}, {"logs", id}} {
		if n := numberedLines(t, s, args...); n != lines {
			t.Errorf("kiln %s: %d lines in order, want %d", args[0], n, lines)
		}
		t.Logf("%s after %s", args, time.Since(begun))
	}
	for i, who := range []string{"server", "build daemon"} {
		peak := peakMemory(t, pids[i])
		t.Logf("peak of the %s: %d MiB", who, peak>>20)
		if peak > bound {
			t.Errorf("the %s has used %d MiB", who, peak>>20)
		}
	}
}

// numberedLines executes a command and returns how many lines of the step "much" it prints, each with its
// number, none twice and none left out.
func numberedLines(t *testing.T, s *server, args ...string) int {
	t.Helper()
	cmd := exec.Command("kiln", args...)
	cmd.Env = append(os.Environ(), "KILN_DATA="+s.data)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for r := bufio.NewScanner(out); r.Scan(); {
		line, ok := strings.CutPrefix(r.Text(), "much | ")
		number, _, _ := strings.Cut(line, " ")
		if !ok || strings.HasPrefix(line, "=>") {
			continue
		}
		if number != strconv.Itoa(n+1) {
			t.Errorf("line %d: %.100q", n+1, line)
			break
		}
		n++
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	return n
}

// peakMemory is the largest resident size of a process so far.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// diskUse is how many bytes the files below dir take.
func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it has gone meanwhile
		}
		if info, err := d.Info(); err == nil {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
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
