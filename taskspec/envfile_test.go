package taskspec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnvFiles(t *testing.T) {
	t.Parallel()
	got, err := ParseEnvFile("app.env", "\ufeff# comment\r\nA=1\r\n\n  B='quoted' # no comment \nC=\nOF_STEP\nUNSET\nD=a=b\tc", []string{"OF_STEP=old", "OF_STEP=new"})
	if diff := cmp.Diff([]string{"A=1", "B='quoted' # no comment ", "C=", "OF_STEP=new", "D=a=b\tc"}, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	_, err = ParseEnvFile("conf/app.env", "A=1\n=hunter22\n\nMY KEY=hunter22\nexport hunter22\nX=\xff\n", nil)
	want := "conf/app.env:2: there is no name before the =\nconf/app.env:4: the name \"MY KEY\" has a blank; write NAME=VALUE\n" +
		"conf/app.env:5: there is a blank and no =; write NAME=VALUE\nconf/app.env:6: the line is not UTF-8 text"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if _, err := ParseEnvFile("f", strings.Repeat("A=1\n", maxEnv+1), nil); err == nil || !strings.Contains(err.Error(), "f:501: a file has at most 500 variables") {
		t.Error(err)
	}
	task, warnings, err := Parse([]byte("steps:\n- cmd: --env-file a.env --env-file=/workspace/b.env img\n"), testOptions())
	if err != nil || len(warnings) > 0 || cmp.Diff([]string{"a.env", "/workspace/b.env"}, task.Steps[0].Cmd.EnvFiles) != "" {
		t.Error(err, warnings, task)
	}
	if _, _, err = Parse([]byte("steps:\n- cmd: "+strings.Repeat("--env-file x ", 17)+"img\n"), testOptions()); err == nil || !strings.Contains(err.Error(), "at most 16") {
		t.Error(err)
	}
}

func FuzzEnvFile(f *testing.F) {
	f.Add("# c\nA=1\r\nB\n=x\nA B=c\n")
	f.Fuzz(func(t *testing.T, content string) {
		list, _ := ParseEnvFile("f", content, []string{"B=2"})
		for _, e := range list {
			if key, _, ok := strings.Cut(e, "="); !ok || key == "" || strings.ContainsAny(e, "\n\x00") || strings.ContainsAny(key, " \t\r") {
				t.Errorf("%q makes %q", content, e)
			}
		}
	})
}
