package worker

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"kiln/internal/run"
	"kiln/internal/solve"
)

// TestBuildsWriteFiles has builds of steps and of a script say what they have built, in files of the workspace.
func TestBuildsWriteFiles(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	s.build = g.staging
	said := ""
	s.run = func(ctx context.Context, c solve.Container, _ solve.LogFunc) (int, error) {
		for _, tc := range []dockerCase{
			{"build -t own --iidfile id --metadata-file /workspace/m.json .", "", 0, "", "built"},
			{"build --iidfile /tmp/id .", "", 1, "", "--iidfile /tmp/id is not in /workspace, where alone a build can write"},
			{"build --metadata-file ../../x .", "", 1, "", "--metadata-file ../../x is not in /workspace"},
		} {
			if code, out, err := tc.call(ctx, c.Docker); code != tc.code || !strings.Contains(out, tc.out) || !strings.Contains(err, tc.err) {
				said += tc.command + ": " + err
			}
		}
		return 0, nil
	}
	r := fileRun("version: v1.1.0\nsteps:\n- build: -t a:1 -t b --iidfile ids/a --metadata-file meta.json .\n  workingDirectory: sub\n- cmd: img docker\n  workingDirectory: sub\n- build: .\n")
	// An earlier attempt has built it, in a workspace that is no more.
	r.Steps = []run.Step{{ID: "acb_step_0", Kind: "build", State: run.StepSucceeded, Output: &run.Output{Digest: "sha256:" + strings.Repeat("a", 64)}}}
	rep := final(g.execute(t, g.assign(t, r, nil)))
	if rep == nil || rep.Final != run.Succeeded || said != "" {
		t.Fatalf("%+v\n%s\n%s", rep, said, g.log(t, testRun))
	}
	id := s.files["sub/ids/a"]
	if !strings.HasPrefix(id, "sha256:") || len(id) != 71 || id != rep.Steps[0].Output.Digest || s.files["sub/id"] == "" || len(s.files) != 4 {
		t.Errorf("%v", s.files)
	}
	var meta struct {
		Digest     string `json:"containerimage.digest"`
		Config     string `json:"containerimage.config.digest"`
		Name       string `json:"image.name"`
		Descriptor struct {
			Digest, MediaType string
			Size              int
		} `json:"containerimage.descriptor"`
	}
	if err := json.Unmarshal([]byte(s.files["sub/meta.json"]), &meta); err != nil {
		t.Error(err)
	}
	if meta.Digest != id || meta.Descriptor.Digest != id || meta.Descriptor.Size == 0 || !strings.Contains(meta.Descriptor.MediaType, "manifest") ||
		!strings.HasPrefix(meta.Config, "sha256:") || meta.Config == id || meta.Name != "a:1,b:latest" {
		t.Errorf("%s", s.files["sub/meta.json"])
	}
	if b := s.builds[len(s.builds)-1]; !b.FromWorkspace {
		t.Error("a later build does not see the files")
	}
}
