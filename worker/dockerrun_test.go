package worker

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/solve"
)

// TestDockerRunInScripts has a script execute containers: with what its author could give a step, and no more.
func TestDockerRunInScripts(t *testing.T) {
	t.Parallel()
	s := &script{files: map[string]string{"sub/x.env": "OF_FILE=1\nFROM_SCRIPT\n"}}
	g := newRig(t, s)
	s.build = g.staging
	said := ""
	var inner []solve.Container
	s.run = func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
		switch {
		case c.Docker == nil && len(c.Args) > 0 && c.Args[0] == "nothing":
			return -1, &solve.StepError{ExitCode: 127, Message: "nothing: not found"}
		case c.Docker == nil:
			inner = append(inner, c)
			log(event.LogEntry{Stream: event.StreamStdout, Data: []byte("out")}, event.LogEntry{Stream: event.StreamStderr, Data: []byte("err")})
			return len(c.Stdin), nil
		}
		for _, tc := range []dockerCase{
			{"build -t own .", "", 0, "", "built"},
			{"run --rm --name x own", "", 0, "out", "err"},
			{"run -i -e FROM_SCRIPT -e NOT_THERE -e A=b=c --env-file x.env -v .:/src -v /workspace/cache:/c:ro -v vol:/vol -v /mnt/:/mnt2 -w /src -u 1000:1000 " +
				"--entrypoint /bin/sh --network none -m 64m --add-host h:192.0.2.1 alpine:3 -c x", "input", 5, "out", "err"},
			{"container run --network back alpine", "", 0, "out", ""},
			{"run alpine nothing", "", 127, "", "docker: nothing: not found"},
			{"run -v /etc:/x alpine", "", 125, "", "docker: -v /etc: only what is in /workspace, in /acb/home or in a volume that the step mounts can be mounted"},
			{"run -v data:/x:ro --tmpfs /t:size=1k --read-only --hostname h --cap-drop ALL alpine", "", 0, "out", "err"},
			{"run -v theirs:/x alpine", "", 125, "", "docker: -v theirs: it is a volume of the task that the step does not mount"},
			{"run --cap-add SYS_ADMIN alpine", "", 1, "", "docker run --cap-add SYS_ADMIN is not possible here; make it a step of its own"},
			{"run -m 64m --memory-swap 32m alpine", "", 125, "", "cmd: --memory-swap: it is memory and swap together"},
			{"run -v /var/run/docker.sock:/var/run/docker.sock alpine", "", 1, "", "there is no Docker daemon, and no socket of one"},
			{"run -v ../../etc:/x alpine", "", 125, "", "docker: -v ../../etc: only what is in"},
			{"run --network host alpine", "", 125, "", "docker: --network host: want one of the task's networks, none or bridge"},
			{"run -m 1k alpine", "", 125, "", "is no amount of memory"},
			{"run -d alpine", "", 1, "", "docker run --detach is not possible here; write it as a step with detach: true"},
			{"run --privileged alpine", "", 1, "", "docker run --privileged is not possible here"},
			{"run --gpus all alpine", "", 1, "", "docker run option --gpus all: a step is given no devices of the worker's host; leave it out"},
		} {
			code, out, err := tc.call(ctx, c.Docker)
			if code != tc.code || !strings.Contains(out, tc.out) || !strings.Contains(err, tc.err) {
				said += fmt.Sprintf("docker %s: code %d\n%q, want %q\n%q, want %q\n", tc.command, code, out, tc.out, err, tc.err)
			}
		}
		return 0, nil
	}
	r := fileRun("version: v1.1.0\nvolumes:\n- name: vol\n  secret: {f: aGk=}\n- name: theirs\n  secret: {f: aGk=}\nnetworks: [{name: back}]\nsteps:\n" +
		"- {id: script, cmd: \"-m 128m img ./docker.sh\", volumeMounts: [{name: vol, mountPath: /mnt}]}\n")
	rep := final(g.execute(t, g.assign(t, r, nil)))
	if said != "" || rep == nil || rep.Final != run.Succeeded || len(inner) != 4 {
		t.Fatalf("%s%+v, %d containers\n%s", said, rep, len(inner), g.log(t, testRun))
	}
	if c := inner[0]; !strings.Contains(c.Image, "@sha256:") || c.Dir != "" || len(c.Env) != 0 || c.Binds == nil || c.Memory != 128<<20 {
		t.Errorf("%+v", c)
	}
	files := map[string][]byte{"f": []byte("hi")}
	want := solve.Container{Step: "script-docker-1", Image: "docker.io/library/alpine:3", Args: []string{"-c", "x"}, EntryPoint: []string{"/bin/sh"},
		Env: []string{"OF_FILE=1", "FROM_SCRIPT=yes", "FROM_SCRIPT=yes", "A=b=c"}, Dir: "/src", User: "1000:1000", Network: solve.NetworkNone,
		Hosts: map[string]string{"h": "192.0.2.1"}, Memory: 64 << 20, Stdin: []byte("input"),
		Volumes: []solve.Volume{{Path: "/vol", Files: files}, {Path: "/mnt2", Files: files}},
		Binds:   []solve.Bind{{Source: "/workspace/sub", Path: "/src", Create: true}, {Source: "/workspace/cache", Path: "/c", ReadOnly: true, Create: true}}}
	got := inner[1]
	if want.Step = got.Step; !strings.HasPrefix(got.Step, "script-docker-") {
		t.Error(got.Step)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if c := inner[3]; len(c.Shares) != 1 || c.Shares[0] != (solve.Share{Name: "data", Path: "/x", ReadOnly: true}) || len(c.Tmpfs) != 1 || c.Tmpfs[0].Path != "/t" ||
		!c.Options.ReadOnly || c.Options.Hostname != "h" || c.Options.Capabilities == nil || len(c.Options.Capabilities) != 0 {
		t.Errorf("%+v", c)
	}
	if c := inner[2]; c.Network != solve.NetworkRun || c.NetworkName != "back" || c.Docker != nil {
		t.Errorf("%+v", c)
	}
}
