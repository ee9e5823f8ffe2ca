package supervise_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"kiln/internal/buildkit/daemon"
	"kiln/internal/buildkit/supervise"
	"kiln/internal/solvertest"
)

// The test binary plays these parts when it is executed with one of them as its only argument.
const (
	asDaemon     = "test-daemon"
	asSupervisor = "test-supervisor"
	asDeaf       = "test-deaf" // answers nobody and ignores SIGTERM
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case asDaemon:
			exit(beDaemon())
		case asSupervisor:
			exit(beSupervisor())
		case asDeaf:
			exit(beDeaf())
		}
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func beDaemon() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return daemon.Child(ctx, os.Stdin, slog.New(slog.NewJSONHandler(os.Stderr, nil)))
}

// beSupervisor supervises the daemon whose configuration it reads until it is killed, and prints the
// daemon's process ID when it is ready.
func beSupervisor() error {
	var cfg daemon.Config
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		return err
	}
	d, err := supervise.New(supervise.Config{Daemon: cfg, Args: []string{asDaemon}})
	if err != nil {
		return err
	}
	go func() {
		if err := d.Wait(context.Background()); err == nil {
			fmt.Println(d.PID())
		}
	}()
	return d.Run(context.Background())
}

// beDeaf creates the root when it no longer hears, and waits to be killed.
func beDeaf() error {
	signal.Ignore(syscall.SIGTERM)
	var cfg daemon.Config
	if err := json.NewDecoder(os.Stdin).Decode(&cfg); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return err
	}
	select {}
}

func config(t *testing.T) daemon.Config {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "kiln-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return daemon.Config{
		Root:       filepath.Join(dir, "root"),
		Socket:     filepath.Join(dir, "s"),
		StateTmpfs: filepath.Join("/dev/shm", filepath.Base(dir)),
	}
}

// start supervises a daemon until the test ends. Stop ends it before.
func start(t *testing.T, cfg supervise.Config) (d *supervise.Daemon, stop func() error) {
	t.Helper()
	if cfg.Args == nil {
		cfg.Args = []string{asDaemon}
	}
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	d, err := supervise.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { err = d.Run(ctx); close(done) }()
	stop = func() error { cancel(); <-done; return err }
	t.Cleanup(func() {
		_ = stop()
		if tmpfs := cfg.Daemon.StateTmpfs; tmpfs != "" {
			must(t, os.RemoveAll(tmpfs))
		}
	})
	return d, stop
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func wait(t *testing.T, d *supervise.Daemon) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := d.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a condition holds that comes about by another process.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func build(t *testing.T, d *supervise.Daemon, step string) error {
	t.Helper()
	_, err := solvertest.Build(t.Context(), t, d.Address(), solvertest.Context(t, solvertest.Base+step), nil)
	return err
}

func TestDaemonIsStoppedInGoodOrder(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	var states []supervise.State
	d, stop := start(t, supervise.Config{Daemon: cfg, OnState: func(s supervise.State, _ error) { states = append(states, s) }})
	wait(t, d)
	must(t, build(t, d, "RUN true\n"))
	pid := d.PID()
	if err := stop(); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	want := []supervise.State{supervise.Starting, supervise.Ready, supervise.Stopped}
	if !slices.Equal(states, want) {
		t.Errorf("states = %v, want %v", states, want)
	}
	if alive(pid) {
		t.Errorf("process %d is still there", pid)
	}
	if left := traces(t, cfg.Root); left != "" {
		t.Errorf("left behind: %s", left)
	}
	if err := d.Wait(t.Context()); !errors.Is(err, supervise.ErrStopped) {
		t.Errorf("Wait after the stop = %v, want %v", err, supervise.ErrStopped)
	}
}

func TestRunningBuildIsCancelledByAStop(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	d, stop := start(t, supervise.Config{Daemon: cfg})
	wait(t, d)
	built := make(chan error, 1)
	go func() { built <- build(t, d, "RUN sleep 1234\n") }()
	eventually(t, "step runs", func() bool { return len(processes("sleep", "1234")) > 0 })
	if err := stop(); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if err := <-built; err == nil {
		t.Error("the build succeeded, want an error")
	}
	if pids := processes("sleep", "1234"); len(pids) > 0 {
		t.Errorf("processes %v of the step are still there", pids)
	}
	if left := traces(t, cfg.Root); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// TestKilledDaemonIsReplaced is a crash in the middle of a build: what the build was doing is gone,
// what it had done is kept, and the next build works.
func TestKilledDaemonIsReplaced(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	d, _ := start(t, supervise.Config{Daemon: cfg})
	wait(t, d)
	tree := solvertest.Context(t, solvertest.Base+"RUN cat /proc/sys/kernel/random/uuid >/id\n")
	first, err := solvertest.Build(t.Context(), t, d.Address(), tree, nil)
	must(t, err)
	built := make(chan error, 1)
	go func() { built <- build(t, d, "RUN sleep 4321\n") }()
	eventually(t, "step runs", func() bool { return len(processes("sleep", "4321")) > 0 })
	before := traces(t, cfg.Root)
	if !strings.Contains(before, "mount") || !strings.Contains(before, "link") {
		t.Errorf("traces of a running build = %q, want mounts and links: the test looks at the wrong place", before)
	}

	pid := d.PID()
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	if err := <-built; err == nil {
		t.Error("the build succeeded, want an error")
	}
	eventually(t, "another daemon", func() bool { return d.PID() != pid })
	wait(t, d)
	if pids := processes("sleep", "4321"); len(pids) > 0 {
		t.Errorf("processes %v of the step are still there", pids)
	}
	if left := traces(t, cfg.Root); left != "" {
		t.Errorf("left behind: %s", left)
	}
	second, err := solvertest.Build(t.Context(), t, d.Address(), tree, nil)
	must(t, err)
	if a, b := read(t, first, "id"), read(t, second, "id"); a != b {
		t.Errorf("the step was executed again (%q, then %q), want the cached result", a, b)
	}
}

func TestCacheSurvivesAStop(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	tree := solvertest.Context(t, solvertest.Base+"RUN cat /proc/sys/kernel/random/uuid >/id\n")
	var ids []string
	for range 2 {
		d, stop := start(t, supervise.Config{Daemon: cfg})
		wait(t, d)
		dir, err := solvertest.Build(t.Context(), t, d.Address(), tree, nil)
		must(t, err)
		ids = append(ids, read(t, dir, "id"))
		must(t, stop())
		if entries, err := os.ReadDir(cfg.StateTmpfs); err != nil || len(entries) > 0 {
			t.Errorf("on the tmpfs after the stop: %v, %v, want nothing", entries, err)
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("the step was executed again (%q), want the cached result", ids)
	}
}

func TestCacheIsDiscardedWhenItsDatabasesAreGone(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	tree := solvertest.Context(t, solvertest.Base+"RUN cat /proc/sys/kernel/random/uuid >/id\n")
	d, _ := start(t, supervise.Config{Daemon: cfg})
	wait(t, d)
	dir, err := solvertest.Build(t.Context(), t, d.Address(), tree, nil)
	must(t, err)
	first := read(t, dir, "id")
	must(t, os.RemoveAll(cfg.StateTmpfs)) // as a power failure does
	pid := d.PID()
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, "another daemon", func() bool { return d.PID() != pid })
	wait(t, d)
	dir, err = solvertest.Build(t.Context(), t, d.Address(), tree, nil)
	must(t, err)
	if read(t, dir, "id") == first {
		t.Error("the step was not executed again, want an empty cache")
	}
	eventually(t, "old cache is removed", func() bool {
		trash, err := filepath.Glob(filepath.Join(cfg.Root, "trash-*"))
		return err == nil && len(trash) == 0
	})
}

func TestMissingRuncIsNamed(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.Runc = "no-such-runc"
	d, _ := start(t, supervise.Config{Daemon: cfg})
	err := d.Wait(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no-such-runc") || !strings.Contains(err.Error(), "apt-get install runc") {
		t.Errorf("Wait = %v, want the program's name and the remedy", err)
	}
}

func TestRootInUseIsNamed(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	d, _ := start(t, supervise.Config{Daemon: cfg})
	wait(t, d)
	second := cfg
	second.Socket += "2"
	second.StateTmpfs = ""
	d2, _ := start(t, supervise.Config{Daemon: second, RootWait: 100 * time.Millisecond})
	if err := d2.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), cfg.Root) {
		t.Errorf("Wait = %v, want an error that names the root", err)
	}
	must(t, build(t, d, "RUN true\n")) // the first is not disturbed
}

func TestDaemonThatDoesNotStopIsKilled(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	d, stop := start(t, supervise.Config{Daemon: cfg, Args: []string{asDeaf}, Grace: 50 * time.Millisecond})
	eventually(t, "child is deaf", func() bool { _, err := os.Stat(cfg.Root); return err == nil })
	if err := stop(); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if alive(d.PID()) {
		t.Error("the process is still there")
	}
}

func TestDaemonEndsWithItsSupervisor(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	line, err := json.Marshal(cfg)
	must(t, err)
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe, asSupervisor)
	cmd.Stdin = strings.NewReader(string(line))
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	b := make([]byte, 32)
	n, err := out.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	must(t, err)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	eventually(t, "daemon ends", func() bool { return !alive(pid) })
	if _, err := net.Dial("unix", cfg.Socket); err == nil {
		t.Error("the socket still answers")
	}
	must(t, os.RemoveAll(cfg.StateTmpfs))
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	must(t, err)
	return string(b)
}
