package supervise

import (
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/buildkit/daemon"
)

func TestCheckOfThisHost(t *testing.T) {
	// The tests of this package run builds, so everything that builds need is there.
	for _, p := range Check(t.Context(), daemon.Config{Root: filepath.Join(t.TempDir(), "not", "yet")}) {
		if !p.OK || p.Detail == "" || p.Remedy != "" {
			t.Errorf("%s: %+v, want it to be all right", p.Name, p)
		}
	}
}

func TestCheckNamesTheRemedy(t *testing.T) {
	for _, p := range Check(t.Context(), daemon.Config{Root: "/proc/self", Runc: "no-such-runc", StateTmpfs: "/etc/kiln"}) {
		switch p.Name {
		case "runc", "overlayfs", "tmpfs":
			if p.OK || p.Remedy == "" {
				t.Errorf("%s: %+v, want a problem with a remedy", p.Name, p)
			}
		}
	}
}

func TestJudgeRunc(t *testing.T) {
	for _, c := range []struct{ version, want string }{
		{"runc version 1.1.5+ds1\ncommit: 1\nspec: 1.0.2-dev\nlibseccomp: 2.5.4\n", "runc version 1.1.5+ds1"},
		{"runc version 1.3.0\nlibseccomp: 2.5.4\n", "runc version 1.3.0"},
		{"runc version 1.0.3\nlibseccomp: 2.5.4\n", "too old"},
		{"runc version 1.4.0\nspec: 1.2.1\n", "without seccomp"},
		{"crun version 1.8.1\ncommit: f\n+SECCOMP\n", "is crun"},
		{"hello\n", "says no version"},
	} {
		got, err := judgeRunc(c.version)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("judgeRunc(%q) = %q, want %q", c.version, got, c.want)
		}
	}
}
