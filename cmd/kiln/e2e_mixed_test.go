package main

import (
	"bufio"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"kiln/internal/run"
)

// TestMixedRunsLeaveNothing executes runs that end in every way, while the build daemon and the server are
// killed, and looks for what they have left.
func TestMixedRunsLeaveNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--parallel", "4", "--max-log", "1")
	mixedRuns(t, s, 2, 5)
	s.stop()
	checkNothingLeft(t, s)
}

// A mixture is a kind of runs, by what their second step does and how they end.
type mixture struct {
	script string
	flags  []string
	cancel bool // once it has begun
	state  run.State
	says   string
}

var mixtures = []mixture{
	{script: "true", state: run.Succeeded},
	{script: "exit 3", state: run.Failed, says: "exit code 3"},
	{script: "echo begun; sleep 600", cancel: true, state: run.Canceled, says: "canceled by"},
	{script: "sleep 600", flags: []string{"--timeout", "6s"}, state: run.Timeout, says: "took longer than 6s"},
	{script: "seq 1 400000", state: run.Succeeded, says: "[kiln: the log of this run ends here, at 1 MiB"},
}

// mixedRuns kills a server and its daemon, in turn, with a run at work, then executes runs to the end. After
// each part nothing may be left, and in the end no more goroutines than after the first part.
func mixedRuns(t *testing.T, s *server, kills, calm int) {
	t.Helper()
	for i := range kills {
		m := mixture{script: "echo begun; sleep 3", state: run.Succeeded, says: "attempt 2, on worker"}
		id, log := m.begin(t, s, i)
		waitUntil(t, 3*time.Minute, func() bool { return strings.Contains(log.String(), "begun") }, func() string { return "no container:\n" + log.String() })
		switch i % 3 {
		case 0:
			_ = syscall.Kill(s.daemon(), syscall.SIGKILL)
		case 1:
			_ = s.cmd.Process.Kill() // the daemon notices by itself
			<-s.gone
			s.start()
		case 2:
			s.kill()
			s.start()
		}
		m.check(t, s, id)
	}
	checkIdle(t, s)
	before := goroutines(t, s)
	ids := make([]string, calm)
	for i := range ids {
		m, log := mixtures[i%len(mixtures)], &syncBuffer{}
		ids[i], log = m.begin(t, s, kills+i)
		if m.cancel {
			waitUntil(t, 3*time.Minute, func() bool { return strings.Contains(log.String(), "begun") }, func() string { return "no container:\n" + log.String() })
			s.must("cancel", ids[i])
		}
	}
	for i, id := range ids {
		mixtures[i%len(mixtures)].check(t, s, id)
	}
	checkIdle(t, s)
	for who, n := range goroutines(t, s) {
		if n > before[who]+3 && !strings.HasSuffix(who, idleConnection) {
			t.Errorf("%d goroutines of %s, %d before %d runs", n, who, before[who], calm)
		}
	}
}

// begin starts a run, the nth, and follows its log. Its image has a megabyte of its own.
func (m mixture) begin(t *testing.T, s *server, n int) (id string, log *syncBuffer) {
	t.Helper()
	dir := files(t, map[string]string{"Dockerfile": base + fmt.Sprintf("RUN echo %d; head -c 1048576 /dev/urandom > /n\n", n),
		"acr-task.yaml": "version: v1.1.0\nsteps:\n- build: -t $Registry/mixed:$ID .\n- cmd: $Registry/mixed:$ID sh -c 'echo x > /workspace/f; " + m.script + "'\n- push: [$Registry/mixed:$ID]\n"})
	id = strings.TrimSpace(s.must(append(append([]string{"run", "--no-wait"}, m.flags...), dir)...))
	log, _ = s.follow("logs", "-f", id)
	return id, log
}

// check waits for the end of a run and compares it with what it has to be.
func (m mixture) check(t *testing.T, s *server, id string) {
	t.Helper()
	var r run.Run
	waitUntil(t, 3*time.Minute, func() bool { r = s.record(id); return r.State.Final() }, func() string { return "run " + id + " does not end: " + string(r.State) })
	if r.State != m.state {
		t.Errorf("run %s with %q is %s, want %s: %s", id, m.script, r.State, m.state, r.Reason)
	}
	log := s.must("logs", id)
	for _, want := range []string{m.says, "STEP "} {
		if !strings.Contains(log, want) {
			t.Errorf("the log of run %s lacks %q:\n%s", id, want, log[max(0, len(log)-2000):])
		}
	}
}

// idleConnection starts goroutines that stay with connections to registries: two minutes without a use end them.
const idleConnection = "net/http.(*Transport).dialConn"

var createdBy = regexp.MustCompile(`created by (\S+) in goroutine`)

// goroutines counts the goroutines of a server and its daemon by what has started them. It ends both, and
// starts the server again.
func goroutines(t *testing.T, s *server) map[string]int {
	t.Helper()
	seen := len(s.log.String())
	daemon := s.daemon()
	_ = syscall.Kill(daemon, syscall.SIGQUIT)
	waitFor(t, "the build daemon to be started again", func() bool { pid := s.daemon(); return pid != 0 && pid != daemon })
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	<-s.gone
	count := map[string]int{}
	in := "the daemon's "
	lines := bufio.NewScanner(strings.NewReader(s.log.String()[seen:]))
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "SIGQUIT") {
			in = "the server's "
		}
		if m := createdBy.FindStringSubmatch(lines.Text()); m != nil {
			count[in+m[1]]++
		}
	}
	if len(count) < 10 {
		t.Fatalf("what the server and its daemon do is not to be seen: %v", count)
	}
	s.start()
	return count
}
