package buildkit_test

import (
	"errors"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/solve"
)

// A file of the workspace can be read before a container has used that, and as what steps made of it.
func testReadFile(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"conf/app.env": "A=1\n", "big": "12345"})})
	read := func(name string) string {
		content, err := s.ReadFile(t.Context(), name, 4)
		if step, ok := errors.AsType[*solve.StepError](err); ok {
			return step.Message
		} else if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	if got := read("conf/app.env"); got != "A=1\n" {
		t.Error(got)
	}
	if code, j := runStep(t, s, e.shell("echo A=2 > /workspace/conf/app.env")); code != 0 {
		t.Fatal(j.all())
	}
	for name, want := range map[string]string{"conf/app.env": "A=2\n", "none": `"none" is not in the workspace`, "conf": `"conf" is no regular file`,
		"../x": `"../x" is outside of the workspace`, "big": `"big" has more than 4 bytes`} {
		if got := read(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// A container may see parts of what the session's containers share under paths of its choice, and read from
// its standard input.
func testBinds(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"sub/dir/a": "of the source", "f": "file"})})
	if code, j := runStep(t, s, e.shell("echo home >/acb/home/h; mkdir /workspace/out")); code != 0 {
		t.Fatal(j.all())
	}
	c := e.shell("cat /src/a /f /h; cat; ls -d /workspace /acb; echo written >/out/w; echo x >/src/no")
	c.Stdin = []byte(" from stdin\n")
	c.Binds = []solve.Bind{{Source: "/workspace/sub/dir", Path: "/src", ReadOnly: true}, {Source: "/workspace/f", Path: "/f"},
		{Source: "/acb/home/h", Path: "/h"}, {Source: "/workspace/out", Path: "/out"}}
	code, j := runStep(t, s, c)
	if got := j.text(event.StreamStdout); code == 0 || got != "of the sourcefilehome\n from stdin\n" || !strings.Contains(j.text(event.StreamStderr), "Read-only") {
		t.Errorf("exit code %d\n%s", code, j.all())
	}
	c = e.shell("cat /all/out/w")
	c.Binds = []solve.Bind{{Source: "/workspace", Path: "/all"}}
	if _, j := runStep(t, s, c); j.text(event.StreamStdout) != "written\n" {
		t.Error(j.all())
	}
	c = e.shell("echo made >/x/new; cat /workspace/two/levels/new")
	c.Binds = []solve.Bind{{Source: "/workspace/two/levels", Path: "/x", Create: true}, {Source: "/workspace", Path: "/workspace"}}
	if _, j := runStep(t, s, c); j.text(event.StreamStdout) != "made\n" {
		t.Error(j.all())
	}
	if err := s.WriteFile(t.Context(), "two/new/file", []byte("written")); err != nil {
		t.Error(err)
	}
	if content, err := s.ReadFile(t.Context(), "two/new/file", 100); string(content) != "written" {
		t.Errorf("%q, %v", content, err)
	}
	for name, want := range map[string]string{"f/x": "/workspace/f/x cannot be written: not a directory", "../x": `"../x" is outside of /workspace`, "sub": "/workspace/sub cannot be written: is a directory"} {
		if err := s.WriteFile(t.Context(), name, nil); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	for source, want := range map[string]string{"/workspace/none": "/workspace/none is not there; create it first", "/etc": "/etc is in no directory that containers share"} {
		c.Binds = []solve.Bind{{Source: source, Path: "/x"}}
		if _, err := s.Run(t.Context(), c, newJournal().log); err == nil || err.Error() != want {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// The value of a secret build argument is what the Dockerfile's ARG has, and not in the image's history.
func testHiddenValues(t *testing.T, e *env) {
	cfg := e.dockerfile(t, "ARG TOKEN\nARG PIN\nARG PLAIN\nRUN mkdir /data && test \"$TOKEN\" = 'hunter22 \"x\"' && echo -n $PIN > /data/n\nLABEL about=$PLAIN\n")
	b := solve.Build{Step: "b", Staging: e.staging(), Platforms: []string{"linux/amd64"}, Hidden: []string{`hunter22 "x"`, "7", "unused"},
		BuildArgs: map[string]string{"TOKEN": `hunter22 "x"`, "PIN": "7", "PLAIN": "open-17"}, CacheTo: []solve.Cache{{Ref: e.registry + "/cache/hidden:c", Max: true}}}
	built, j := build(t, e.open(t, cfg), b)
	_, config := raw(t, built)
	for _, want := range []string{"RUN |3 TOKEN=*** PIN=*** PLAIN=open-17 ", `"about":"open-17"`} {
		if !strings.Contains(config, want) {
			t.Errorf("the configuration has no %q: %s", want, config)
		}
	}
	if strings.Contains(config, "hunter22") || strings.Contains(j.all(), "warning") {
		t.Errorf("%s\n%s", config, j.all())
	}
	if got := data(t, built); got != "n -rw-r--r-- 7" {
		t.Error(got)
	}

	// Everything else is as in a build that hides nothing: the cache, bases, errors and what is refused.
	b.CacheTo, b.CacheFrom = nil, []solve.Cache{{Ref: e.registry + "/cache/hidden:c"}}
	again, j := build(t, e.open(t, cfg), b)
	if again.Digest != built.Digest || len(again.Bases) != 1 || !strings.Contains(j.all(), "cached=true") {
		t.Errorf("again: %+v, first %+v\n%s", again, built, j.all())
	}
	b.CacheFrom, b.Platforms = nil, nil
	for lines, want := range map[string]string{
		"ARG TOKEN\nRUN exit 3\n":                 "Dockerfile:3: RUN exit 3: exit code 3",
		"ARG TOKEN\nNOPE\n":                       "Dockerfile:3: unknown instruction: NOPE",
		"ARG TOKEN\nADD http://127.0.0.1:1/x /\n": "127.0.0.1",
	} {
		if got := fails(t, e.open(t, e.dockerfile(t, lines)), b); !strings.Contains(got, want) || strings.Contains(got, "Build function") {
			t.Errorf("%q: %s, want %s", lines, got, want)
		}
	}
	_, j = build(t, e.open(t, e.dockerfile(t, "ARG TOKEN\nENV T=$TOKEN\n")), b)
	if !strings.Contains(j.all(), "holds the value of a secret, by an ENV or LABEL") {
		t.Error(j.all())
	}
}
