package solvertest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A Stock is a buildkitd as BuildKit ships it, with an empty cache and without a limit of output.
type Stock struct {
	Address string // "unix://..."
	Root    string // directory of its cache

	args []string
	cmd  *exec.Cmd
}

var buildkitd = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "tool", "-n", "buildkitd").Output()
	return strings.TrimSpace(string(out)), err
})

// StartStock starts a buildkitd with these arguments, which name its network. It stops when t ends.
func StartStock(t testing.TB, args ...string) *Stock {
	t.Helper()
	dir, err := os.MkdirTemp("", "kiln-bk-")
	if err != nil {
		t.Fatal(err)
	}
	s := &Stock{Address: "unix://" + dir + "/sock", Root: filepath.Join(dir, "root"), args: args}
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		_ = s.cmd.Wait()
		sweep(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	s.Start(t)
	return s
}

// Start starts the daemon again after Kill.
func (s *Stock) Start(t testing.TB) {
	t.Helper()
	bin, err := buildkitd()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd = exec.Command(bin, append([]string{"--root", s.Root, "--addr", s.Address,
		"--oci-worker-gc=false", "--containerd-worker=false"}, s.args...)...)
	s.cmd.Env = append(os.Environ(), "BUILDKIT_STEP_LOG_MAX_SIZE=-1", "BUILDKIT_STEP_LOG_MAX_SPEED=-1")
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// Kill ends the daemon with SIGKILL. What it executes goes on.
func (s *Stock) Kill(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait()
}

// sweep removes what a killed daemon has left below dir: it does not do so itself.
func sweep(t testing.TB, dir string) {
	t.Helper()
	out, err := exec.Command("runc", "list", "--format", "json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var containers []struct{ ID, Bundle string }
	if err := json.Unmarshal(out, &containers); err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		if strings.HasPrefix(c.Bundle, dir) {
			if err := exec.Command("runc", "delete", "--force", c.ID).Run(); err != nil {
				t.Error(err)
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir) {
			if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", at, err)
			}
		}
	}
}
