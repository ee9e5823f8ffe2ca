package buildkit_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/internal/event"
	"kiln/internal/solve"
)

func runStep(t *testing.T, s solve.Session, c solve.Container) (int, *journal) {
	t.Helper()
	j := newJournal()
	code, err := s.Run(t.Context(), c, j.log)
	if err != nil {
		t.Fatalf("Run: %v\n%s", err, j.all())
	}
	return code, j
}

// shell returns a container that executes script.
func (e *env) shell(script string) solve.Container {
	return solve.Container{Step: "s", Image: e.base, Args: []string{"sh", "-c", script}}
}

func testRun(t *testing.T, e *env) {
	t.Run("exit code and streams", func(t *testing.T) {
		s := e.open(t, solve.SessionConfig{})
		code, j := runStep(t, s, e.shell("echo out; echo err >&2; exit 7"))
		if code != 7 || j.text(event.StreamStdout) != "out\n" || j.text(event.StreamStderr) != "err\n" {
			t.Errorf("code %d, stdout %q, stderr %q", code, j.text(event.StreamStdout), j.text(event.StreamStderr))
		}
		if code, _ := runStep(t, s, e.shell("exit 255")); code != 255 {
			t.Errorf("code = %d, want 255", code)
		}
	})
	t.Run("large output", func(t *testing.T) {
		s := e.open(t, solve.SessionConfig{})
		_, j := runStep(t, s, e.shell("yes 0123456789abcde | head -c 50000000"))
		if got := len(j.text(event.StreamStdout)); got != 50000000 {
			t.Errorf("%d bytes", got)
		}
		for _, e := range j.entries {
			if len(e.Data) > 32<<10 {
				t.Fatalf("chunk of %d bytes", len(e.Data))
			}
		}
	})
	t.Run("image configuration", func(t *testing.T) { testRunConfig(t, e) })
	t.Run("fails", func(t *testing.T) { testRunFails(t, e) })
	t.Run("workspace", func(t *testing.T) { testWorkspace(t, e) })
	t.Run("cancel", func(t *testing.T) { testCancel(t, e) })
	t.Run("shape", func(t *testing.T) { testShape(t, e) })
	t.Run("stop", func(t *testing.T) { testStop(t, e) })
	t.Run("shares", func(t *testing.T) { testShares(t, e) })
}

func testRunConfig(t *testing.T, e *env) {
	ref := e.registry + "/cfg/img:1"
	pushImage(t, ref, withConfig(t, busybox(t), v1.Config{
		Entrypoint: []string{"sh", "-c", `echo "$0 $@"; echo A=$A B=$B; pwd; id -u`}, Cmd: []string{"x", "y"},
		Env: []string{"A=1", "B=2"}, WorkingDir: "/some/dir", User: "bob",
	}))
	s := e.open(t, solve.SessionConfig{})
	for _, c := range []struct {
		name string
		c    solve.Container
		want string
	}{
		{"image", solve.Container{}, "x y\nA=1 B=2\n/some/dir\n1000\n"},
		{"args", solve.Container{Args: []string{"z"}, Env: []string{"B=3", "C=4"}, User: "0", Dir: "/workspace/sub"}, "z \nA=1 B=3\n/workspace/sub\n0\n"},
		{"entrypoint", solve.Container{EntryPoint: []string{"echo", "hi"}}, "hi\n"},
		{"entrypoint and args", solve.Container{EntryPoint: []string{"echo"}, Args: []string{"a", "b"}}, "a b\n"},
		{"no entrypoint", solve.Container{EntryPoint: []string{}, Args: []string{"sh", "-c", "echo $HOME $PATH"}, Env: []string{"HOME=/acb/home"}}, "/acb/home /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.c.Image, c.c.Step = ref, "s"
			code, j := runStep(t, s, c.c)
			got := j.text(event.StreamStdout)
			if code != 0 || got != c.want {
				t.Errorf("code %d, output %q, want %q\n%s", code, got, c.want, j.all())
			}
		})
	}
	t.Run("host name", func(t *testing.T) {
		c := e.shell("hostname; cat /etc/hosts")
		c.Step, c.Hosts = "My_Step", map[string]string{"db": "10.1.2.3"}
		_, j := runStep(t, s, c)
		if got := j.text(event.StreamStdout); !strings.HasPrefix(got, "my-step\n") || !strings.Contains(got, "\tMy_Step my-step\n") || !strings.Contains(got, "10.1.2.3\tdb\n") {
			t.Errorf("output = %q", got)
		}
	})
}

func testRunFails(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	for _, c := range []struct {
		name string
		c    solve.Container
		want string
		code int
	}{
		{"image", solve.Container{Image: e.registry + "/nope:1"}, "image " + e.registry + "/nope:1: not found", -1},
		{"reference", solve.Container{Image: "a b"}, `image "a b": invalid reference format`, -1},
		{"program", solve.Container{Image: e.base, Args: []string{"nope"}}, `exec: "nope": executable file not found in $PATH`, 127},
		{"user", solve.Container{Image: e.base, User: "eve"}, "unable to find user eve: no matching entries in passwd file", -1},
		{"no command", solve.Container{Image: e.base, EntryPoint: []string{}}, "image " + e.base + " has no command of its own and the step gives none", -1},
		{"host", solve.Container{Image: e.base, Hosts: map[string]string{"a": "b"}}, `host "a": "b" is not an IP address`, -1},
		{"privileged", solve.Container{Image: e.base, Privileged: true}, "privileged containers are not allowed on this build daemon", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := newJournal()
			code, err := s.Run(t.Context(), c.c, j.log)
			var got *solve.StepError
			if !errors.As(err, &got) {
				t.Fatalf("Run = %d, %v, want a StepError\n%s", code, err, j.all())
			}
			if got.Message != c.want || got.ExitCode != c.code {
				t.Errorf("Run = %q (%d), want %q (%d)", got.Message, got.ExitCode, c.want, c.code)
			}
		})
	}
}

func testWorkspace(t *testing.T, e *env) {
	src := source(t, map[string]string{
		"Dockerfile": "FROM " + e.base + "\nCOPY . /data/\n", "keep": "k", "gone": "g", "mode": "m", "change": "old", "dir/a": "a", ".dockerignore": "Dockerfile\n.dockerignore\nignored\n",
	})
	s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "w"})
	code, j := runStep(t, s, e.shell("cd /workspace && cat keep && rm gone && chmod 755 mode && echo new > change && ln -s keep link && mkdir -p d2/d3 && echo x > d2/d3/f && rm -r dir && echo i > ignored && echo h > /acb/home/h"))
	if code != 0 {
		t.Fatal(j.all())
	}
	if code, j := runStep(t, s, e.shell("cat /workspace/d2/d3/f /acb/home/h")); code != 0 || j.text(event.StreamStdout) != "x\nh\n" {
		t.Error(code, j.all())
	}
	built, _ := build(t, s, solve.Build{Step: "b", FromWorkspace: true, Staging: e.staging()})
	if want := e.base + "@" + e.digest; built.Runtime != want {
		t.Errorf("runtime = %q, want %q", built.Runtime, want)
	}
	want := []string{"change -rw-r--r-- new", "d2/d3/f -rw-r--r-- x", "keep -rw-r--r-- k", "link -rwxrwxrwx -> keep", "mode -rwxr-xr-x m"}
	if diff := cmp.Diff(want, listing(t, pull(t, built.Ref), "data")); diff != "" {
		t.Error(diff)
	}
	t.Run("parallel", func(t *testing.T) {
		done := make(chan int)
		go func() {
			c, err := s.Run(t.Context(), e.shell("until test -e /workspace/ping; do sleep 0.01; done; touch /workspace/pong"), newJournal().log)
			if err != nil {
				t.Error(err)
			}
			done <- c
		}()
		if c, j := runStep(t, s, e.shell("touch /workspace/ping; until test -e /workspace/pong; do sleep 0.01; done")); c != 0 {
			t.Error(c, j.all())
		}
		if c := <-done; c != 0 {
			t.Error(c)
		}
	})
}

func testCancel(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	why := errors.New("stop it")
	for _, c := range []struct{ name, script, want string }{
		{"graceful", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done", "up\nbye\n"},
		{"stubborn", "trap '' TERM; echo up; while :; do echo x > /workspace/alive; sleep 0.05; done", "up\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			j := newJournal()
			done := make(chan error, 1)
			go func() {
				_, err := s.Run(ctx, e.shell(c.script), j.log)
				done <- err
			}()
			j.await(t, "up\n")
			begin := time.Now()
			cancel(why)
			if err := <-done; !errors.Is(err, why) {
				t.Errorf("Run: %v, want %v", err, why)
			}
			t.Log(time.Since(begin))
			if got := j.text(event.StreamStdout); got != c.want {
				t.Errorf("output %q, want %q", got, c.want)
			}
		})
	}
	code, j := runStep(t, s, e.shell("rm /workspace/alive; sleep 0.3; test ! -e /workspace/alive"))
	if code != 0 {
		t.Errorf("the process is still there: %s", j.all())
	}
}
