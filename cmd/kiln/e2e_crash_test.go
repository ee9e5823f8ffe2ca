package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/run"
)

// taskSlow builds, pushes, works for a while in a container, and pushes again.
const taskSlow = `version: v1.1.0
steps:
  - id: image
    build: -t $Registry/slow:$ID -t $Registry/slow/early:$ID .
  - id: early
    push: ["$Registry/slow/early:$ID"]
  - id: slow
    cmd: $Registry/slow:$ID sh -c 'for i in 1 2 3 4 5 6; do echo "tick $i"; sleep 1; done'
  - id: publish
    push: ["$Registry/slow:$ID"]
`

// slowRun starts a run of taskSlow and returns when its container is at work.
func slowRun(t *testing.T, s *server) (id string, out *syncBuffer, wait func() int) {
	t.Helper()
	dir := files(t, map[string]string{"Dockerfile": base, "acr-task.yaml": taskSlow})
	id = strings.TrimSpace(s.must("run", "--no-wait", dir))
	out, wait = s.follow("logs", "-f", id)
	waitUntil(t, 2*time.Minute, func() bool { return strings.Contains(out.String(), "slow | tick 2") }, func() string {
		return "the container does not work:\n" + out.String()
	})
	return id, out, wait
}

// tagExists reports whether the run has published its image.
func tagExists(t *testing.T, s *server, id string) bool {
	t.Helper()
	ref, err := name.NewTag(s.host()+"/slow:"+id, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(s.data + "/admin.token")
	if err != nil {
		t.Fatal(err)
	}
	_, err = remote.Head(ref, remote.WithAuth(&authn.Basic{Username: "kiln", Password: strings.TrimSpace(string(token))}))
	return err == nil
}

// checkTakenOver checks that a run whose first attempt was killed has succeeded in its second, without
// building or pushing again what was.
func checkTakenOver(t *testing.T, s *server, id, log string) {
	t.Helper()
	r := s.show(id)
	if r.State != run.Succeeded || r.Attempt != 2 || r.Attempts[0].Outcome != "lost" {
		t.Fatalf("run is %s after attempt %d: %s\n%+v", r.State, r.Attempt, r.Reason, r.Attempts)
	}
	for i, attempt := range []int{1, 1, 2, 2} {
		if st := r.Steps[i]; st.Attempt != attempt || st.Tries != 1 {
			t.Errorf("step %s was done %d times, by attempt %d, want once by attempt %d", st.ID, st.Tries, st.Attempt, attempt)
		}
	}
	if len(r.Images) != 2 {
		t.Errorf("images: %v, want one of each push", r.Images)
	}
	for _, want := range []string{"attempt 2, on worker", "image | => finished by an earlier attempt", "early | => finished by an earlier attempt"} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
	if n := strings.Count(log, "tick 1\n"); n != 2 {
		t.Errorf("the log shows %d beginnings of the container, want both attempts'", n)
	}
	if !tagExists(t, s, id) {
		t.Error("the tag is missing")
	}
}

func TestRunSurvivesTheDeathOfServerAndDaemon(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	id, out, wait := slowRun(t, s)
	s.kill()
	s.start()
	if tagExists(t, s, id) && !s.show(id).State.Final() {
		t.Error("a tag exists before its push step")
	}
	if code := wait(); code != 0 {
		t.Errorf("the follower ended with %d:\n%s", code, out)
	}
	checkTakenOver(t, s, id, out.String())
	checkFence(t, s, id)
}

// checkFence tries to publish in the name of an attempt that was given up.
func checkFence(t *testing.T, s *server, id string) {
	t.Helper()
	if status := publish(t, s, id, 1, s.show(id).Images[0].Digest); status != http.StatusConflict {
		t.Errorf("publication of the lost attempt: status %d, want 409", status)
	}
}

// publish publishes an image in the name of an attempt, and returns the status of the answer.
func publish(t *testing.T, s *server, id string, attempt int, digest string) int {
	t.Helper()
	return publishIn(t, s, "slow", id, attempt, digest)
}

// publishIn is publish of an image in another repository.
func publishIn(t *testing.T, s *server, repository, id string, attempt int, digest string) int {
	t.Helper()
	body := fmt.Sprintf(`{"run":%q,"attempt":%d,"step":"publish","tags":[{"repository":%q,"tag":"zombie","digest":%q}]}`, id, attempt, repository, digest)
	req, err := http.NewRequest(http.MethodPost, s.url+"/v2/.kiln/publish/"+id, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(s.data + "/admin.token")
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("kiln", strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func TestRunSurvivesTheDeathOfTheDaemon(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	id, out, wait := slowRun(t, s)
	if err := syscall.Kill(s.daemon(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := wait(); code != 0 {
		t.Errorf("the follower ended with %d:\n%s", code, out)
	}
	checkTakenOver(t, s, id, out.String())
}

func TestSoftStopHandsTheRunBackAndLeavesNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--grace", "1s")
	id, out, wait := slowRun(t, s)
	s.stop()
	checkNothingLeft(t, s)
	s.start()
	if code := wait(); code != 0 {
		t.Errorf("the follower ended with %d:\n%s", code, out)
	}
	checkTakenOver(t, s, id, out.String())
	s.stop()
	checkNothingLeft(t, s)
}

// checkNothingLeft looks for processes and mounts of a server that has stopped.
func checkNothingLeft(t *testing.T, s *server) {
	t.Helper()
	left := processes(t, func(cmdline string, _ int) bool { return strings.Contains(cmdline, s.data) })
	if len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	for _, mount := range mountsBelow(t, s.data) {
		t.Errorf("left: %s", mount)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for name, args := range map[string][]string{
		"same data":   {"serve", "--data", s.data, "--listen", "127.0.0.1:0"},
		"same port":   {"serve", "--data", t.TempDir(), "--listen", s.host()},
		"bad address": {"serve", "--data", t.TempDir(), "--listen", "nowhere"},
	} {
		r := runKiln(t, nil, args...)
		if r.code != 2 || !strings.HasPrefix(r.err, "kiln: ") || r.out != "" {
			t.Errorf("%s: exit code %d, printed %q\n%s", name, r.code, r.out, r.err)
		}
	}
}

func TestNoServer(t *testing.T) {
	t.Parallel()
	for name, env := range map[string][]string{
		"never started": {"KILN_DATA=" + t.TempDir()},
		"nobody there":  {"KILN_SERVER=http://127.0.0.1:1", "KILN_TOKEN=x"},
	} {
		r := runKiln(t, env, "runs")
		if r.code != 3 || !strings.Contains(r.err, "Try: kiln serve") {
			t.Errorf("%s: exit code %d, want 3\n%s", name, r.code, r.err)
		}
	}
}

// TestFullDisk fills the disk of the data directory and makes room again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatalf("mount: %v (the test needs root)", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	s := startServerAt(t, disk+"/data")
	dir := files(t, map[string]string{"Dockerfile": base})
	first := strings.TrimSpace(s.must("build", "-t", "full/box", dir))

	ballast := disk + "/ballast"
	fill(t, ballast)
	big := files(t, map[string]string{"Dockerfile": base + "COPY big /big\n", "big": strings.Repeat("0123456789abcdef", 1<<20)})
	r := s.kiln("build", "-t", "full/big", big)
	if r.code == 0 || r.out != "" || !strings.Contains(r.err, "full") && !strings.Contains(r.err, "no space") || strings.Contains(r.err, "goroutine") {
		t.Errorf("on a full disk: exit code %d, printed %q\n%s", r.code, r.out, r.err)
	}
	if says := s.awaitFailing("disk"); !strings.Contains(says, "kept in reserve") {
		t.Errorf("the check of the disk says %q", says)
	}
	if r := s.kiln("doctor"); r.code != 1 || !strings.Contains(r.out, "FAIL  disk: ") || !strings.Contains(r.out, "Try: free space") {
		t.Errorf("doctor on a full disk: exit code %d\n%s", r.code, r.out)
	}
	if _, err := s.image(first[:strings.Index(first, "@")]).Manifest(); err != nil {
		t.Errorf("on a full disk an image cannot be pulled: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s.awaitReady()
	s.must("build", "-t", "full/big", big)
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 1<<16)
	for {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
