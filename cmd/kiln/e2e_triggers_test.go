package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/gittest"
	"kiln/internal/run"
)

// TestTriggers has facts become runs on one server: pushes to real git repositories, base images, waits.
func TestTriggers(t *testing.T) {
	reg := startPrivate(t, map[string]string{"shared": "Pw-of-the-server"})
	t.Setenv("SHARED_PW", "Pw-of-the-server")
	s := startServer(t, "--allow-source", "127.0.0.0/8", "--registry-login", reg.host+"=shared:env:SHARED_PW", "--allow-purge", purgesGranted)
	for name, test := range map[string]func(*testing.T, *server){
		"push": testPush, "base image": testBaseImage, "cascade": testCascade, "timer": testTimer,
		"lost event": testLostEvent, "why not": testWhyNot, "ask": testAskForTask, "private": testPrivateRepository,
		"task file": testTaskFileOfRepository, "github": func(t *testing.T, s *server) { testGitHub(t, s, reg) }, "registry hook": testRegistryHook, "purge": testPurge,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bound := *s
			bound.t = t
			test(t, &bound)
		})
	}
}

// onPush is the part of a task that follows its branch.
const onPush = "triggers: {source: [{name: push}]}\n"

// A forge is a git server whose pushes are told to a generic hook.
type forge struct {
	s            *server
	repo         *gittest.Repo
	url          string
	hook, secret string
}

// newForge makes a repository with these files, and a hook for it.
func newForge(t *testing.T, s *server, name, user, password string, content map[string]string) *forge {
	t.Helper()
	root := t.TempDir()
	f := &forge{s: s, repo: gittest.NewRepo(t, root, name+".git")}
	f.url = gittest.Serve(t, root, user, password).URL + "/" + name + ".git"
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v (Debian: apt-get install busybox-static)", err)
	}
	f.repo.Write("busybox", string(program), 0o755)
	f.commit(content)
	var hook apiclient.Hook
	if err := json.Unmarshal([]byte(s.must("hook", "create", "--provider", "generic", "--repo", f.url, "-o", "json")), &hook); err != nil {
		t.Fatal(err)
	}
	f.hook, f.secret = hook.URL, hook.Secret
	return f
}

// commit writes files, commits and pushes. Nobody is told.
func (f *forge) commit(content map[string]string) string {
	for path, text := range content {
		f.repo.Write(path, text, 0)
	}
	return f.repo.Commit("change")
}

// deliver tells the hook that a branch has moved.
func (f *forge) deliver(ref, id string) {
	f.s.t.Helper()
	body, err := json.Marshal(map[string]string{"type": "git.pushed", "repository": f.url, "ref": ref})
	if err != nil {
		f.s.t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(f.secret))
	mac.Write(body)
	req, err := http.NewRequest(http.MethodPost, f.hook, bytes.NewReader(body))
	if err != nil {
		f.s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Kiln-Delivery", id)
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		f.s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		f.s.t.Fatalf("delivery answered %s", resp.Status)
	}
}

// apply stores a task and waits until what it follows is known.
func (s *server) apply(name, definition string) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "task.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: kiln/v1\nkind: Task\nname: "+name+"\n"+definition), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.must("apply", "-f", file)
	waitFor(s.t, "baseline of "+name, func() bool { return len(s.decisions(name)) > 0 })
}

// decisions returns what was decided about a task.
func (s *server) decisions(name string) []string {
	s.t.Helper()
	var list apiclient.Decisions
	if err := json.Unmarshal([]byte(s.must("why-not", "--all", "-o", "json", name)), &list); err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, d := range list.Decisions {
		out = append(out, string(d.Kind)+" "+d.Filter+": "+d.Reason)
	}
	return out
}

// runsOf returns the runs of a task, oldest first, once there are n that have ended.
func (s *server) runsOf(name string, n int) []run.Run {
	s.t.Helper()
	var page apiclient.Runs
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("decisions about %s:\n%s\nevents:\n%s", name, strings.Join(s.decisions(name), "\n"), s.must("events", "-n", "50"))
		}
	})
	waitFor(s.t, fmt.Sprintf("%d ended runs of %s", n, name), func() bool {
		page = apiclient.Runs{}
		if err := json.Unmarshal([]byte(s.must("task", "list-runs", name, "-o", "json")), &page); err != nil {
			s.t.Fatal(err)
		}
		return len(page.Runs) >= n && !slices.ContainsFunc(page.Runs, func(r run.Run) bool { return !r.State.Final() })
	})
	if len(page.Runs) != n {
		s.t.Fatalf("%d runs of %s, want %d: %+v\n%v", len(page.Runs), name, n, page.Runs, s.decisions(name))
	}
	slices.Reverse(page.Runs)
	for _, r := range page.Runs {
		if r.State != run.Succeeded {
			s.t.Fatalf("run %s of %s ended %s: %s\n%s", r.ID, name, r.State, r.Reason, s.must("logs", r.ID))
		}
	}
	return page.Runs
}

// push copies a directory's build to a name in the server's registry, as anybody may push a base image.
func (s *server) pushBase(ref, content string) {
	s.t.Helper()
	s.must("build", "-t", ref, files(s.t, map[string]string{"Dockerfile": base + "COPY version /version\n", "version": content}))
}

func testPush(t *testing.T, s *server) {
	f := newForge(t, s, "push", "", "", map[string]string{"Dockerfile": base + "COPY app /app\n", "app": "one\n"})
	s.apply("push", "context: "+f.url+"#main\nstep: {build: {images: ['push/app:{{.Run.ID}}', 'push/app:latest']}}\n"+onPush)
	commit := f.commit(map[string]string{"app": "two\n"})
	for i := range 3 {
		f.deliver("refs/heads/main", fmt.Sprint("same", i/2)) // one of them twice
	}
	r := s.runsOf("push", 1)[0]
	if r.Cause.Kind != run.CauseCommit || r.Cause.Commit != commit || len(r.Images) != 2 {
		t.Errorf("run %+v, want one of commit %s with two images", r.Cause, commit)
	}
	s.image(r.Images[0].String())
	s.explains("push/app:latest", r.ID, commit[:12], "git.pushed", "delivered to hook", "default")
	first := f.repo.Git("rev-parse", "HEAD~1")
	f.repo.Git("reset", "-q", "--hard", first)
	f.repo.Git("push", "-q", "-f", "origin", "HEAD:main")
	f.deliver("refs/heads/main", "back")
	if back := s.runsOf("push", 2)[1]; back.Cause.Commit != first {
		t.Errorf("after a forced push back the run is of %s, want %s", back.Cause.Commit, first)
	}
}

func testBaseImage(t *testing.T, s *server) {
	s.pushBase("bases/one:1", "1")
	s.pushBase("bases/two:1", "1")
	f := newForge(t, s, "based", "", "", map[string]string{
		"Dockerfile": "FROM " + s.host() + "/bases/one:1\nCOPY --from=" + s.host() + "/bases/two:1 /version /two\nCMD cat /version\n"})
	s.apply("based", "context: "+f.url+"#main\nstep: {build: {images: ['based:{{.Run.ID}}']}}\ntriggers: {baseImage: {quiet: 0s}}\n")
	s.pushBase("bases/two:1", "2") // used while building only
	s.pushBase("bases/one:1", "2") // never run before, and known all the same
	r := s.runsOf("based", 1)[0]
	if r.Cause.Kind != run.CauseBase || len(r.Cause.Moved) == 0 || !strings.HasSuffix(r.Cause.Moved[0].Ref, "bases/one:1") {
		t.Fatalf("cause %+v, want the base image", r.Cause)
	}
	const annotation = "org.opencontainers.image.base."
	if m, err := s.image(s.host() + "/based:" + r.ID).Manifest(); err != nil || m.Annotations[annotation+"name"] != r.Cause.Moved[0].Ref ||
		m.Annotations[annotation+"digest"] != r.Cause.Moved[0].To {
		t.Errorf("the image is annotated with %v, %v, want the base image", m.Annotations, err)
	}
	s.pushBase("bases/one:1", "2") // the same again
	s.pushBase("bases/one:1", "1") // and back
	back := s.runsOf("based", 2)[1]
	if back.Cause.Moved[0].To != r.Cause.Moved[0].From {
		t.Errorf("after a rollback of the base: %+v", back.Cause)
	}
}

func testCascade(t *testing.T, s *server) {
	s.pushBase("casc/base:1", "1")
	for _, c := range [][2]string{{"casc/base", "a"}, {"casc/a", "b"}, {"casc/b", "c"}} {
		f := newForge(t, s, c[1], "", "", map[string]string{"Dockerfile": "FROM " + s.host() + "/" + c[0] + ":1\nRUN echo " + c[1] + " >>/layers\n"})
		s.apply("casc-"+c[1], "context: "+f.url+"#main\nstep: {build: {images: ['casc/"+c[1]+":1']}}\ntriggers: {baseImage: {quiet: 0s}}\n")
	}
	s.pushBase("casc/base:1", "2")
	a, b, c := s.runsOf("casc-a", 1)[0], s.runsOf("casc-b", 1)[0], s.runsOf("casc-c", 1)[0]
	if a.Finished.After(b.Started) || b.Finished.After(c.Started) {
		t.Errorf("not in order: a ended %s, b began %s and ended %s, c began %s", a.Finished, b.Started, b.Finished, c.Started)
	}
	why := s.must("why", c.ID)
	for _, r := range []run.Run{a, b, c} {
		if !strings.Contains(why, r.ID) {
			t.Errorf("why %s says nothing of %s:\n%s", c.ID, r.ID, why)
		}
	}
}

func testTimer(t *testing.T, s *server) {
	if testing.Short() {
		t.Fatal("a timer takes up to a minute; run without -short")
	}
	s.pushBase("timer/box:1", "1")
	s.apply("timer", "step: {inline: {task: \"version: v1.1.0\\nsteps:\\n- cmd: "+s.host()+"/timer/box:1 /bin/true\\n\"}}\ntriggers: {timers: [{name: often, schedule: '* * * * *'}]}\n")
	deadline := time.Now().Add(75 * time.Second)
	for len(s.decisionsOf("timer", "timer \"often\" was due")) == 0 && time.Now().Before(deadline) {
		waitABit(t)
	}
	s.must("task", "timer", "update", "timer", "--timer-name", "often", "--enabled", "false")
	if r := s.runsOf("timer", 1)[0]; r.Cause.Kind != run.CauseTimer || r.Cause.Occurrence.Second() != 0 {
		t.Errorf("cause %+v, want the timer at a full minute", r.Cause)
	} else {
		s.explains(r.ID, `timer "often" was due`, "trigger often")
	}
}

// explains wants something in what is said of a run's reason.
func (s *server) explains(id string, wants ...string) {
	s.t.Helper()
	why := s.must("why", id)
	for _, want := range wants {
		if !strings.Contains(why, want) {
			s.t.Errorf("why %s says nothing of %q:\n%s", id, want, why)
		}
	}
}

// decisionsOf returns the decisions about a task whose reason has these words.
func (s *server) decisionsOf(name, words string) []string {
	return slices.DeleteFunc(s.decisions(name), func(d string) bool { return !strings.Contains(d, words) })
}

// waitABit leaves the processor to the server between two looks.
func waitABit(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(250 * time.Millisecond):
	case <-t.Context().Done():
	}
}

func testLostEvent(t *testing.T, s *server) {
	f := newForge(t, s, "lost", "", "", map[string]string{"Dockerfile": base + "COPY app /app\n", "app": "one\n"})
	s.apply("lost", "context: "+f.url+"#main\nstep: {build: {images: ['lost:{{.Run.ID}}']}}\n"+onPush)
	commit := f.commit(map[string]string{"app": "two\n"})
	if r := s.kiln("reconcile", "--dry-run"); !strings.Contains(r.out, "lost") || !strings.Contains(r.out, commit[:12]) {
		t.Errorf("a dry run says nothing of the lost push:\n%s%s", r.out, r.err)
	}
	s.kiln("reconcile")
	if r := s.runsOf("lost", 1)[0]; r.Cause.Commit != commit {
		t.Errorf("run %+v, want commit %s", r.Cause, commit)
	}
	f.deliver("refs/heads/main", "late")
	waitFor(t, "the late event is noted", func() bool { return len(s.decisionsOf("lost", "nothing has changed")) > 0 })
	s.runsOf("lost", 1)
}

func testWhyNot(t *testing.T, s *server) {
	f := newForge(t, s, "whynot", "", "", map[string]string{"Dockerfile": base, "src/a": "1", "docs/a": "1"})
	s.apply("whynot", "context: "+f.url+"#main\nstep: {build: {images: ['whynot:{{.Run.ID}}']}}\n"+
		"triggers: {source: [{name: code, paths: ['src/**']}]}\n")
	f.commit(map[string]string{"docs/a": "2"})
	f.deliver("refs/heads/main", "docs")
	waitFor(t, "the commit is refused", func() bool { return len(s.decisionsOf("whynot", "matches the paths")) == 1 })
	s.kiln("reconcile")
	f.deliver("refs/heads/main", "docs again")
	f.commit(map[string]string{"src/a": "2"})
	f.deliver("refs/heads/main", "src")
	s.runsOf("whynot", 1)
	if n := len(s.decisionsOf("whynot", "matches the paths")); n != 1 {
		t.Errorf("the commit was refused %d times, want once", n)
	}
	if out := s.must("why-not", "whynot", "--since", "1h"); !strings.Contains(out, "filtered (paths)") || !strings.Contains(out, "src") && !strings.Contains(out, "code") {
		t.Errorf("why-not:\n%s", out)
	}
}

func testAskForTask(t *testing.T, s *server) {
	f := newForge(t, s, "asked", "", "", map[string]string{"Dockerfile": base + "ARG WHO=nobody\nRUN echo $WHO >/who\n"})
	first := f.repo.Git("rev-parse", "HEAD")
	s.apply("asked", "context: "+f.url+"#main\nstep: {build: {images: ['asked:{{.Run.ID}}']}}\n")
	f.commit(map[string]string{"more": "x", "other.Dockerfile": base + "COPY more /more\n"})
	s.must("task", "run", "asked", "--commit", first, "--arg", "WHO=me")
	r := s.runsOf("asked", 1)[0]
	if !strings.Contains(r.Spec.Context, first) || !slices.Contains(r.Spec.Build.BuildArgs, "WHO=me") {
		t.Errorf("run of %q with %v, want commit %s", r.Spec.Context, r.Spec.Build.BuildArgs, first)
	}
	s.must("rerun", r.ID)
	again := s.runsOf("asked", 2)[1]
	if again.Spec.Context != r.Spec.Context || again.Cause.RerunOf != r.ID {
		t.Errorf("rerun is of %q, %+v", again.Spec.Context, again.Cause)
	}
	s.explains(again.ID, "repetition of run "+r.ID+", asked for by admin", "run.requested, from", first)
	s.explains(r.ID, "asked for by admin", "run.requested, from", first)
	s.must("task", "run", "asked", "-f", "other.Dockerfile")
	if other := s.runsOf("asked", 3)[2]; other.Spec.Build.Dockerfile != "other.Dockerfile" || strings.Contains(other.Spec.Context, first) {
		t.Errorf("run of another Dockerfile: %+v of %q", other.Spec.Build, other.Spec.Context)
	}
	s.must("task", "update", "asked", "--status", "Disabled")
	if res := s.kiln("task", "run", "asked"); res.code != 2 || !strings.Contains(res.err, "disabled") {
		t.Errorf("run of a disabled task: exit code %d, %q", res.code, res.err)
	}
}

func testPrivateRepository(t *testing.T, s *server) {
	const password = "s3cr3t-of-the-forge"
	f := newForge(t, s, "private", "git", password, map[string]string{"Dockerfile": base})
	secretFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(secretFile, []byte("git:"+password), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must("secret", "set", "forge", "--from-file", secretFile)
	s.apply("private", "context: "+f.url+"#main\ncontextSecret: forge\nstep: {build: {images: ['private:{{.Run.ID}}']}}\n"+onPush)
	f.commit(map[string]string{"more": "x", "other.Dockerfile": base + "COPY more /more\n"})
	f.deliver("refs/heads/main", "1")
	r := s.runsOf("private", 1)[0]
	for what, text := range map[string]string{"log": s.must("logs", r.ID), "record": s.must("show", r.ID, "-o", "json"),
		"events": s.must("events", "-n", "500", "-o", "json"), "server's log": s.log.String()} {
		if strings.Contains(text, password) {
			t.Errorf("the %s holds the secret", what)
		}
	}
}

func testTaskFileOfRepository(t *testing.T, s *server) {
	f := newForge(t, s, "filed", "", "", map[string]string{"ci/Dockerfile": base, "ci/task.yaml": "version: v1.1.0\nsteps:\n" +
		"- build: -t {{.Run.Registry}}/filed:{{.Run.ID}} -f Dockerfile .\n- push: ['{{.Run.Registry}}/filed:{{.Run.ID}}']\n", "ci/busybox": ""})
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	f.repo.Write("ci/busybox", string(program), 0o755)
	f.repo.Commit("busybox")
	s.apply("filed", "context: "+f.url+"#main:ci\nstep: {file: {path: task.yaml}}\n"+onPush)
	f.commit(map[string]string{"ci/more": "x"})
	f.deliver("refs/heads/main", "1")
	if r := s.runsOf("filed", 1)[0]; len(r.Images) != 1 || r.Images[0].Repository != "filed" {
		t.Errorf("images %+v", r.Images)
	}
}
