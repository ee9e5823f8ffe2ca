package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/gittest"
)

// testBuildOptions builds with the options that users of docker know, and looks at what came of them.
func testBuildOptions(t *testing.T, s *server) {
	const secret = "Zm-mounted-77-secret"
	dir := files(t, map[string]string{"docs/d.txt": "from docs\n", "Dockerfile": base + `COPY --from=docs d.txt /d.txt
RUN --mount=type=secret,id=file --mount=type=secret,id=WORD [ "$(cat /run/secrets/file)" = ` + "'Zm-mounted-77''-secret'" + ` ] && [ "$(cat /run/secrets/WORD)" = of-the-environment ]
RUN [ "$(ulimit -n)" = 99 ] && [ "$(grep -c : /proc/net/dev)" = 1 ] && grep -q 'shm.*size=8192k' /proc/mounts && grep -q 192.0.2.9 /etc/hosts
`})
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"build", "-t", "options/app", "--secret", "id=file,src=" + file, "--secret", "id=WORD", "--label", "team=blue",
		"--build-context", "docs=" + filepath.Join(dir, "docs"), "--network", "none", "--ulimit", "nofile=99", "--shm-size", "8m",
		"--add-host", "made.up:192.0.2.9", "--pull", "--cache-to", "type=registry,mode=max,ref=" + s.host() + "/options/cache:main", dir}
	res := runKiln(t, []string{"KILN_DATA=" + s.data, "WORD=of-the-environment"}, args...)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	if strings.Contains(res.err, secret) || strings.Contains(res.err, "of-the-environment\n") {
		t.Errorf("the log has a secret:\n%s", res.err)
	}
	config, err := s.image(strings.TrimSpace(res.out)).ConfigFile()
	if err != nil || config.Config.Labels["team"] != "blue" {
		t.Errorf("labels %v, %v", config.Config.Labels, err)
	}
	// The cache is there, and no repository of the user's was made for it.
	s.image(s.host() + "/kiln/staging/options/cache:main")
	for args, want := range map[string]string{
		"--secret id=nobody-has-set-it":            "the environment variable nobody-has-set-it is not set",
		"--ssh default":                            "kiln serve --ssh-key default=FILE. An agent of another host cannot be reached",
		"--network host":                           "the host's network is never given to a build",
		"--cache-to type=local,dest=/tmp":          `type "local" is not supported`,
		"--build-context x=/etc":                   "is not a directory inside of",
		"--platform linux/amd64,":                  `--platform "": want os`,
		"--cache-to type=registry,ref=evil.test/x": "the run has no login for evil.test",
	} {
		res := s.kiln(append(append([]string{"build"}, strings.Fields(args)...), dir)...)
		if res.code == 0 || !strings.Contains(res.err, want) {
			t.Errorf("%s: exit code %d, want %q\n%s", args, res.code, want, res.err)
		}
	}
}

func testReproducible(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": base + "RUN date > /dev/null && touch /now\n"})
	build := func() string { return strings.TrimSpace(s.must("build", "--reproducible", "--no-cache", dir)) }
	if first, second := build(), build(); first != second {
		t.Errorf("%s, then %s", first, second)
	}
	if several := s.must("build", "--platform", "linux/amd64,linux/arm64", files(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY busybox /\n"})); !strings.HasPrefix(several, "sha256:") {
		t.Error(several)
	}
}

// testDockerfilesStayOutside builds what would read from the server's own network.
func testDockerfilesStayOutside(t *testing.T, s *server) {
	git := gittest.Serve(t, t.TempDir(), "", "")
	for _, line := range []string{"ADD " + s.url + "/healthz /x", "ADD " + git.URL + "/r.git /x", "ADD http://169.254.169.254/latest/meta-data /x"} {
		res := s.kiln("build", files(t, map[string]string{"Dockerfile": "FROM scratch\n" + line + "\n"}))
		if res.code == 0 || !strings.Contains(res.err, "refused address") || !strings.Contains(res.err, "kiln serve --allow-source HOST") {
			t.Errorf("%s: exit code %d\n%s", line, res.code, res.err)
		}
	}
	task := "version: v1.1.0\nsteps:\n- build: -t a " + git.URL + "/r.git\n"
	if res := s.kiln("run", files(t, map[string]string{"acr-task.yaml": task})); res.code == 0 || !strings.Contains(res.err, "build context: ") || !strings.Contains(res.err, "kiln serve --allow-source HOST") {
		t.Errorf("remote context: exit code %d\n%s", res.code, res.err)
	}
	if git.Requests() != 0 {
		t.Errorf("%d requests came through", git.Requests())
	}
}
