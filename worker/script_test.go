package worker

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/solve"
)

// A dockerCase is a docker command of a script, and what it prints.
type dockerCase struct {
	command, stdin string
	code           int
	out, err       string // parts of what is printed
}

// call calls docker as the program of a container does, in /workspace/sub unless the command begins with "cd DIR; ".
func (c dockerCase) call(ctx context.Context, docker solve.DockerFunc) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	dir, command := "/workspace/sub", c.command
	if rest, ok := strings.CutPrefix(command, "cd "); ok {
		dir, command, _ = strings.Cut(rest, "; ")
	}
	code = docker(ctx, solve.DockerCommand{Args: strings.Fields(command), Dir: dir, Env: []string{"FROM_SCRIPT=yes", "KEY=pem"},
		Stdin: func() ([]byte, error) { return []byte(c.stdin), nil }, Stdout: &out, Stderr: &err})
	return code, out.String(), err.String()
}

func TestDockerInScripts(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = func(ctx context.Context, b solve.Build, log solve.LogFunc) (solve.Built, error) {
		log(event.LogEntry{Stream: event.StreamStdout, VertexID: "v", Data: []byte("half a ")}, event.LogEntry{Stream: event.StreamStdout, VertexID: "v", Data: []byte("line\n")})
		if b.Target == "broken" {
			return solve.Built{}, &solve.StepError{ExitCode: 1, Message: "it is broken", Source: "Dockerfile:3"}
		}
		return g.stage(ctx, b)
	}
	cases := []dockerCase{
		{"build -t $Registry/app:$ID --build-arg FROM_SCRIPT .", "", 0, "", "#1 half a line\nbuilt sha256:"},
		{"build -t two -f - ../other", "FROM scratch", 0, "", "built sha256:"},
		{"cd /tmp; build -t three -", "FROM app", 0, "", "built sha256:"},
		{"cd /tmp; build -t four /workspace/sub", "", 0, "", "built sha256:"},
		{"build -q .", "", 0, "sha256:", ""},
		{"build -t x --target broken .", "", 1, "", "docker: Dockerfile:3: it is broken"},
		{"cd /tmp; build -t x .", "", 1, "", "docker: working directory /tmp is outside /workspace"},
		{"build -t x /etc", "", 1, "", `docker: build context "/etc" is outside /workspace`},
		{"build -t x ../..", "", 1, "", `docker: build context "../.." leaves the source`},
		{"build -t x -", "\x1f\x8b\x08", 1, "", "docker: a tarball cannot be read from standard input; unpack it"},
		{"build -t x -f D -", "", 1, "", "docker: with - as the context"},
		{"build --network host .", "", 1, "", "docker: --network: the host's network is never given"},
		{"build --secret id=npm .", "", 1, "", "docker: --secret npm: name its source with src=FILE or env=VARIABLE"},
		{"build --secret id=key,env=KEY --secret id=FROM_SCRIPT .", "", 0, "", "built sha256:"},
		{"build --ssh default .", "", 1, "", "docker: --ssh default: name the file of a private key"},
		{"compose up", "", 1, "", "docker: docker compose needs a Docker daemon, which steps do not have"},
		{"tag two $Registry/two:moved", "", 0, "", ""},
		{"images", "", 0, "$Registry/two:moved", ""},
		{"push $Registry/two:moved", "", 0, "$Registry/two:moved: digest: sha256:", ""},
		{"build --push -t $Registry/pushed:1 .", "", 0, "$Registry/pushed:1: digest: sha256:", ""},
		{"push nobody/built", "", 1, "", "docker: image nobody/built:latest was not built, pulled or tagged"},
		{"login -u me --password-stdin $Registry", "secret\n", 0, "the run is signed in", ""},
		{"version", "", 0, "kiln, without a Docker daemon", ""},
	}
	failed := ""
	s.run = func(ctx context.Context, c solve.Container, _ solve.LogFunc) (int, error) {
		if c.Docker == nil {
			return 0, nil
		}
		for _, tc := range cases {
			fill := strings.NewReplacer("$Registry", g.reg.Host, "$ID", testRun)
			tc.command, tc.out = fill.Replace(tc.command), fill.Replace(tc.out)
			code, out, err := tc.call(ctx, c.Docker)
			if code != tc.code || !strings.Contains(out, tc.out) || !strings.Contains(err, tc.err) {
				failed += fmt.Sprintf("docker %s: code %d\n%q, want %q\n%q, want %q\n", tc.command, code, out, tc.out, err, tc.err)
			}
		}
		return 0, nil
	}
	r := fileRun("steps:\n- {id: script, cmd: \"img ./docker.sh\"}\n- {id: app, cmd: \"{{.Run.Registry}}/app:{{.Run.ID}}\"}\n")
	rep := final(g.execute(t, g.assign(t, r, map[string]string{"npm": "hunter22"})))
	if failed != "" {
		t.Error(failed)
	}
	if rep == nil || rep.Final != run.Succeeded || len(rep.Images) != 2 || len(rep.Bases) == 0 || rep.Bases[0].Step != "script" {
		t.Fatalf("%+v\n%s", rep, g.log(t, testRun))
	}
	made := (&run.Run{Steps: rep.Steps}).Dependencies()
	if len(made) < 3 || made[0].Image == nil || made[0].Image.Repository != "app" || len(made[0].Buildtime) == 0 ||
		!strings.Contains(g.log(t, testRun), "the following dependencies were found:") {
		t.Errorf("the report of dependencies of what a script has built: %+v", made)
	}
	b := s.builds[0]
	if b.Step != "script" || !b.FromWorkspace || b.Context != "sub" || b.BuildArgs["FROM_SCRIPT"] != "yes" || len(b.Secrets) != 0 {
		t.Errorf("asked to build %+v", b)
	}
	if b := s.builds[1]; b.Context != "other" || string(b.DockerfileInline) != "FROM scratch" || b.Remote != nil {
		t.Errorf("asked to build %+v", b)
	}
	if b := s.builds[2]; b.Remote == nil || b.Images[g.reg.Host+"/app:"+testRun] == "" {
		t.Errorf("asked to build %+v", b)
	}
	if app := s.runs[1]; !strings.Contains(app.Image, "@sha256:") || app.Docker != nil {
		t.Errorf("executed %+v", app)
	}
}

// TestDockerOfStrangersPushesNothing executes a script of a pull request from outside.
func TestDockerOfStrangersPushesNothing(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	var said string
	s.run = func(ctx context.Context, c solve.Container, _ solve.LogFunc) (int, error) {
		code, _, err := dockerCase{command: "build --push -t " + g.reg.Host + "/app:1 ."}.call(ctx, c.Docker)
		said = err
		return code, nil
	}
	r := fileRun("steps: [{cmd: img ./docker.sh}]\n")
	r.Spec.Restricted = true
	rep := final(g.execute(t, g.assign(t, r, nil)))
	if rep == nil || rep.Final != run.Succeeded || len(rep.Images) != 0 || !strings.Contains(said, "nothing is pushed: this run is of a pull request") {
		t.Errorf("%+v, said %q", rep, said)
	}
}

func TestPrivilegedStepsKeepTheirOwnDocker(t *testing.T) {
	t.Parallel()
	r := fileRun("steps: [{id: a, cmd: img docker, privileged: true}, {id: b, cmd: img docker}]\n")
	r.Spec.Privileged = true
	task, _, err := Plan(r, PlanOptions{Registry: "reg.test:5000", Privileged: true})
	if err != nil {
		t.Fatal(err)
	}
	a := &attempt{}
	if a.dockerOf(task.Steps[0]) != nil || a.dockerOf(task.Steps[1]) == nil {
		t.Error("a privileged step has kiln's docker, or one without privileges has not")
	}
}
