// Package solvertest gives tests a real BuildKit daemon: kiln's own, as it runs in production, or, with
// StartStock, one as BuildKit ships it.
//
// Kiln's daemon needs a process of its own, and the test binary is that process: it executes itself. So
// a package that uses it hands its tests over to Main:
//
//	func TestMain(m *testing.M) { solvertest.Main(m) }
//
// Tests need root and runc.
package solvertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"kiln/internal/buildkit/daemon"
)

// childEnv is set in the environment of a test binary that is to be a daemon.
const childEnv = "KILN_SOLVERTEST_DAEMON"

// startTimeout is how long a daemon may take to answer; a busy machine is slow.
const startTimeout = 30 * time.Second

// ready tells that Main is in charge of the test binary.
var ready bool

// Main runs the tests, or a daemon if StartDaemon has started this process. It does not return.
func Main(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	ready = true
	os.Exit(m.Run())
}

func child() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	// A terminal's interrupt is for the tests, which then stop the daemon.
	signal.Ignore(syscall.SIGINT)
	if err := daemon.Child(ctx, os.Stdin, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// StartDaemon starts a daemon with an empty cache in t's temporary directory and returns its address,
// "unix://...". It stops when t ends, with everything it executes; what it has written to its log is
// printed if t has failed.
func StartDaemon(t testing.TB) (addr string) {
	t.Helper()
	return StartDaemonConfig(t, daemon.Config{})
}

// StartDaemonConfig is StartDaemon with a configuration, whose Root and Socket are filled in if they
// are empty. If it names no AllowSources they are those of this host.
func StartDaemonConfig(t testing.TB, cfg daemon.Config) (addr string) {
	t.Helper()
	if !ready {
		t.Fatal("solvertest: the package's TestMain must call solvertest.Main")
	}
	if cfg.AllowSources == nil {
		cfg.AllowSources = []string{"127.0.0.0/8"} // where the registries of tests are
	}
	if cfg.Root == "" {
		cfg.Root = filepath.Join(t.TempDir(), "root")
	}
	if cfg.Socket == "" {
		cfg.Socket = socketPath(t)
	}
	line, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var log logBuffer
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdout, cmd.Stderr = &log, &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	var exitErr error
	go func() { exitErr = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = stdin.Close() // the daemon stops; it may have done so already
		<-exited
		if exitErr != nil {
			t.Errorf("build daemon: %v", exitErr)
		}
		if t.Failed() {
			t.Logf("build daemon's log:\n%s", log.String())
		}
	})
	if _, err := stdin.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	addr = "unix://" + cfg.Socket
	if err := await(t.Context(), addr, exited); err != nil {
		t.Fatal(err)
	}
	return addr
}

// socketPath is short, which the directories of tests are not.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kiln-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "buildkit.sock")
}

// await returns when the daemon answers or cannot.
func await(ctx context.Context, addr string, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, err := client.New(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.ListWorkers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("build daemon at %s has exited", addr)
		case <-ctx.Done():
			return fmt.Errorf("build daemon at %s does not answer: %w", addr, err)
		case <-tick.C:
		}
	}
}

// logBuffer collects what the daemon writes. It may be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

var _ io.Writer = (*logBuffer)(nil)

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
