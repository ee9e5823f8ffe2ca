package buildkit_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
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

func testBuild(t *testing.T, e *env) {
	t.Run("pushes by digest", func(t *testing.T) { testBuildPushes(t, e) })
	t.Run("fails", func(t *testing.T) { testBuildFails(t, e) })
	t.Run("context", func(t *testing.T) { testBuildContext(t, e) })
	t.Run("images of the run", func(t *testing.T) { testBuildFromOwn(t, e) })
	t.Run("bases", func(t *testing.T) { testBuildBases(t, e) })
	t.Run("pins", func(t *testing.T) { testBuildPins(t, e) })
	t.Run("other names of the registry", func(t *testing.T) { testBuildAliases(t, e) })
	t.Run("own frontend", func(t *testing.T) { testBuildOwnFrontend(t, e) })
	t.Run("platforms", func(t *testing.T) { testBuildPlatforms(t, e) })
	t.Run("reproducible", func(t *testing.T) { testBuildReproducible(t, e) })
	t.Run("cancel", func(t *testing.T) { testBuildCancel(t, e) })
	t.Run("no source", func(t *testing.T) {
		_, err := e.open(t, solve.SessionConfig{}).Build(t.Context(), solve.Build{Step: "b", Staging: e.staging()}, newJournal().log)
		if !errors.Is(err, solve.ErrNoSource) {
			t.Errorf("Build: %v, want %v", err, solve.ErrNoSource)
		}
	})
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
	if want := e.base + "@" + e.digest; built.Runtime != want {
		t.Errorf("runtime = %q, want %q", built.Runtime, want)
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
	if !strings.Contains(j.all(), "[3/3] RUN echo hello bob > /data/b.txt; echo said; echo oops >&2 cached=true") {
		t.Errorf("not cached:\n%s", j.all())
	}
}

// A frontend that a Dockerfile or an argument brings along is neither fetched nor executed.
func testBuildOwnFrontend(t *testing.T, e *env) {
	const foreign = "127.0.0.1:1/frontend:1"
	for name, b := range map[string]solve.Build{
		"syntax line": {Dockerfile: "Syntax"},
		"argument":    {Dockerfile: "Plain", BuildArgs: map[string]string{"BUILDKIT_SYNTAX": foreign}},
	} {
		src := source(t, map[string]string{"Syntax": "# syntax=" + foreign + "\nFROM " + e.base + "\nRUN true\n", "Plain": "FROM " + e.base + "\nRUN true\n"})
		b.Step, b.Context, b.Staging = "b", ".", e.staging()
		if _, err := e.open(t, solve.SessionConfig{Source: src, SourceKey: "k"}).Build(t.Context(), b, newJournal().log); err == nil {
			t.Errorf("%s: the frontend of %s was not asked for", name, foreign)
		}
		build(t, e.open(t, solve.SessionConfig{Source: src, SourceKey: "k", OwnFrontend: true}), b)
	}
}

func testBuildFails(t *testing.T, e *env) {
	from := "FROM " + e.base + "\n"
	for _, c := range []struct {
		name, dockerfile string
		change           func(*solve.Build)
		want, source     string
		code             int
	}{
		{"run", from + "RUN true\nRUN exit 3", nil, "RUN exit 3: exit code 3", "Dockerfile:3", 3},
		{"syntax", from + "RUNN true\n", nil, "unknown instruction: RUNN (did you mean RUN?)", "Dockerfile:2", -1},
		{"base", "FROM " + e.registry + "/nope:1\nRUN true", nil, "image " + e.registry + "/nope:1: not found", "Dockerfile:1", -1},
		{"copy", from + "COPY nope /", nil, `COPY nope /: "/nope": not found`, "Dockerfile:2", -1},
		{"empty", "", nil, "the Dockerfile cannot be empty", "", -1},
		{"target", from, func(b *solve.Build) { b.Target = "nope" }, `target stage "nope" could not be found`, "", -1},
		{"no file", from, func(b *solve.Build) { b.Dockerfile = "x/Dockerfile" }, "x/Dockerfile is not in the source", "", -1},
		{"no context", from, func(b *solve.Build) { b.Context = "sub" }, `context "sub" is not in the source`, "", -1},
		{"context is a file", from, func(b *solve.Build) { b.Context = "Dockerfile" }, `context "Dockerfile" is not a directory`, "", -1},
		{"outside", from, func(b *solve.Build) { b.Context = "../x" }, `context "../x" is outside of the source`, "", -1},
		{"reserved", from, func(b *solve.Build) { b.BuildArgs = map[string]string{"BUILDKIT_SANDBOX_HOSTNAME": "x"} }, "build argument BUILDKIT_SANDBOX_HOSTNAME is reserved", "", -1},
		{"hosts", from, func(b *solve.Build) { b.AddHosts = []string{"a:b"} }, `add-host "a:b": "b" is not an IP address`, "", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": c.dockerfile})})
			b := solve.Build{Step: "b", Staging: e.staging()}
			if c.change != nil {
				c.change(&b)
			}
			_, err := s.Build(t.Context(), b, newJournal().log)
			var got *solve.StepError
			if !errors.As(err, &got) {
				t.Fatalf("Build: %v, want a StepError", err)
			}
			if got.Message != c.want || got.Source != c.source || got.ExitCode != c.code {
				t.Errorf("Build = %d %s, want %d %s: %s", got.ExitCode, got, c.code, c.source, c.want)
			}
		})
	}
}

func testBuildContext(t *testing.T, e *env) {
	src := source(t, map[string]string{
		"app/a": "a", "app/b/c": "c", "app/skip": "s", "app/.dockerignore": "skip\n", "other": "o",
		"docker/Dockerfile.x": "FROM " + e.base + " AS one\nCOPY . /data/\nFROM one AS two\nRUN touch /data/two\n",
	})
	s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "ctx"})
	built, _ := build(t, s, solve.Build{Step: "b", Context: "app", Dockerfile: "docker/Dockerfile.x", Target: "one", Staging: e.staging()})
	want := []string{".dockerignore -rw-r--r-- skip", "a -rw-r--r-- a", "b/c -rw-r--r-- c"}
	if diff := cmp.Diff(want, listing(t, pull(t, built.Ref), "data")); diff != "" {
		t.Error(diff)
	}
	own := source(t, map[string]string{"app/a": "a", "app/b": "b", "app/.dockerignore": "a\n", "app/docker/Dockerfile": "FROM " + e.base + "\nCOPY . /data/\n",
		"app/docker/Dockerfile.dockerignore": "b\ndocker\n.dockerignore\n"})
	s = e.open(t, solve.SessionConfig{Source: own, SourceKey: "own"})
	built, j := build(t, s, solve.Build{Step: "b", Context: "app", Dockerfile: "app/docker/Dockerfile", Staging: e.staging()})
	if diff := cmp.Diff([]string{"a -rw-r--r-- a"}, listing(t, pull(t, built.Ref), "data")); diff != "" {
		t.Errorf("the Dockerfile's own .dockerignore: %s\n%s", diff, j.all())
	}
	s = e.open(t, solve.SessionConfig{Source: src, SourceKey: "ctx"})
	for _, name := range []string{"x", "y"} { // the same length: only the content differs
		inline := []byte("FROM " + e.base + "\nCOPY a /data/" + name + "\n")
		built, _ = build(t, s, solve.Build{Step: "b", Context: "app", DockerfileInline: inline, Staging: e.staging()})
		if diff := cmp.Diff([]string{name + " -rw-r--r-- a"}, listing(t, pull(t, built.Ref), "data")); diff != "" {
			t.Error(diff)
		}
	}
	empty := e.open(t, solve.SessionConfig{})
	built, _ = build(t, empty, solve.Build{Step: "b", DockerfileInline: []byte("FROM " + e.base + "\nCOPY . /data/\nRUN touch /data/z"), Staging: e.staging()})
	if diff := cmp.Diff([]string{"z -rw-r--r-- "}, listing(t, pull(t, built.Ref), "data")); diff != "" {
		t.Error(diff)
	}
}

func testBuildFromOwn(t *testing.T, e *env) {
	src := source(t, map[string]string{
		"Dockerfile": "FROM " + e.base + "\nRUN mkdir /data && echo one > /data/one\n",
		"two":        "FROM app\nFROM " + e.base + " AS app2\nFROM app AS again\nCOPY --from=example.com/x/y:v1 /data/one /data/two\n",
		"three":      "FROM " + e.base + " AS app\nRUN mkdir /data && echo stage > /data/s\nFROM app\n",
	})
	s := e.open(t, solve.SessionConfig{Source: src})
	one, _ := build(t, s, solve.Build{Step: "one", Staging: e.staging()})
	images := map[string]string{"docker.io/library/app:latest": one.Ref, "example.com/x/y:v1": one.Ref}
	two, _ := build(t, s, solve.Build{Step: "two", Dockerfile: "two", Images: images, Staging: e.staging()})
	if diff := cmp.Diff([]string{"one -rw-r--r-- one", "two -rw-r--r-- one"}, listing(t, pull(t, two.Ref), "data")); diff != "" {
		t.Error(diff)
	}
	if len(two.Bases) != 0 {
		t.Errorf("bases = %v, want none: they are the run's own", two.Bases)
	}
	if two.Runtime != one.Ref {
		t.Errorf("runtime = %q, want the run's own image %s", two.Runtime, one.Ref)
	}
	three, _ := build(t, s, solve.Build{Step: "three", Dockerfile: "three", Images: images, Staging: e.staging()})
	if diff := cmp.Diff([]string{"s -rw-r--r-- stage"}, listing(t, pull(t, three.Ref), "data")); diff != "" {
		t.Errorf("a stage named like an image: %s", diff)
	}
	if code, j := runStep(t, s, solve.Container{Step: "c", Image: one.Ref, Args: []string{"cat", "/data/one"}}); code != 0 || j.text(event.StreamStdout) != "one\n" {
		t.Errorf("%d %s", code, j.all())
	}
}

func testBuildBases(t *testing.T, e *env) {
	other := e.registry + "/base/other:2"
	digest := pushImage(t, other, withConfig(t, busybox(t), v1.Config{Env: []string{"X=1"}}))
	src := source(t, map[string]string{"Dockerfile": "FROM " + e.base + " AS unused\nFROM " + other + "@" + digest + " AS tools\n" +
		"FROM scratch\nCOPY --from=" + e.base + " /etc/passwd /p\nCOPY --from=tools /etc/group /g\n"})
	s := e.open(t, solve.SessionConfig{Source: src})
	want := []run.Base{{Ref: e.base, Digest: e.digest}, {Ref: other, Digest: digest}}
	for range 2 { // the second time everything is cached
		built, _ := build(t, s, solve.Build{Step: "b", Staging: e.staging()})
		if diff := cmp.Diff(want, built.Bases); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{e.base}, built.Tagged); diff != "" || !built.Closed {
			t.Errorf("closed is %t, tagged: %s", built.Closed, diff)
		}
		if built.Runtime != "" {
			t.Errorf("runtime = %q of an image from scratch", built.Runtime)
		}
	}
	tools, _ := build(t, s, solve.Build{Step: "b", Target: "tools", Staging: e.staging()})
	if want := other + "@" + digest; tools.Runtime != want {
		t.Errorf("runtime of the stage tools = %q, want %q", tools.Runtime, want)
	}
}

// testBuildPins builds on a base whose tag has moved since the build was decided.
func testBuildPins(t *testing.T, e *env) {
	moving := e.registry + "/base/moving:1"
	version := func(v string) string {
		return pushImage(t, moving, withConfig(t, busybox(t), v1.Config{Env: []string{"PATH=/bin", "VERSION=" + v}}))
	}
	decided, now := version("decided"), version("now")
	src := source(t, map[string]string{"Dockerfile": "FROM " + moving + "\nRUN mkdir /data && echo $VERSION > /data/v\nCOPY --from=" + e.base + " /etc/passwd /p\n"})
	s := e.open(t, solve.SessionConfig{Source: src})
	for _, c := range []struct {
		pins         map[string]string
		want, digest string
		tagged       []string
	}{
		{nil, "now", now, []string{e.base, moving}},
		{map[string]string{moving: decided, "docker.io/library/unused:1": decided}, "decided", decided, []string{e.base}},
		{map[string]string{moving: decided, e.base: e.digest}, "decided", decided, nil},
	} {
		for range 2 { // the second time everything is cached
			built, _ := build(t, s, solve.Build{Step: "b", Pins: c.pins, Staging: e.staging()})
			if diff := cmp.Diff([]string{"v -rw-r--r-- " + c.want}, listing(t, pull(t, built.Ref), "data")); diff != "" {
				t.Errorf("pins %v: %s", c.pins, diff)
			}
			if diff := cmp.Diff([]run.Base{{Ref: e.base, Digest: e.digest}, {Ref: moving, Digest: c.digest}}, built.Bases); diff != "" {
				t.Errorf("pins %v: bases: %s", c.pins, diff)
			}
			if diff := cmp.Diff(c.tagged, built.Tagged); diff != "" || !built.Closed {
				t.Errorf("pins %v: closed is %t, tagged: %s", c.pins, built.Closed, diff)
			}
		}
	}
	own, _ := build(t, s, solve.Build{Step: "b", Pins: map[string]string{moving: decided}, Images: map[string]string{moving: e.registry + "/base/moving@" + now}, Staging: e.staging()})
	if diff := cmp.Diff([]string{"v -rw-r--r-- now"}, listing(t, pull(t, own.Ref), "data")); diff != "" {
		t.Errorf("an image of the run under a pinned name: %s", diff)
	}
}

// testBuildAliases builds on images under a name of the registry that nobody but the session knows.
func testBuildAliases(t *testing.T, e *env) {
	const alias = "registry.invalid:5000"
	app := e.registry + "/base/app"
	app += "@" + pushImage(t, app+":1", withConfig(t, busybox(t), v1.Config{Env: []string{"APP=1"}}))
	src := source(t, map[string]string{"Dockerfile": "FROM " + alias + "/base/busybox:1\nCOPY --from=" + alias + "/app:1 /etc/passwd /data/p\n" +
		"RUN --mount=from=named,target=/n ls /n > /data/n\n"})
	s := e.open(t, solve.SessionConfig{Source: src, Aliases: []string{"localhost:5000", alias, e.registry}})
	built, _ := build(t, s, solve.Build{Step: "b", Staging: e.staging(), Images: map[string]string{e.registry + "/app:1": app},
		Contexts: map[string]solve.Context{"named": {Image: e.base}}})
	if got := listing(t, pull(t, built.Ref), "data"); len(got) != 2 {
		t.Errorf("data has %q", got)
	}
	base := run.Base{Ref: e.base, Digest: e.digest}
	if diff := cmp.Diff([]run.Base{base}, built.Bases); diff != "" {
		t.Errorf("bases: %s", diff)
	}
	if want := e.base + "@" + e.digest; built.Runtime != want {
		t.Errorf("runtime = %q, want %q", built.Runtime, want)
	}
}

func testBuildPlatforms(t *testing.T, e *env) {
	src := source(t, map[string]string{"Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY f-$TARGETARCH /data/f\n", "f-amd64": "x86", "f-arm64": "arm"})
	s := e.open(t, solve.SessionConfig{Source: src})
	built, _ := build(t, s, solve.Build{Step: "b", Platforms: []string{"linux/amd64", "linux/arm64"}, Annotations: map[string]string{"a": "1"}, Staging: e.staging()})
	ref, err := name.ParseReference(built.Ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range m.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		im, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, d.Platform.String()+" "+listing(t, img, "data")[0]+" "+im.Annotations["a"])
	}
	want := []string{"linux/amd64 f -rw-r--r-- x86 1", "linux/arm64 f -rw-r--r-- arm 1"}
	if diff := cmp.Diff(want, got); diff != "" || m.Annotations["a"] != "1" {
		t.Error(diff, m.Annotations)
	}
}

// Two daemons that have never built anything make the same image, to the last byte.
func testBuildReproducible(t *testing.T, e *env) {
	src := source(t, map[string]string{"Dockerfile": "FROM " + e.base + "\nRUN date > /dev/null; touch /x\nCOPY Dockerfile /d\n"})
	fresh := newEnvAt(t, solvertest.StartDaemon(t))
	fresh.registry = e.registry
	var digests []string
	for _, on := range []*env{e, fresh} {
		built, _ := build(t, on.open(t, solve.SessionConfig{Source: src}), solve.Build{Step: "b", NoCache: true, Epoch: time.Unix(1700000000, 0), Staging: e.staging()})
		digests = append(digests, built.Digest)
	}
	if digests[0] != digests[1] {
		t.Errorf("digests %v differ", digests)
	}
}

func testBuildCancel(t *testing.T, e *env) {
	src := source(t, map[string]string{"Dockerfile": "FROM " + e.base + "\nRUN echo up; sleep 100\n"})
	s := e.open(t, solve.SessionConfig{Source: src})
	ctx, cancel := context.WithCancelCause(t.Context())
	j := newJournal()
	done := make(chan error, 1)
	go func() {
		_, err := s.Build(ctx, solve.Build{Step: "b", Staging: e.staging()}, j.log)
		done <- err
	}()
	j.await(t, "up\n")
	why := errors.New("stop it")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("Build: %v, want %v", err, why)
	}
}
