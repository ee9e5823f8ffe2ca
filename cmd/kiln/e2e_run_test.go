package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// TestServer runs what needs no server of its own on one server.
func TestServer(t *testing.T) {
	s := startServer(t, append(append(vaultArgs(t), sampleArgs...), "--parallel-steps", "12", "--allow-privileged", "--image-alias", "tool=toolbox", "--allow-source", "localhost", "--allow-notify", "127.0.0.0/8")...)
	for name, test := range map[string]func(*testing.T, *server){
		"build": testBuild, "build args": testBuildArgs, "dockerignore": testDockerignore, "task": testTask, "cmd": testCmdProperties, "volumes": testVolumes, "output": testOutput,
		"docker": testDocker, "docker errors": testDockerErrors, "vaults": testVaultSecrets, "vault errors": testVaultErrors,
		"step rules": testStepRules, "rules of builds": testRulesOfBuilds, "outside": testOutside, "rules of steps": testRulesOfSteps, "small tasks": testSmallTasks, "neighbours": testNeighbours, "ends of steps": testEndsOfSteps, "bad builds": testBadBuilds, "bad tasks": testBadTasks, "cancel": testCancel,
		"secrets": testSecrets, "isolation": testIsolation, "rerun": testRerun, "logs": testLogs, "doctor": testDoctor,
		"wrong token": testWrongToken, "inputs": testBadInputs, "bases": testBases, "platform": testPlatform,
		"reuse": testReuse, "cache": testCache, "reuse of bases": testReuseOfBases, "reuse in tasks": testReuseInTasks,
		"build options": testBuildOptions, "reproducible": testReproducible, "outside addresses": testDockerfilesStayOutside, "siblings": testSiblings, "endings": testEndings, "torture": testTorture, "samples": testSamples, "webhook": testWebhook, "limits": testLimits, "entrances": testEntrances, "watch": testWatch,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bound := *s
			bound.t = t
			test(t, &bound)
		})
	}
}

func testBuild(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": base + "COPY hello.txt /hello.txt\n", "hello.txt": "hello\n"})
	first := strings.TrimSpace(s.must("build", "-t", "app/hello", dir))
	second := strings.TrimSpace(s.must("build", "-t", "app/hello", "-t", "app/other:v1", dir))
	lines := strings.Split(second, "\n")
	if len(lines) != 2 || lines[1][:len(s.host()+"/app/other:v1@sha256:")] != s.host()+"/app/other:v1@sha256:" {
		t.Fatalf("second build printed %q", second)
	}
	id := func(line string) string {
		_, tag, _ := strings.Cut(strings.TrimPrefix(line, s.host()), ":")
		tag, _, _ = strings.Cut(tag, "@")
		return tag
	}
	if !run.ValidID(id(first)) || id(first) == id(lines[0]) {
		t.Errorf("tags %q and %q: want two run IDs", id(first), id(lines[0]))
	}
	if _, a, _ := strings.Cut(first, "@"); !strings.HasSuffix(lines[0], a) {
		t.Errorf("unchanged content has another digest: %s, %s", first, lines[0])
	}
	rc := mutate.Extract(s.image(lines[1]))
	defer rc.Close()
	tar, err := io.ReadAll(rc)
	if err != nil || !strings.Contains(string(tar), "hello.txt") {
		t.Errorf("image does not hold hello.txt: %v", err)
	}
	r := s.show(id(first))
	if r.State != run.Succeeded || len(r.Steps) != 2 || r.Steps[0].Kind != "build" || len(r.Images) != 1 {
		t.Fatalf("record: %+v", r)
	}
	checkProvenance(t, s, r)
}

// checkProvenance looks for what the registry tells about the only image of a run.
func checkProvenance(t *testing.T, s *server, r run.Run) {
	t.Helper()
	image := r.Images[0]
	token, err := apiclient.ReadToken(s.data)
	if err != nil {
		t.Fatal(err)
	}
	auth := remote.WithAuth(&authn.Basic{Username: "kiln", Password: token})
	ref, err := name.NewDigest(s.host()+"/"+image.Repository+"@"+image.Digest, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(ref, auth)
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(list.Manifests, func(m v1.Descriptor) bool { return m.Digest.String() == image.Provenance }) {
		t.Fatalf("the record has the provenance %q, the registry %+v", image.Provenance, list.Manifests)
	}
	attached, err := remote.Image(ref.Context().Digest(image.Provenance), auth)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := attached.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	text, err := io.ReadAll(rc)
	for _, want := range []string{`"https://slsa.dev/provenance/v1"`, strings.TrimPrefix(image.Digest, "sha256:"), r.ID, `"step":"build"`} {
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("the provenance lacks %s, %v:\n%s", want, err, text)
		}
	}
}

func testBuildArgs(t *testing.T, s *server) {
	dir := files(t, map[string]string{"sub/Other.Dockerfile": strings.Replace(base, "scratch", "scratch AS wanted", 1) +
		"ARG WHO\nRUN test \"$WHO\" = \"you = me\"\nFROM scratch AS broken\nRUN [\"/nothing\"]\n"})
	r := s.kiln("build", "-f", filepath.Join(dir, "sub/Other.Dockerfile"), "--build-arg", "WHO=you = me", "--target", "wanted", dir)
	if r.code != 0 || !strings.HasPrefix(r.out, "sha256:") {
		t.Errorf("exit code %d, printed %q\n%s", r.code, r.out, r.err)
	}
}

func testDockerignore(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": base + "COPY . /src\nRUN test ! -e /src/secret && test -e /src/kept/a\n",
		".dockerignore": "secret\nkept\n!kept/a\n", "secret": "x", "kept/a": "a", "kept/b": "b"})
	s.must("build", dir)
}

// taskHello builds an image and its test image at once, tests, and pushes.
const taskHello = `version: v1.1.0
steps:
  - id: image
    build: -t $Registry/task/hello:$ID -t $Registry/task/hello:stable .
    when: ["-"]
  - id: test-image
    build: -t hello-test -f test.Dockerfile .
    when: ["-"]
  - id: derived
    build: -t derived -f derived.Dockerfile .
    when: [test-image]
  - id: test
    cmd: hello-test sh -c 'cat /tested && echo from-test > /workspace/result && echo "on $RUN_WORD"'
    env: [RUN_WORD=stdout]
    when: [image, derived]
  - id: see
    cmd: derived cat result /derived
  - push: ["$Registry/task/hello:$ID", "$Registry/task/hello:stable"]
`

func testTask(t *testing.T, s *server) {
	dir := files(t, map[string]string{
		"acr-task.yaml": taskHello, "Dockerfile": base, "test.Dockerfile": base + "RUN echo tested > /tested\n",
		"derived.Dockerfile": "FROM hello-test\nRUN echo derived > /derived\n",
	})
	res := s.kiln("run", dir)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	for _, want := range []string{"test | tested", "test | on stdout", "see | from-test", "see | derived"} {
		if !strings.Contains(res.err, want+"\n") {
			t.Errorf("log lacks %q:\n%s", want, res.err)
		}
	}
	lines := strings.Fields(res.out)
	if len(lines) != 2 || !strings.Contains(lines[1], "/task/hello:stable@sha256:") {
		t.Fatalf("printed %q", res.out)
	}
	for _, l := range lines {
		_, digest, _ := strings.Cut(l, "@")
		got, err := s.image(l[:strings.Index(l, "@")]).Digest()
		if err != nil || got.String() != digest {
			t.Errorf("%s pulls as %s, %v", l, got, err)
		}
	}
}

// testStepRules runs a task whose steps fail, are retried and time out.
func testStepRules(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": base, "slow.Dockerfile": base + "RUN sleep 100\n", "acr-task.yaml": `
steps:
  - build: -t box -t {{.Run.Registry}}/kiln/staging/mine:1 .
  - id: ignored
    cmd: box sh -c 'exit 7'
    ignoreErrors: true
  - id: retried
    cmd: box sh -c 'echo try >> tries; test $(wc -l < tries) = 3'
    retries: 5
    retryDelay: 1
  - id: dir
    cmd: box sh -c 'pwd; id -u; exit 0'
    workingDirectory: some/where
    user: "42"
  - {id: slow-build, build: -f slow.Dockerfile ., timeout: 2, ignoreErrors: true, when: [acb_step_0]}
  - {id: bad-build, build: -f no.Dockerfile ., startDelay: 1, ignoreErrors: true, when: [acb_step_0]}
  - {id: bad-push, push: ["{{.Run.Registry}}/kiln/staging/mine:1"], startDelay: 1, ignoreErrors: true, when: [acb_step_0]}
  - id: slow
    cmd: box sleep 100
    when: [dir, slow-build, bad-build, bad-push]
    timeout: 2
  - id: never
    cmd: box true
`})
	res := s.kiln("run", "-o", "json", dir)
	if res.code != 1 {
		t.Fatalf("exit code %d, want 1\n%s%s", res.code, res.out, res.err)
	}
	id := field(t, res.out, "id")
	r := s.show(id)
	want := map[string]run.StepState{"acb_step_0": run.StepSucceeded, "ignored": run.StepSucceeded, "retried": run.StepSucceeded,
		"dir": run.StepSucceeded, "slow-build": run.StepSucceeded, "bad-build": run.StepSucceeded, "bad-push": run.StepSucceeded, "slow": run.StepTimeout, "never": run.StepSkipped}
	for _, st := range r.Steps {
		if st.State != want[st.ID] {
			t.Errorf("step %s is %s, want %s (%s)", st.ID, st.State, want[st.ID], st.Error)
		}
		if st.ID == "ignored" && (st.ExitCode == nil || *st.ExitCode != 7) {
			t.Errorf("exit code of ignored: %v, want 7", st.ExitCode)
		}
		why := map[string]string{"slow-build": "timed out after 2s", "bad-build": "no.Dockerfile", "bad-push": "kiln's own"}[st.ID]
		if why != "" && (!strings.Contains(st.Error, why) || st.ID != "slow-build" && st.Started.Sub(r.Steps[0].Finished) < time.Second) {
			t.Errorf("ignored failure of %s: %q, started %s after the build", st.ID, st.Error, st.Started.Sub(r.Steps[0].Finished))
		}
		if st.ID == "retried" && st.Tries != 3 {
			t.Errorf("retried was executed %d times, want 3", st.Tries)
		}
	}
	if r.State != run.Failed || !strings.Contains(r.Reason, "slow") || !strings.Contains(r.Reason, "timeout") {
		t.Errorf("run is %s: %s", r.State, r.Reason)
	}
	for _, line := range []string{"dir | /workspace/some/where", "dir | 42"} {
		if !strings.Contains(res.err, line+"\n") {
			t.Errorf("log lacks %q", line)
		}
	}
}

func testBadBuilds(t *testing.T, s *server) {
	for name, c := range map[string]struct {
		dockerfile string
		code       int
		want       []string
	}{
		"syntax":       {"FROM scratch\nCOYP a b\n", 1, []string{"Dockerfile:2", "COYP"}},
		"failing RUN":  {base + "RUN sh -c 'echo why; exit 3'\n", 1, []string{"Dockerfile:4", "exit code 3", "why"}},
		"missing base": {"FROM " + s.host() + "/no/such:base\n", 1, []string{"no/such:base", "not found"}},
		"missing file": {"FROM scratch\nCOPY nothing /\n", 1, []string{"nothing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res := runKiln(t, []string{"KILN_DATA=" + s.data}, "build", "-t", "bad/x", files(t, map[string]string{"Dockerfile": c.dockerfile}))
			if res.code != c.code || res.out != "" {
				t.Errorf("exit code %d, printed %q, want %d and nothing", res.code, res.out, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(res.err, want) {
					t.Errorf("message lacks %q:\n%s", want, res.err)
				}
			}
			if strings.Contains(res.err, "goroutine") {
				t.Errorf("stack trace:\n%s", res.err)
			}
		})
	}
}

func testBadTasks(t *testing.T, s *server) {
	for name, c := range map[string]struct{ task, want string }{
		"misspelt":  {"steps:\n  - biuld: .\n", `did you mean "build"`},
		"bad when":  {"steps:\n  - id: a\n    cmd: x\n    when: [b]\n", "acr-task.yaml:4:"},
		"host net":  {"steps:\n  - cmd: x\n    network: host\n", "network"},
		"not built": {"steps:\n  - push: [\"$Registry/never:1\"]\n", "never"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := files(t, map[string]string{"acr-task.yaml": c.task})
			res := runKiln(t, []string{"KILN_DATA=" + s.data}, "run", dir)
			if res.code == 0 || !strings.Contains(res.err, c.want) {
				t.Errorf("exit code %d, message lacks %q:\n%s", res.code, c.want, res.err)
			}
		})
	}
}

func testCancel(t *testing.T, s *server) {
	mark := fmt.Sprintf("%d", os.Getpid()) + "7531"
	dir := files(t, map[string]string{"Dockerfile": base, "acr-task.yaml": "steps:\n  - build: -t box .\n  - cmd: box sleep " + mark + "\n"})
	id := strings.TrimSpace(s.must("run", "--no-wait", dir))
	sleeping := func() []int {
		return processes(t, func(cmdline string, _ int) bool { return strings.Contains(cmdline, "sleep "+mark) })
	}
	waitFor(t, "the step to run", func() bool { return len(sleeping()) > 0 })
	s.must("cancel", id)
	waitFor(t, "the run to end", func() bool { return s.show(id).State.Final() })
	if r := s.show(id); r.State != run.Canceled {
		t.Errorf("run is %s, want Canceled: %s", r.State, r.Reason)
	}
	if left := sleeping(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if res := s.kiln("cancel", id); res.code != 2 || !strings.Contains(res.err, "ended") {
		t.Errorf("second cancel: exit code %d\n%s", res.code, res.err)
	}
}

func testSecrets(t *testing.T, s *server) {
	const value = "Zm-hunter-22-secret"
	dir := files(t, map[string]string{"Dockerfile": base, "acr-task.yaml": `
steps:
  - build: -t box .
  - cmd: box sh -c 'echo "it is $PW"; echo "$PW" | base64'
    env: ["PW={{.Values.pw}}"]
`})
	res := runKiln(t, []string{"KILN_DATA=" + s.data, "pw=" + value}, "run", "--set-secret", "pw", dir)
	if res.code != 0 || !strings.Contains(res.err, "it is ***") {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	if strings.Contains(res.err, value) {
		t.Error("the follower saw the secret")
	}
	var found []string
	err := filepath.Walk(s.data, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() || info.Size() > 64<<20 {
			return nil // files come and go
		}
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), value) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil || len(found) > 0 {
		t.Errorf("the secret is in clear in %v, %v", found, err)
	}
}

// testIsolation tries to reach the server, which listens on the host, from a RUN and from a step.
func testIsolation(t *testing.T, s *server) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reached := make(chan struct{}, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			reached <- struct{}{}
			c.Close()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	try := fmt.Sprintf("for a in 127.0.0.1 $(ip route | sed -n \"s/default via \\([0-9.]*\\).*/\\1/p\"); do nc -w 1 $a %d </dev/null && echo REACHED $a; done; echo tried", port)
	dir := files(t, map[string]string{"Dockerfile": base + "RUN " + try + "\n",
		"acr-task.yaml": "steps:\n  - build: -t box --no-cache .\n  - cmd: box sh -c '" + try + "'\n"})
	res := s.kiln("run", dir)
	if res.code != 0 || strings.Count(res.err, "tried") < 2 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	if strings.Contains(res.err, "REACHED 1") || len(reached) > 0 {
		t.Errorf("a container reached the host:\n%s", res.err)
	}
}

// testBases builds on an image of the registry and looks for it in the record.
func testBases(t *testing.T, s *server) {
	s.must("build", "-t", "bases/box:1", files(t, map[string]string{"Dockerfile": base}))
	want, err := s.image(s.host() + "/bases/box:1").Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := files(t, map[string]string{"Dockerfile": "ARG FROM\nFROM ${FROM}\nRUN echo derived > /derived\n"})
	id := field(t, s.must("build", "-q", "-o", "json", "-t", "bases/app", "--build-arg", "FROM=localhost:"+s.port()+"/bases/box:1", dir), "id")
	bases := s.show(id).Bases
	if len(bases) != 1 || !strings.HasSuffix(bases[0].Ref, "/bases/box:1") || bases[0].Digest != want.String() {
		t.Errorf("bases: %+v, want bases/box:1 at %s", bases, want)
	}
}

func testPlatform(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n"})
	ref := strings.TrimSpace(s.must("build", "-q", "--platform", "linux/arm64", "-t", "arm/box", dir))
	cfg, err := s.image(ref[:strings.Index(ref, "@")]).ConfigFile()
	if err != nil || cfg.Architecture != "arm64" {
		t.Errorf("image is for %q, want arm64: %v", cfg.Architecture, err)
	}
}

func testRerun(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": base})
	first := strings.TrimSpace(s.must("build", "-t", "again", dir))
	id := strings.TrimSpace(strings.Split(strings.SplitN(first, "again:", 2)[1], "@")[0])
	second := strings.TrimSpace(s.must("rerun", id))
	if second == first || !strings.Contains(second, "/again:") {
		t.Fatalf("rerun printed %q after %q", second, first)
	}
	again := strings.Split(strings.SplitN(second, "again:", 2)[1], "@")[0]
	if r := s.show(again); r.Cause.Kind != run.CauseRerun || r.Cause.RerunOf != id {
		t.Errorf("cause: %+v", r.Cause)
	}
}

func testLogs(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": base, "acr-task.yaml": "steps:\n  - build: -t box .\n  - id: many\n    cmd: box seq 1 20000\n"})
	id := field(t, s.must("run", "-q", "-o", "json", dir), "id")
	var got []string
	for line := range strings.Lines(s.must("logs", id)) {
		if n, ok := strings.CutPrefix(line, "many | "); ok && !strings.HasPrefix(n, "=") {
			got = append(got, strings.TrimSpace(n))
		}
	}
	if len(got) != 20000 || got[0] != "1" || got[19999] != "20000" || !slices.IsSortedFunc(got, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	}) {
		t.Errorf("%d lines came back, out of order or not all", len(got))
	}
	if !strings.Contains(s.must("runs", "-n", "50"), id) {
		t.Error("the list of runs lacks the run")
	}
}

func testDoctor(t *testing.T, s *server) {
	if out := s.must("doctor"); strings.Contains(out, "FAIL") || !strings.Contains(out, "BuildKit") {
		t.Errorf("doctor says\n%s", out)
	}
}

func testWrongToken(t *testing.T, s *server) {
	res := runKiln(t, []string{"KILN_TOKEN=wrong", "KILN_SERVER=" + s.url, "KILN_DATA=" + t.TempDir()}, "runs")
	if res.code != 2 || !strings.Contains(res.err, "token") {
		t.Errorf("exit code %d\n%s", res.code, res.err)
	}
}

func testBadInputs(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": base})
	for name, args := range map[string][]string{
		"missing context": {"build", "-t", "x", "/no/such/dir"},
		"bad reference":   {"build", "-t", "UPPER/case", dir},
		"unknown flag":    {"build", "--no-pusch", dir},
		"missing file":    {"build", "-f", "/no/such/Dockerfile", dir},
		"unknown run":     {"show", "r00000000000"},
		"no task file":    {"run", dir},
	} {
		res := s.kiln(args...)
		if res.code != 2 || !strings.HasPrefix(res.err, "kiln: ") || strings.Contains(res.err, "goroutine") {
			t.Errorf("%s: exit code %d, want 2\n%s", name, res.code, res.err)
		}
	}
}

func field(t *testing.T, doc, key string) string {
	t.Helper()
	_, rest, ok := strings.Cut(doc, "\""+key+"\": \"")
	if !ok {
		t.Fatalf("no %s in %s", key, doc)
	}
	v, _, _ := strings.Cut(rest, "\"")
	return v
}
