package examples_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// programs is the directory of the programs under test.
var programs string

func program(name string) string { return filepath.Join(programs, name) }

// TestMain builds the programs as users do: static, and without the race detector.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "kiln-examples-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = dir
	build := exec.Command("go", "build", "-o", dir+"/", "kiln/cmd/kiln", "kiln/examples/pull")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	code := 1
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// readyTimeout bounds the start of a server; a busy machine is slow.
const readyTimeout = time.Minute

// A server is kiln's, as a process of its own.
type server struct {
	data  string // its data directory
	host  string // of its registry
	token string
}

// startServer starts a server on an empty data directory and a free port. It is stopped when t ends,
// and has to stop well.
func startServer(t *testing.T) *server {
	t.Helper()
	s := &server{data: filepath.Join(t.TempDir(), "data")}
	cmd := exec.Command(program("kiln"), "serve", "--data", s.data, "--listen", "127.0.0.1:0")
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("kiln serve: %v", err)
		}
		if t.Failed() {
			t.Logf("kiln serve said:\n%s", &log)
		}
	})
	killer := time.AfterFunc(readyTimeout, func() { _ = cmd.Process.Kill() })
	ready, err := bufio.NewReader(out).ReadString('\n')
	killer.Stop()
	if err != nil {
		t.Fatalf("kiln serve is not ready: %v", err)
	}
	_, url, _ := strings.Cut(ready, " is ready at http://")
	s.host, _, _ = strings.Cut(url, " ")
	token, err := os.ReadFile(filepath.Join(s.data, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	s.token = strings.TrimSpace(string(token))
	return s
}
