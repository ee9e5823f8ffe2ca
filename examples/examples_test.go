package examples_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"kiln/internal/run"
)

// TestExamples builds the examples in the order in which they need each other.
func TestExamples(t *testing.T) {
	s := startServer(t)
	t.Run("base", s.base)
	t.Run("hello", s.hello)
	t.Run("hello with a failing test", s.helloFailing)
	t.Run("service", s.service)
}

func (s *server) base(t *testing.T) {
	dir := copyDir(t, "base")
	if out, err := exec.Command("base/prepare.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("prepare.sh: %v\n%s", err, out)
	}
	r := s.run(t, 0, "build", "-t", "base:latest", dir)
	img := s.published(t, r, "base:latest")
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/bin/sh"}, cfg.Config.Cmd); diff != "" {
		t.Errorf("command of the base image (-want +got):\n%s", diff)
	}
	if out := s.pull(t, r.Images[0], "/bin/sh", "-c", "echo I am $(id -un) | tr I i"); !strings.HasSuffix(out, "i am root\n") {
		t.Errorf("shell of the pulled image printed %q, want \"i am root\" at the end", out)
	}
}

func (s *server) hello(t *testing.T) {
	r := s.run(t, 0, "run", "hello")
	states := map[string]run.StepState{}
	for _, step := range r.Steps {
		states[step.ID] = step.State
	}
	want := map[string]run.StepState{"hello": run.StepSucceeded, "test-image": run.StepSucceeded, "test": run.StepSucceeded, "push": run.StepSucceeded}
	if diff := cmp.Diff(want, states); diff != "" {
		t.Fatalf("steps (-want +got):\n%s", diff)
	}
	if a, b := step(t, r, "hello"), step(t, r, "test-image"); a.Started.After(b.Finished) || b.Started.After(a.Finished) {
		t.Error("hello and test-image were not built at the same time")
	}
	if built, tested := step(t, r, "hello"), step(t, r, "test"); tested.Started.Before(built.Finished) {
		t.Error("the test ran before the image was built")
	}
	s.published(t, r, "hello:"+r.ID)
	if out, want := s.pull(t, r.Images[0], "reader"), "Hello from kiln, reader!\n"; !strings.HasSuffix(out, want) {
		t.Errorf("program of the pulled image printed %q, want %q at the end", out, want)
	}
	if !slices.ContainsFunc(r.Bases, func(b run.Base) bool { return strings.HasSuffix(b.Ref, "/base:latest") && b.Digest != "" }) {
		t.Errorf("base images %v lack base:latest", r.Bases)
	}
}

// helloFailing shows what the test step is for: a broken program is not published.
func (s *server) helloFailing(t *testing.T) {
	dir := copyDir(t, "hello")
	program := filepath.Join(dir, "hello.sh.in")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho broken\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := s.run(t, 1, "run", dir)
	if r.State != run.Failed || len(r.Images) != 0 {
		t.Errorf("run ended %s with images %v, want Failed without any", r.State, r.Images)
	}
	if got := step(t, r, "test"); got.State != run.StepFailed || got.ExitCode == nil || *got.ExitCode != 1 {
		t.Errorf("step test: %s with exit code %v, want Failed with 1", got.State, got.ExitCode)
	}
	ref, err := name.NewTag(s.host + "/hello:" + r.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref, s.auth()); err == nil {
		t.Errorf("%s is published", ref)
	}
}

// published checks that a run has published exactly one image, under the tag, as the registry has it.
func (s *server) published(t *testing.T, r run.Run, want string) v1.Image {
	t.Helper()
	if len(r.Images) != 1 || r.Images[0].Repository+":"+r.Images[0].Tag != want {
		t.Fatalf("run %s published %v, want %s", r.ID, r.Images, want)
	}
	ref, err := name.NewTag(s.host + "/" + want)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, s.auth())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if digest.String() != r.Images[0].Digest {
		t.Errorf("%s has digest %s, the run says %s", ref, digest, r.Images[0].Digest)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("%s: %v", ref, err)
	}
	return img
}

// pull runs the program of an image by means of the example of that name and returns what it printed.
func (s *server) pull(t *testing.T, img run.Image, args ...string) string {
	t.Helper()
	args = append([]string{"-token-file", filepath.Join(s.data, "admin.token"), img.String()}, args...)
	out, err := exec.CommandContext(t.Context(), program("pull"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("pull %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func (s *server) auth() remote.Option {
	return remote.WithAuth(&authn.Basic{Username: "kiln", Password: s.token})
}

// run executes a command line that starts a run and returns the run as it ended.
func (s *server) run(t *testing.T, code int, args ...string) run.Run {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program("kiln"), append(args, "-o", "json")...)
	cmd.Env = append(os.Environ(), "KILN_DATA="+s.data, "KILN_SERVER=", "KILN_TOKEN=")
	var progress strings.Builder
	cmd.Stderr = &progress
	out, err := cmd.Output()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("kiln %q: exit code %d (%v), want %d\n%s", args, got, err, code, &progress)
	}
	var r run.Run
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("kiln %q: %v\n%s", args, err, out)
	}
	return r
}

func step(t *testing.T, r run.Run, id string) run.Step {
	t.Helper()
	i := slices.IndexFunc(r.Steps, func(s run.Step) bool { return s.ID == id })
	if i < 0 {
		t.Fatalf("run %s has no step %s", r.ID, id)
	}
	return r.Steps[i]
}

// copyDir copies an example, so that the test leaves the original as it is.
func copyDir(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(name)); err != nil {
		t.Fatal(err)
	}
	return dir
}
