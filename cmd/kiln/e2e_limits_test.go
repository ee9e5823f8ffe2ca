package main

import (
	"strings"
	"testing"
)

// testLimits has an author who may push to some repositories and read some build what it should not: names that are
// known before, names that only the run computes, and base images of others.
func testLimits(t *testing.T, s *server) {
	token := strings.TrimSpace(s.must("token", "create", "limits", "--role", "author", "--repo", "limits/*", "--task", "limits-*"))
	s.must("build", "-t", "secretive/base:1", files(t, map[string]string{"Dockerfile": base}))
	env := []string{"KILN_SERVER=" + s.url, "KILN_TOKEN=" + token, "KILN_DATA=" + t.TempDir()}
	dir := files(t, map[string]string{"Dockerfile": base, "From": "FROM localhost:" + s.port() + "/secretive/base:1\n"})
	for _, c := range []struct {
		says string // empty for what is permitted
		args []string
	}{
		{"", []string{"build", "-t", "limits/app:1", dir}},
		{"to push to other/app", []string{"build", "-t", "other/app:1", dir}},
		{"to push to other/app", []string{"build", "-t", "localhost:" + s.port() + "/other/app:1", dir}},
		{"secretive/base", []string{"build", "-t", "limits/app:2", "-f", "From", dir}},
	} {
		res := runKiln(t, env, c.args...)
		if (res.code == 0) != (c.says == "") || !strings.Contains(res.err, c.says) {
			t.Errorf("kiln %q: exit code %d, want it to say %q\n%s", c.args, res.code, c.says, res.err)
		}
	}
	if out := s.must("repo", "list"); strings.Contains(out, "other/app") {
		t.Errorf("repositories:\n%s", out)
	}
}
