package worker

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/run"
)

func TestEnvFilesOfSteps(t *testing.T) {
	t.Parallel()
	task := func(options string) run.Run {
		return fileRun("version: v1.1.0\nvolumes:\n- name: v\n  secret: {app: T0ZfVk9MVU1FPTEKT0ZfU1RFUD1sZWZ0Cg==}\nsteps:\n- id: a\n  cmd: " + options + " -e OF_STEP=1 img\n" +
			"  workingDirectory: elsewhere\n  volumeMounts: [{name: v, mountPath: /mnt}]\n")
	}
	s := &script{files: map[string]string{"conf/a.env": "OF_FILE=x y\nOF_STEP=lost\nOF_STEP\nNONE\n", "bad.env": "A=1\nMY KEY=hunter22\n"}}
	g := newRig(t, s)
	reports := g.execute(t, g.assign(t, task("--env-file conf/a.env --env-file /mnt/app"), nil))
	if rep := final(reports); rep.Final != run.Succeeded {
		t.Fatalf("%+v\n%s", rep, g.log(t, testRun))
	}
	want := []string{"OF_FILE=x y", "OF_STEP=lost", "OF_STEP=1", "OF_VOLUME=1", "OF_STEP=left", "HOME=/acb/home", "OF_STEP=1"}
	if diff := cmp.Diff(want, s.runs[0].Env); diff != "" {
		t.Error(diff)
	}
	for option, want := range map[string]string{
		"--env-file bad.env":            `step a: --env-file bad.env:2: the name "MY KEY" has a blank`,
		"--env-file ./none.env":         "step a: --env-file none.env is not there",
		"--env-file /mnt/other":         "step a: --env-file volume v has no file other",
		"--env-file /etc/environment":   "--env-file /etc/environment is neither in a volume that the step mounts nor in /workspace",
		"--env-file ../outside/app.env": "--env-file ../outside/app.env is neither in a volume",
	} {
		s := &script{files: s.files}
		g := newRig(t, s)
		rep := final(g.execute(t, g.assign(t, task(option), nil)))
		if rep.Final != run.Failed || len(s.runs) > 0 || !strings.Contains(rep.Reason, want) || strings.Contains(rep.Reason, "hunter22") {
			t.Errorf("%s: %s %s, want %s", option, rep.Final, rep.Reason, want)
		}
	}
}
