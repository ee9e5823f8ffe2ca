package buildkit_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/solve"
)

// testDocker has scripts call docker, in an image that has no such program.
func testDocker(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	t.Run("a command", func(t *testing.T) {
		c := e.shell(`cd /tmp; printf 'FROM scratch' | NAME=value docker build '' "a b" -f - .; echo code $?`)
		c.User = "1000"
		c.Docker = func(_ context.Context, c solve.DockerCommand) int {
			in, err := c.Stdin()
			fmt.Fprintf(c.Stdout, "%q in %s, %q %v\n", c.Args, c.Dir, in, err)
			fmt.Fprintf(c.Stderr, "named: %v\n", slices.Contains(c.Env, "NAME=value"))
			return 42
		}
		_, j := runStep(t, s, c)
		want := `["build" "" "a b" "-f" "-" "."] in /tmp, "FROM scratch" <nil>` + "\ncode 42\n"
		if got := j.text(event.StreamStdout); got != want || j.text(event.StreamStderr) != "named: true\n" {
			t.Errorf("output %q, want %q\n%s", got, want, j.all())
		}
	})
	t.Run("much output, several at once", func(t *testing.T) {
		c := e.shell(`for i in 1 2 3 4; do (docker $i | wc -c) & done; wait`)
		c.Docker = func(_ context.Context, c solve.DockerCommand) int {
			_, _ = c.Stdout.Write([]byte(strings.Repeat(c.Args[0], 1_000_000)))
			return 0
		}
		if _, j := runStep(t, s, c); j.text(event.StreamStdout) != strings.Repeat("1000000\n", 4) {
			t.Errorf("output %q", j.all())
		}
	})
	t.Run("killed", func(t *testing.T) {
		c := e.shell(`docker wait & echo $! >/tmp/pid; while [ ! -s /tmp/said ]; do docker started >/tmp/said; done; kill $(cat /tmp/pid); wait $!; docker ended`)
		started, ended := make(chan struct{}), make(chan struct{})
		c.Docker = func(ctx context.Context, c solve.DockerCommand) int {
			wait := map[string]<-chan struct{}{"wait": ctx.Done(), "started": started, "ended": ended}[c.Args[0]]
			if c.Args[0] == "wait" {
				close(started)
				defer close(ended)
			}
			<-wait
			fmt.Fprintln(c.Stdout, c.Args[0])
			return 0
		}
		if _, j := runStep(t, s, c); j.text(event.StreamStdout) != "ended\n" {
			t.Errorf("output %q", j.all())
		}
	})
	t.Run("left behind", func(t *testing.T) {
		c := e.shell(`docker wait & docker started`)
		started, ended := make(chan struct{}), false
		c.Docker = func(ctx context.Context, c solve.DockerCommand) int {
			if c.Args[0] == "started" {
				<-started
				return 0
			}
			close(started)
			<-ctx.Done()
			ended = true
			return 0
		}
		if _, j := runStep(t, s, c); !ended {
			t.Errorf("the command is executed after the container's end\n%s", j.all())
		}
	})
	t.Run("of its own", func(t *testing.T) {
		c := e.shell(`docker || ls /run/kiln`)
		c.Env = []string{"DOCKER_HOST=tcp://dind:2375"}
		c.Docker = func(context.Context, solve.DockerCommand) int { t.Error("asked"); return 0 }
		if code, j := runStep(t, s, c); code == 0 {
			t.Errorf("there is one\n%s", j.all())
		}
	})
}
