package buildkit_test

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/internal/buildkit"
	"kiln/internal/buildkit/daemon"
	"kiln/internal/event"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
)

func testContainers(t *testing.T, e *env) {
	t.Run("memory", func(t *testing.T) { testMemoryLimit(t, e) })
	t.Run("cpus", func(t *testing.T) { testCPULimit(t, e) })
	t.Run("volumes", func(t *testing.T) { testVolumes(t, e) })
	t.Run("pull", func(t *testing.T) { testPullAgain(t, e) })
}

// testMemoryLimit fills a variable of the shell: what it may have is enough for one step and not for the
// other.
func testMemoryLimit(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	c := e.shell(`x=$(head -c 60000000 /dev/zero | tr '\0' x); echo ${#x}; env`)
	c.Memory = 1 << 30
	if code, j := runStep(t, s, c); code != 0 || !strings.HasPrefix(j.text(event.StreamStdout), "60000000\n") || strings.Contains(j.all(), "LIMITS") {
		t.Errorf("with room: code %d\n%s", code, j.all())
	}
	c.Memory = 32 << 20
	j := newJournal()
	code, err := s.Run(t.Context(), c, j.log)
	if code == 0 || err == nil && code != 137 || err != nil && !strings.Contains(err.Error(), "out of memory") {
		t.Errorf("without: code %d, %v\n%s", code, err, j.all())
	}
}

// testCPULimit has a step use a processor for a while and compares the time it got with the time that
// passed.
func testCPULimit(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	c := e.shell(`timeout 1 sh -c 'while :; do :; done'; cat /proc/$$/stat | cut -d' ' -f16`)
	c.CPUs = 0.2
	_, j := runStep(t, s, c)
	ticks, err := strconv.Atoi(strings.TrimSpace(j.text(event.StreamStdout)))
	if err != nil {
		t.Fatalf("%v\n%s", err, j.all())
	}
	if ticks > 45 { // a tick is 10 ms
		t.Errorf("%d ms of processor time in a second, with 0.2 processors", 10*ticks)
	}
}

func testVolumes(t *testing.T, e *env) {
	binary := make([]byte, 70_000)
	if _, err := rand.Read(binary); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(binary)
	s := e.open(t, solve.SessionConfig{})
	c := e.shell(`cd /run/secrets; sha256sum bin; wc -c < empty; cat lines; echo; ls -A /workspace/in; stat -f -c %T . bin /workspace/in/f
		id -u; (echo x > bin) 2>/dev/null && echo written; echo y > new && cat new`)
	c.User = "1000"
	c.Volumes = []solve.Volume{
		{Path: "/run/secrets", Files: map[string][]byte{"bin": binary, "empty": {}, "lines": []byte("a $HOME `b`\\\n\n c\r\n-")}},
		{Path: "/workspace/in", Files: map[string][]byte{"f": []byte("1")}},
	}
	if code, j := runStep(t, s, e.shell("chmod 777 /workspace")); code != 0 {
		t.Fatal(j.all())
	}
	_, j := runStep(t, s, c)
	want := hex.EncodeToString(sum[:]) + "  bin\n0\na $HOME `b`\\\n\n c\r\n-\nf\ntmpfs\ntmpfs\ntmpfs\n1000\n"
	if got := j.text(event.StreamStdout); !strings.HasPrefix(got, want) || strings.Contains(got, "written") {
		t.Errorf("output %q, want %q\n%s", got, want, j.all())
	}
	_, j = runStep(t, s, e.shell("ls -A /run/secrets /workspace/in"))
	if got := j.text(event.StreamStdout); strings.Contains(got, "bin") || strings.Contains(got, "f\n") {
		t.Errorf("the next step sees %q", got)
	}
}

func testPullAgain(t *testing.T, e *env) {
	ref := e.registry + "/moving/tag:1"
	push := func(word string) {
		img := withConfig(t, busybox(t), v1.Config{Cmd: []string{"echo", word}})
		pushImage(t, ref, img)
	}
	s := e.open(t, solve.SessionConfig{})
	push("first")
	said := func(pull bool) string {
		_, j := runStep(t, s, solve.Container{Step: "s", Image: ref, Pull: pull})
		return strings.TrimSpace(j.text(event.StreamStdout))
	}
	before := said(false)
	push("second")
	if got := fmt.Sprint(before, " ", said(false), " ", said(true), " ", said(false)); got != "first first second second" {
		t.Errorf("the tag stood for %s", got)
	}
}

func TestPrivilegedContainerWhereTheDaemonAllowsIt(t *testing.T) {
	address := solvertest.StartDaemonConfig(t, daemon.Config{AllowInsecure: true})
	allowed := *newEnvAt(t, address)
	e := &allowed
	client, err := buildkit.New(buildkit.Config{Address: address, StopGrace: time.Second, Privileged: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	e.client = client
	s := e.open(t, solve.SessionConfig{})
	c := e.shell("mkdir /m && mount -t tmpfs none /m && echo mounted")
	if code, j := runStep(t, s, c); code == 0 {
		t.Errorf("without the privilege: %s", j.all())
	}
	c.Privileged = true
	if code, j := runStep(t, s, c); code != 0 || j.text(event.StreamStdout) != "mounted\n" {
		t.Errorf("with it: code %d\n%s", code, j.all())
	}
	c.Args[2], c.Options.Capabilities = "grep CapEff /proc/self/status", []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}
	if _, j := runStep(t, s, c); j.text(event.StreamStdout) != "CapEff:\t0000000000200001\n" {
		t.Errorf("with two capabilities: %s", j.all())
	}
}

// TestLimitsOfAStockDaemonAreSaidToHaveNoEffect runs a limited container on BuildKit as it is shipped.
func TestLimitsOfAStockDaemonAreSaidToHaveNoEffect(t *testing.T) {
	stock := solvertest.StartStock(t, "--oci-worker-net=host")
	e := newEnvAt(t, stock.Address)
	s := e.open(t, solve.SessionConfig{})
	c := e.shell("env")
	c.Memory, c.Options.ReadOnly, c.Options.Hostname = 1<<20, true, "h"
	_, j := runStep(t, s, c)
	if all := j.all(); !strings.Contains(all, "cannot limit a container") || !strings.Contains(all, "--read-only, --hostname: without effect on this") || strings.Contains(all, "KILN_") {
		t.Errorf("log:\n%s", all)
	}
}

// TestWorkspacesOfKilledSessionsAreRemoved kills a daemon and looks what a session has left on it, beside
// one that lives.
func TestWorkspacesOfKilledSessionsAreRemoved(t *testing.T) {
	d := solvertest.StartStock(t, "--oci-worker-net=host")
	e := newEnvAt(t, d.Address)
	lost := e.client.Open(solve.SessionConfig{Run: "lost", Attempt: 1, Registry: e.registry, Insecure: true})
	if code, j := runStep(t, lost, e.shell("echo left > /workspace/file; echo left > $HOME/file")); code != 0 {
		t.Fatal(j.all())
	}
	d.Kill(t)
	d.Start(t)
	defer func() { _ = lost.Close(t.Context()) }()
	late := time.NewTimer(time.Minute)
	for _, err := e.client.Info(t.Context()); err != nil; _, err = e.client.Info(t.Context()) { // of the daemon that was killed, perhaps
		select {
		case <-late.C:
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	live := e.open(t, solve.SessionConfig{})
	if code, j := runStep(t, live, e.shell("echo here > /workspace/file")); code != 0 {
		t.Fatal(j.all())
	}
	if there := e.workspaces(t); len(there) != 4 {
		t.Errorf("two of each session: %q", there)
	}
	if err := e.client.RemoveWorkspaces(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, j := runStep(t, live, e.shell("cat /workspace/file")); j.text(event.StreamStdout) != "here\n" {
		t.Errorf("the workspace in use: %s", j.all())
	}
	if left := e.workspaces(t); len(left) != 2 {
		t.Errorf("left: %q", left)
	}
}
