package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// The tests in files named e2e_*_test.go run the program as its users do: a server with its own build
// daemon as a process, and commands against it.

// A server is a running `kiln serve`.
type server struct {
	t    testing.TB
	data string
	tmp  string // its directory for temporary files
	args []string
	cmd  *exec.Cmd
	url  string
	log  *syncBuffer
	gone chan struct{}
}

// startServer starts a server on a data directory of its own; it is stopped when t ends.
func startServer(t testing.TB, args ...string) *server {
	t.Helper()
	return startServerAt(t, filepath.Join(t.TempDir(), "data"), args...)
}

// startServerAt is startServer on a data directory of the caller's.
func startServerAt(t testing.TB, data string, args ...string) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the build daemon needs root; run the tests as root")
	}
	tmp, err := os.MkdirTemp("", "kiln-e2e-") // t.TempDir is too long for the sockets that are made in it
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, data: data, tmp: tmp, args: args, log: &syncBuffer{}}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	s.start()
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("log of the server:\n%s", s.log)
		}
	})
	return s
}

// start starts the server again, at the address it had. Settings are from all places that there are.
func (s *server) start() {
	s.t.Helper()
	listen := "127.0.0.1:0"
	if s.url != "" {
		listen = strings.TrimPrefix(s.url, "http://")
	}
	settings := s.data + ".yaml" // s.tmp is looked into for what servers leave
	if err := os.WriteFile(settings, []byte("verbose: true\nlisten: nowhere\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = exec.Command("kiln", append([]string{"serve", "--data", s.data, "--config", settings}, s.args...)...)
	s.cmd.Env = append(os.Environ(), "TMPDIR="+s.tmp, "KILN_LISTEN="+listen)
	s.cmd.Stderr = s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.gone = make(chan struct{})
	line, err := bufio.NewReader(out).ReadString('\n')
	go func(cmd *exec.Cmd, gone chan struct{}) {
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		close(gone)
	}(s.cmd, s.gone)
	if err != nil {
		<-s.gone
		s.t.Fatalf("server not ready: %v\n%s", err, s.log)
	}
	_, rest, _ := strings.Cut(line, " at ")
	s.url, _, _ = strings.Cut(rest, " ")
}

// stop stops the server softly and waits until it is gone.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.gone:
	case <-time.After(time.Minute):
		s.t.Error("server did not stop within a minute of SIGTERM; what it was doing is in its log")
		if daemon := s.daemon(); daemon > 0 {
			_ = syscall.Kill(daemon, syscall.SIGQUIT)
			waitFor(s.t, "the build daemon to say what it was doing", func() bool { return s.daemon() != daemon })
		}
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		<-s.gone
	}
}

// kill ends the server and its build daemon as a power cut would.
func (s *server) kill() {
	daemon := s.daemon()
	_ = s.cmd.Process.Kill()
	if daemon > 0 {
		_ = syscall.Kill(daemon, syscall.SIGKILL)
	}
	<-s.gone
}

// daemon is the process ID of the server's build daemon.
func (s *server) daemon() int {
	pids := processes(s.t, func(cmdline string, parent int) bool {
		return parent == s.cmd.Process.Pid && strings.Contains(cmdline, buildkitdCommand)
	})
	if len(pids) != 1 {
		return 0
	}
	return pids[0]
}

// host is the name of the server's registry.
func (s *server) host() string { return strings.TrimPrefix(s.url, "http://") }

// A commandResult is what a command left.
type commandResult struct {
	out, err string
	code     int
}

func (s *server) port() string { return s.url[strings.LastIndexByte(s.url, ':')+1:] }

// kiln runs a command against the server to its end.
func (s *server) kiln(args ...string) commandResult {
	s.t.Helper()
	return runKiln(s.t, []string{"KILN_DATA=" + s.data}, args...)
}

// must is kiln for a command that has to succeed; it returns its standard output.
func (s *server) must(args ...string) string {
	s.t.Helper()
	r := s.kiln(args...)
	if r.code != 0 {
		s.t.Fatalf("kiln %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

func runKiln(t testing.TB, env []string, args ...string) commandResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kiln", args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return commandResult{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// show returns the record of a run.
func (s *server) show(id string) run.Run {
	s.t.Helper()
	var r run.Run
	if err := json.Unmarshal([]byte(s.must("show", id, "-o", "json")), &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// record is show without a process for it: many can be asked for at once.
func (s *server) record(id string) run.Run {
	s.t.Helper()
	r, err := s.client().Run(s.t.Context(), id)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// client talks to the server as its administrator.
func (s *server) client() *apiclient.Client {
	s.t.Helper()
	token, err := apiclient.ReadToken(s.data)
	if err != nil {
		s.t.Fatal(err)
	}
	return &apiclient.Client{BaseURL: s.url, Token: token}
}

// image pulls an image of the server's registry.
func (s *server) image(ref string) v1.Image {
	s.t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		s.t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(s.data, "admin.token"))
	if err != nil {
		s.t.Fatal(err)
	}
	img, err := remote.Image(r, remote.WithAuth(&authn.Basic{Username: "kiln", Password: strings.TrimSpace(string(token))}))
	if err != nil {
		s.t.Fatal(err)
	}
	return img
}

// follow starts a command and returns its output as it grows, and a function that waits for its end.
func (s *server) follow(args ...string) (out *syncBuffer, wait func() int) {
	s.t.Helper()
	out = &syncBuffer{}
	cmd := exec.Command("kiln", args...)
	cmd.Env = append(os.Environ(), "KILN_DATA="+s.data)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	return out, func() int { <-done; return cmd.ProcessState.ExitCode() }
}

// A syncBuffer collects output that is read while it grows.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// waitFor waits until what is true; it fails the test after half a minute.
func waitFor(t testing.TB, what string, is func() bool) {
	t.Helper()
	waitUntil(t, 30*time.Second, is, func() string { return "timed out: " + what })
}

// waitUntil is waitFor with another bound, and a failure that says what was seen last. While the host stands still
// the bound does, too.
func waitUntil(t testing.TB, patience time.Duration, is func() bool, seen func() string) {
	t.Helper()
	if !becomes(patience, is) {
		t.Fatal(seen())
	}
}

// becomes reports whether something is so within a bound.
func becomes(patience time.Duration, is func() bool) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for last := time.Now(); !is(); {
		now := <-tick.C
		patience -= min(now.Sub(last), 5*time.Second)
		if last = now; patience < 0 {
			return false
		}
	}
	return true
}

// processes returns the IDs of the processes that match.
func processes(t testing.TB, match func(cmdline string, parent int) bool) []int {
	t.Helper()
	var pids []int
	eachProcess(t, func(pid, parent int, cmdline string) {
		if match(cmdline, parent) {
			pids = append(pids, pid)
		}
	})
	return pids
}

// eachProcess calls see for each process of the host.
func eachProcess(t testing.TB, see func(pid, parent int, cmdline string)) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var pid, parent int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it has ended meanwhile
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if _, err := fmt.Sscan(fields[1], &parent); err != nil {
			t.Fatal(err)
		}
		see(pid, parent, strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")))
	}
}

// base begins a Dockerfile on a static busybox that files puts into the context.
const base = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n"

// files makes a directory with these files, and a static busybox.
func files(t testing.TB, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v (Debian: apt-get install busybox-static)", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, text := range content {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
