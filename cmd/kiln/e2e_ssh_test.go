package main

import (
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/gittest"
)

// testGitSSH builds what a git server has for those with a key: that of kiln serve, or the task's own.
func testGitSSH(t *testing.T, s gitServer) {
	r, _ := s.repository("deploy", map[string]string{"Dockerfile": base, "acr-task.yaml": "version: v1.1.0\nsteps:\n- build: -t x ssh://git@" + s.ssh.Addr + "/deploy.git#main\n"})
	url := "ssh://git@" + s.ssh.Addr + "/deploy.git"
	if res := s.kiln("run", url+"#main"); res.code != 0 || strings.Count(res.err, r.Git("rev-parse", "HEAD")[:12]) < 2 {
		t.Errorf("a run and a step of it: exit code %d\n%s", res.code, res.err)
	}
	s.must("build", "--ssh", "default", files(t, map[string]string{"Dockerfile": base + "RUN --mount=type=ssh test -S \"$SSH_AUTH_SOCK\"\n"}))
	// A task is decided about before a worker sees it; its key is a secret of its own, if it names one.
	other := gittest.ServeSSH(t, s.git.Root)
	keys := files(t, map[string]string{"right": string(s.ssh.PrivateKey), "wrong": string(other.PrivateKey)})
	for _, name := range []string{"right", "wrong"} {
		s.must("secret", "set", "deploy-"+name, "--from-file", filepath.Join(keys, name))
	}
	s.must("task", "create", "deploy", "-c", url, "-t", "git/deploy:{{.Run.ID}}")
	s.must("task", "run", "deploy")
	for secret, want := range map[string]string{"right": "", "wrong": "access denied: the server does not accept the ssh key"} {
		s.must("task", "update", "deploy", "--context-secret", "deploy-"+secret)
		res := s.kiln("task", "run", "deploy")
		if (res.code == 0) != (want == "") || !strings.Contains(res.err, want) {
			t.Errorf("%s: exit code %d\n%s", secret, res.code, res.err)
		}
	}
	for context, want := range map[string]string{
		url + "#nope": url + ": nope: not in the repository",
		"ssh://git@" + other.Addr + "/deploy.git#main": "ssh://git@" + other.Addr + "/deploy.git: main: host key not accepted: the server is not in known_hosts; add its key to the file of kiln serve --ssh-known-hosts",
	} {
		if res := s.kiln("build", context); res.code == 0 || !strings.Contains(res.err, want) || strings.Contains(res.err, "--allow-source") {
			t.Errorf("%s: exit code %d\n%s", context, res.code, res.err)
		}
	}
	for line := range strings.Lines(string(s.ssh.PrivateKey)) {
		if line = strings.TrimSpace(line); len(line) > 40 && strings.Contains(s.log.String(), line) {
			t.Error("the server's log holds the key")
		}
	}
}
