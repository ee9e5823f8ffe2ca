package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startDocker starts a docker engine without networks, and returns what executes docker against it.
func startDocker(t *testing.T) func(stdin string, args ...string) (string, error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "kiln-docker-") // t.TempDir is too long for its sockets
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o600))
	host := "unix://" + filepath.Join(dir, "sock")
	engine := exec.Command("dockerd", "--host", host, "--data-root", filepath.Join(dir, "root"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--config-file", filepath.Join(dir, "daemon.json"), "--storage-driver", "vfs",
		"--bridge", "none", "--iptables=false", "--ip-forward=false")
	var log syncBuffer
	engine.Stdout, engine.Stderr = &log, &log
	must(t, engine.Start())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_ = engine.Wait()
	}()
	t.Cleanup(func() {
		_ = engine.Process.Signal(syscall.SIGTERM)
		select {
		case <-gone:
		case <-time.After(time.Minute):
			t.Errorf("dockerd does not stop:\n%s", &log)
			_ = engine.Process.Kill()
			<-gone
		}
		must(t, os.RemoveAll(dir))
	})
	docker := func(stdin string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "docker", append([]string{"--host", host, "--config", filepath.Join(dir, "config")}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", errors.New(string(out))
		}
		return strings.TrimSpace(string(out)), nil
	}
	waitFor(t, "dockerd", func() bool {
		_, err := docker("", "version")
		return err == nil
	})
	return docker
}

// Docker signs in, pushes and pulls with a token for team/*.
func TestDockerUsesTokens(t *testing.T) {
	t.Parallel()
	g := newGate(t, "public")
	g.push(t, "public/app:1")
	g.push(t, "other/app:1")
	password := g.token(t, "ci", "--repo", "team/*=all")
	docker := startDocker(t)
	image := func(name string) string { return g.host() + "/" + name }
	do := func(args ...string) string {
		t.Helper()
		out, err := docker("", args...)
		must(t, err)
		return out
	}
	do("pull", "-q", image("public/app:1"))
	if _, err := docker("", "pull", image("team/app:1")); err == nil || !strings.Contains(err.Error(), "unauthorized") {
		t.Errorf("pull before signing in: %v", err)
	}
	if _, err := docker("wrong", "login", "-u", "ci", "--password-stdin", g.host()); err == nil {
		t.Error("docker signs in with a wrong password")
	}
	if _, err := docker(password, "login", "-u", "ci", "--password-stdin", g.host()); err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"team/app:1", "team/deep/er:1", "other/app:2"} {
		do("tag", image("public/app:1"), image(tag))
	}
	do("push", "-q", image("team/app:1"))
	do("push", "-q", image("team/deep/er:1")) // its layers are there
	if _, err := docker("", "push", image("other/app:2")); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("push elsewhere: %v", err)
	}
	do("rmi", image("public/app:1"), image("team/app:1"), image("team/deep/er:1"), image("other/app:2"))
	do("pull", "-q", image("team/deep/er:1"))
	if got, want := do("inspect", "--format", "{{index .RepoDigests 0}}", image("team/deep/er:1")), g.host()+"/team/deep/er@sha256:"; !strings.HasPrefix(got, want) {
		t.Errorf("pulled %s, want %s", got, want)
	}
	do("logout", g.host())
	if _, err := docker("", "pull", image("team/app:1")); err == nil {
		t.Error("docker pulls after signing out")
	}
}
