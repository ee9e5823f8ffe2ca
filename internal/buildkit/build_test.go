package buildkit_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/solve"
)

func build(t *testing.T, s solve.Session, b solve.Build) (solve.Built, *journal) {
	t.Helper()
	j := newJournal()
	built, err := s.Build(t.Context(), b, j.log)
	if err != nil {
		t.Fatalf("Build: %v\n%s", err, j.all())
	}
	return built, j
}

func TestBuild(t *testing.T) {
	e := newEnv(t)
	t.Run("pushes by digest", func(t *testing.T) { testBuildPushes(t, e) })
	t.Run("fails", func(t *testing.T) { testBuildFails(t, e) })
}

func testBuildPushes(t *testing.T, e *env) {
	src := source(t, map[string]string{
		"Dockerfile": "FROM " + e.base + "\nARG WHO\nCOPY a.txt /data/\nRUN echo hello $WHO > /data/b.txt; echo said; echo oops >&2\n",
		"a.txt":      "a",
	})
	s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "k"})
	b := solve.Build{Step: "b", Context: ".", BuildArgs: map[string]string{"WHO": "bob"}, Labels: map[string]string{"l": "v"}, Staging: e.staging()}
	built, j := build(t, s, b)
	img := pull(t, built.Ref)
	want := []string{"a.txt -rw-r--r-- a", "b.txt -rw-r--r-- hello bob"}
	if diff := cmp.Diff(want, listing(t, img, "data")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]run.Base{{Ref: e.base, Digest: e.digest}}, built.Bases); diff != "" {
		t.Error(diff)
	}
	if got := j.text(event.StreamStdout); !strings.Contains(got, "said") {
		t.Errorf("stdout = %q", got)
	}
	if got := j.text(event.StreamStderr); !strings.Contains(got, "oops") {
		t.Errorf("stderr = %q", got)
	}
	again, j := build(t, s, b)
	if again.Digest != built.Digest || len(again.Bases) != 1 {
		t.Errorf("again = %+v, want %+v", again, built)
	}
	if !strings.Contains(j.all(), "RUN echo hello $WHO > /data/b.txt; echo said; echo oops >&2 cached=true") {
		t.Errorf("not cached:\n%s", j.all())
	}
}

func testBuildFails(t *testing.T, e *env) {
	for _, c := range []struct {
		name, dockerfile, want, source string
		code                           int
	}{
		{"run", "FROM " + e.base + "\nRUN true\nRUN false", "RUN false: exit code 1", "Dockerfile:3", 1},
		{"syntax", "FROM " + e.base + "\nRUNN true\n", "?", "Dockerfile:2", -1},
		{"base", "FROM " + e.registry + "/nope:1\nRUN true", "?", "Dockerfile:1", -1},
		{"copy", "FROM " + e.base + "\nCOPY nope /", "?", "Dockerfile:2", -1},
		{"empty", "", "?", "", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": c.dockerfile})})
			j := newJournal()
			_, err := s.Build(t.Context(), solve.Build{Step: "b", Staging: e.staging()}, j.log)
			var got *solve.StepError
			if !errors.As(err, &got) {
				t.Fatalf("Build: %v, want a StepError", err)
			}
			if got.Message != c.want || got.Source != c.source || got.ExitCode != c.code {
				t.Errorf("Build = %+v, want %+v", got, c)
			}
		})
	}
}
