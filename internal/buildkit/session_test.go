package buildkit_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/client"

	"kiln/internal/buildkit"
	"kiln/internal/event"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
)

// workspaces returns the descriptions of the daemon's cache mounts that sessions share among their containers:
// two of each session. Builds have others.
func (e *env) workspaces(t *testing.T) []string {
	t.Helper()
	c, err := client.New(t.Context(), e.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	usage, err := c.DiskUsage(t.Context(), client.WithFilter([]string{"type==exec.cachemount"}))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, u := range usage {
		if strings.Contains(u.Description, `with id "kiln-`) {
			out = append(out, u.Description)
		}
	}
	return out
}

// testClose checks that the workspace is removed, and no other.
func testClose(t *testing.T, e *env) {
	src := source(t, map[string]string{"a": "a"})
	other := e.open(t, solve.SessionConfig{Source: src})
	runStep(t, other, e.shell("echo mine > /workspace/f"))
	s := e.open(t, solve.SessionConfig{Source: src})
	runStep(t, s, e.shell("echo x > /workspace/f"))
	if got := e.workspaces(t); len(got) != 4 {
		t.Errorf("cache mounts %q, want 4", got)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := e.workspaces(t); len(got) != 2 {
		t.Errorf("cache mounts %q, want the other session's 2", got)
	}
	if _, err := s.Run(t.Context(), e.shell("true"), newJournal().log); err == nil {
		t.Error("a closed session runs")
	}
	if _, err := e.client.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, j := runStep(t, other, e.shell("cat /workspace/f /workspace/a")); code != 0 || j.text(event.StreamStdout) != "mine\na" {
		t.Errorf("after pruning: %d %s", code, j.all())
	}
}

func testCloseStops(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	j := newJournal()
	done := make(chan error, 1)
	go func() {
		_, err := s.Run(t.Context(), e.shell("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"), j.log)
		done <- err
	}()
	j.await(t, "up\n")
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("Run: no error")
	}
}

func TestKilledDaemonIsUnavailableUntilItIsBack(t *testing.T) {
	d := solvertest.StartStock(t, "--oci-worker-net=host")
	e := newEnvAt(t, d.Address)
	src := source(t, map[string]string{
		"Dockerfile": "FROM " + e.base + "\nRUN echo up; sleep 5\n",
		"quick":      "FROM " + e.base + "\nRUN true\n",
	})
	s := e.client.Open(solve.SessionConfig{Run: "r1", Attempt: 1, Source: src, Registry: e.registry, Insecure: true})
	ended := make(chan error, 2)
	built, ran := newJournal(), newJournal()
	go func() {
		_, err := s.Build(t.Context(), solve.Build{Step: "b", Staging: e.staging()}, built.log)
		ended <- err
	}()
	go func() {
		_, err := s.Run(t.Context(), e.shell("echo up; sleep 5"), ran.log)
		ended <- err
	}()
	built.await(t, "up\n")
	ran.await(t, "up\n")
	killed := time.Now()
	d.Kill(t)
	for range 2 {
		if err := <-ended; !errors.Is(err, solve.ErrUnavailable) {
			t.Errorf("after the kill: %v, want %v", err, solve.ErrUnavailable)
		}
	}
	if took := time.Since(killed); took > 7*time.Second {
		t.Errorf("noticed after %v", took)
	}
	if err := s.Close(t.Context()); !errors.Is(err, solve.ErrUnavailable) {
		t.Errorf("Close: %v, want %v", err, solve.ErrUnavailable)
	}
	if _, err := e.client.Info(t.Context()); !errors.Is(err, solve.ErrUnavailable) {
		t.Errorf("Info: %v, want %v", err, solve.ErrUnavailable)
	}
	d.Start(t)
	again := e.open(t, solve.SessionConfig{Source: src})
	build(t, again, solve.Build{Step: "b", Dockerfile: "quick", Staging: e.staging()})
	if code, j := runStep(t, again, e.shell("cat /workspace/quick")); code != 0 {
		t.Error(j.all())
	}
}

func TestFullDiskIsFreedOnce(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=110m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	e := newEnvAt(t, solvertest.StartStock(t, "--oci-worker-net=host", "--root", dir).Address)
	// A daemon that has worked for a while has room in its databases, without which it cannot remove.
	for i := range 30 {
		s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n", "data": strconv.Itoa(i)})})
		build(t, s, solve.Build{Step: "b", Staging: e.staging()})
	}
	if _, err := e.client.Prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	freed := false
	for range 3 {
		data := make([]byte, 20<<20)
		if _, err := rand.Read(data); err != nil {
			t.Fatal(err)
		}
		s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n", "data": string(data)})})
		_, j := build(t, s, solve.Build{Step: "b", Staging: e.staging()})
		freed = freed || strings.Contains(j.text(event.StreamKiln), "disk of the build daemon is full")
	}
	if !freed {
		t.Error("the disk was never full")
	}
	s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY data /data\n", "data": strings.Repeat("x", 120<<20)})})
	_, err := s.Build(t.Context(), solve.Build{Step: "b", Staging: e.staging()}, newJournal().log)
	var step *solve.StepError
	if err == nil || errors.As(err, &step) || !strings.Contains(err.Error(), "is full") {
		t.Errorf("Build: %v, want that the disk is full", err)
	}
}

func testCredentials(t *testing.T, e *env) {
	const password = "s3cret-password"
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "bob" || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no access for you"}]}`, http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "http://")
	var asked []string
	login := func(h string) (string, string) {
		asked = append(asked, h)
		if h == host {
			return "bob", password
		}
		return "", ""
	}
	src := source(t, map[string]string{"Dockerfile": "FROM " + e.base + "\nRUN true\n", "from": "FROM " + host + "/x/y:1\n"})
	b := solve.Build{Step: "b", Staging: host + "/x/y"}

	s := e.open(t, solve.SessionConfig{Source: src, Credentials: login})
	built, _ := build(t, s, b)
	if code, j := runStep(t, s, solve.Container{Step: "c", Image: built.Ref, Args: []string{"true"}}); code != 0 {
		t.Error(j.all())
	}
	if !slices.Contains(asked, host) {
		t.Errorf("asked for %v", asked)
	}
	wrong := e.open(t, solve.SessionConfig{Source: src, Credentials: func(string) (string, string) { return "bob", "not-" + password }})
	j := newJournal()
	_, err := wrong.Build(t.Context(), solve.Build{Step: "b", Dockerfile: "from", Staging: e.staging()}, j.log)
	var step *solve.StepError
	if !errors.As(err, &step) || !strings.Contains(err.Error(), host+"/x/y:1") || !strings.Contains(err.Error(), "401") {
		t.Errorf("Build: %v", err)
	}
	_, err = wrong.Build(t.Context(), b, j.log)
	if err == nil || errors.As(err, &step) {
		t.Errorf("push without access: %v, want an error of the engine", err)
	}
	if strings.Contains(j.all()+err.Error(), password) {
		t.Error("the password is shown")
	}
}

func TestInfo(t *testing.T) {
	e := newEnvAt(t, solvertest.StartStock(t, "--oci-worker-net=host").Address)
	info, err := e.client.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Version == "" || info.Network != "host" || !slices.Contains(info.Platforms, "linux/amd64") {
		t.Errorf("Info = %+v", info)
	}
}

func TestAbsentDaemon(t *testing.T) {
	for _, address := range []string{"unix://" + t.TempDir() + "/none", "tcp://127.0.0.1:1"} {
		c, err := buildkit.New(buildkit.Config{Address: address, DialTimeout: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = c.Info(t.Context())
		if !errors.Is(err, solve.ErrUnavailable) || !strings.Contains(err.Error(), "connect: ") {
			t.Errorf("Info: %v", err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("stop it")
		cancel(why)
		if _, err := c.Info(ctx); !errors.Is(err, why) {
			t.Errorf("Info: %v, want %v", err, why)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, address := range []string{"", "/run/x", "unix://", "tcp://host", "http://x:1"} {
		if _, err := buildkit.New(buildkit.Config{Address: address}); err == nil {
			t.Errorf("New(%q): no error", address)
		}
	}
}
