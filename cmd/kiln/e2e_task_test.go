package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// TestTasksFromTheCommandLine goes through the life of tasks as a person would.
func TestTasksFromTheCommandLine(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	t.Run("create and update", s.createAndUpdate)
	t.Run("conflict", s.conflictingUpdates)
	t.Run("recreate", s.recreate)
	t.Run("timers and credentials", s.timersAndCredentials)
	t.Run("apply", s.applyFiles)
	t.Run("secrets", s.keepSecrets)
	t.Run("addresses", s.keepAddresses)
	t.Run("backup", s.backUp)
}

// wants runs a command and wants an exit code and what it says on standard error.
func (s *server) wants(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	if r := s.kiln(args...); r.code != code || !strings.Contains(r.err, says) {
		t.Errorf("kiln %s: exit code %d, want %d and %q\n%s%s", strings.Join(args, " "), r.code, code, says, r.out, r.err)
	}
}

// prints runs a command that has to succeed and wants something in its output.
func (s *server) prints(t *testing.T, want string, args ...string) {
	t.Helper()
	r := s.kiln(args...)
	if r.code != 0 || !strings.Contains(r.out, want) {
		t.Errorf("kiln %s: exit code %d, want %q\n%s%s", strings.Join(args, " "), r.code, want, r.out, r.err)
	}
}

// stored returns a task as the server has it.
func (s *server) stored(t *testing.T, name string) apiclient.Task {
	t.Helper()
	var out apiclient.Task
	if err := json.Unmarshal([]byte(s.must("task", "show", name, "-o", "json")), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

const webSource = "https://git.invalid/team/web.git#main"

func (s *server) createAndUpdate(t *testing.T) {
	s.prints(t, "created web\n", "task", "create", "-n", "web", "-c", webSource, "-t", "web:{{.Run.ID}}", "--arg", "A=1", "--timeout", "600",
		"--schedule", "nightly:0 2 * * *", "--schedule", "0 3 * * *", "--branch", "main", "--pull-request-trigger-enabled", "true")
	made := s.stored(t, "web").Task
	if b := made.Step.Build; b == nil || b.Dockerfile != "Dockerfile" || b.Args["A"] != "1" || made.Timeout.String() != "10m" {
		t.Errorf("task = %+v", made)
	}
	tr := made.Triggers
	if len(tr.Source) != 1 || tr.Source[0].Name != "defaultSourceTriggerName" || len(tr.Source[0].Events) != 2 ||
		tr.BaseImage.Name != "defaultBaseimageTriggerName" || len(tr.Timers) != 2 || tr.Timers[1].Name != "t1" {
		t.Errorf("triggers = %+v", tr)
	}
	s.wants(t, 2, "there is a task", "task", "create", "web", "-c", "/dev/null", "--cmd", "alpine true")
	s.prints(t, "updated web\n", "task", "update", "web", "-f", "ci/task.yaml", "--set", "k=v", "--commit-trigger-enabled", "false", "--status", "Disabled")
	now := s.stored(t, "web").Task
	if now.Step.File == nil || now.Step.File.Path != "ci/task.yaml" || now.Set["k"] != "v" || now.Status != "Disabled" ||
		len(now.Triggers.Source[0].Events) != 1 || now.UID != made.UID || len(now.Triggers.Timers) != 2 {
		t.Errorf("updated task = %+v", now)
	}
	s.prints(t, "unchanged web\n", "task", "update", "web", "--status", "disabled")
	s.prints(t, "ci/task.yaml", "task", "list")
	s.prints(t, "web", "__complete", "task", "show", "w")
	s.wants(t, 2, "unknown flag --brunch\nTry: --branch", "task", "create", "x", "-c", webSource, "--brunch", "main")
	s.wants(t, 2, `status: "Off" is not known`, "task", "update", "web", "--status", "Off")
	s.wants(t, 2, "Try: kiln task create", "task", "creat")
	s.wants(t, 2, `no task "none"`, "task", "update", "none", "--cpu", "1")
	s.wants(t, 2, "write .git at its end", "task", "create", "x", "-c", "https://git.invalid/team/web", "--branch", "main")
	s.wants(t, 2, "secret on the command line", "task", "create", "x", "-c", webSource, "--git-access-token", "hunter2")
	if r := s.kiln("task", "create", "x", "-c", webSource, "-f", "a.yaml", "--set-secret", "token=hunter2"); r.code != 2 || strings.Contains(r.err, "hunter2") {
		t.Errorf("a value in place of a secret's name: %+v", r)
	}
}

// conflictingUpdates has somebody else change the task between the reading and the writing of an update.
func (s *server) conflictingUpdates(t *testing.T) {
	upstream, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(s.data, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(upstream)
	between := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			s.kiln("task", "update", "web", "--memory", "2Gi")
		}
		forward.ServeHTTP(w, r)
	}))
	defer between.Close()
	env := []string{"KILN_DATA=" + os.DevNull, "KILN_SERVER=" + between.URL, "KILN_TOKEN=" + strings.TrimSpace(string(token))}
	r := runKiln(t, env, "task", "update", "web", "--cpu", "3")
	if r.code != 2 || !strings.Contains(r.err, "was changed by somebody else") || !strings.Contains(r.err, "Try: ") {
		t.Errorf("an update in conflict: %+v", r)
	}
	if now := s.stored(t, "web").Task; now.CPU != 0 || now.Memory.String() != "2Gi" {
		t.Errorf("after a conflict cpu = %v, memory = %v", now.CPU, now.Memory)
	}
}

func (s *server) recreate(t *testing.T) {
	s.prints(t, "created tmp", "task", "create", "tmp", "-c", "/dev/null", "--cmd", "alpine echo hello")
	first := s.stored(t, "tmp")
	s.wants(t, 2, "Try: --yes", "task", "delete", "tmp")
	s.prints(t, "deleted tmp", "task", "delete", "tmp", "--yes")
	s.wants(t, 2, `no task "tmp"`, "task", "show", "tmp")
	s.must("task", "create", "tmp", "-c", "/dev/null", "--cmd", "alpine echo hello")
	if again := s.stored(t, "tmp"); again.Task.UID == first.Task.UID {
		t.Errorf("the task that was created again has the UID of the old one, %s", again.Task.UID)
	}
	s.must("task", "delete", "tmp", "--yes")
}

func (s *server) timersAndCredentials(t *testing.T) {
	s.prints(t, "updated web", "task", "timer", "add", "web", "--timer-name", "hourly", "--schedule", "0 * * * *", "--time-zone", "Europe/Berlin")
	s.wants(t, 2, "already", "task", "timer", "add", "web", "--timer-name", "hourly", "--schedule", "0 * * * *")
	s.wants(t, 2, "25 is not from 0 to 23", "task", "timer", "add", "web", "--timer-name", "x", "--schedule", "0 25 * * *")
	s.wants(t, 2, "--schedule is missing", "task", "timer", "add", "web", "--timer-name", "x")
	s.must("task", "timer", "update", "-n", "web", "--timer-name", "hourly", "--enabled", "false")
	s.prints(t, "hourly    Disabled   0 * * * *   Europe/Berlin   One", "task", "timer", "list", "web")
	s.must("task", "timer", "remove", "web", "--timer-name", "hourly")
	s.wants(t, 2, `no timer "hourly"`, "task", "timer", "remove", "web", "--timer-name", "hourly")

	s.must("task", "credential", "add", "web", "--login-server", "Docker.io", "-u", "bot", "--password-secret", "pw")
	s.wants(t, 2, "already", "task", "credential", "add", "web", "--login-server", "docker.io", "--token-secret", "t")
	s.wants(t, 2, "secret on the command line", "task", "credential", "add", "web", "--login-server", "quay.io", "-u", "bot", "-p", "hunter2")
	s.must("task", "credential", "update", "web", "--login-server", "docker.io", "--token-secret", "tok")
	s.prints(t, "docker.io             tok", "task", "credential", "list", "web")
	s.must("task", "credential", "remove", "web", "--login-server", "docker.io")
	s.wants(t, 2, "no credential", "task", "credential", "remove", "web", "--login-server", "docker.io")
}

func (s *server) applyFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	web := write("web.yaml", s.must("task", "show", "web", "-o", "yaml"))
	write("more.yml", "apiVersion: kiln/v1\nkind: Task\nname: one\nstep: {inline: {task: \"version: v1.1.0\\nsteps: [{cmd: alpine true}]\"}}\n"+
		"---\napiVersion: kiln/v1\nkind: Task\nname: two\ncontext: "+webSource+"\nstep: {build: {}}\n")
	write("README.md", "not a task")
	s.prints(t, "would be created: one", "apply", "-f", dir, "--dry-run")
	s.wants(t, 2, `no task "one"`, "task", "show", "one")
	s.prints(t, "unchanged web\n", "apply", "-f", dir)
	before := s.stored(t, "two").Revision
	if out := s.must("apply", "-f", dir); out != "unchanged one\nunchanged two\nunchanged web\n" || s.stored(t, "two").Revision != before {
		t.Errorf("applied again:\n%s", out)
	}
	write("web.yaml", strings.Replace(s.must("task", "show", "web", "-o", "yaml"), "status: Disabled", "status: Enabled", 1)+"cpu: 2\n")
	s.prints(t, "would be updated: web\n  ~ status: Disabled -> Enabled\n  + cpu: 2\n", "apply", "-f", web, "--dry-run")
	s.prints(t, "updated web\n", "apply", "-f", web)

	s.wants(t, 2, "Delete the tasks that no document describes: one, two?", "apply", "-f", web, "--prune")
	s.prints(t, "would be deleted: two", "apply", "-f", web, "--prune", "--dry-run")
	s.prints(t, `"action": "deleted"`, "apply", "-f", web, "--prune", "--yes", "-o", "json")
	s.wants(t, 2, `no task "two"`, "task", "show", "two")

	bad := write("bad.yaml", "apiVersion: kiln/v1\nkind: Task\nname: bad\nstatus: Off\ntriggers:\n  timer: []\n---\nkind: Task\napiVersion: kiln/v1\n"+
		"name: worse\nstep: {build: {}}\ntriggers: {timers: [{schedule: 0 25 * * *}]}\n")
	r := s.kiln("apply", "-f", dir)
	for _, want := range []string{bad + `:6:3: triggers: unknown property "timer" (did you mean "timers"?)`,
		bad + ":12:", "25 is not from 0 to 23", bad + ":8:1: context: is missing", "nothing was changed"} {
		if r.code != 2 || !strings.Contains(r.err, want) {
			t.Errorf("kiln apply: exit code %d, want %q in\n%s", r.code, want, r.err)
		}
	}
	write("bad.yaml", "apiVersion: kiln/v1\nkind: Task\nname: bad\nstep: {inline: {task: \"version: v1.1.0\\nsteps: [{cmd: alpine, when: [x]}]\"}}\n")
	s.wants(t, 2, `bad.yaml: task "bad": bad.yaml:2:`, "apply", "-f", bad)
	write("bad.yaml", "# empty\n")
	s.wants(t, 2, "no task", "apply", "-f", bad, "--prune", "--yes")
	s.wants(t, 2, "no such file", "apply", "-f", filepath.Join(dir, "none"))
	s.wants(t, 2, "-f FILE|DIR is missing", "apply")
}

// keepSecrets keeps secrets whose values are nowhere in clear.
func (s *server) keepSecrets(t *testing.T) {
	const value = "correct-horse-battery-staple"
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.wants(t, 0, "is stored", "secret", "set", "forge", "--from-file", file)
	if r := runKiln(t, []string{"KILN_DATA=" + s.data, "V=" + value}, "secret", "set", "other", "--from-env", "V"); r.code != 0 {
		t.Errorf("kiln secret set --from-env: %+v", r)
	}
	s.wants(t, 2, "shell's history", "secret", "set", "forge", "hunter2")
	s.wants(t, 2, "shell's history", "secret", "set", "forge=hunter2")
	s.wants(t, 2, "the value is empty", "secret", "set", "forge")
	s.wants(t, 2, "is not set", "secret", "set", "forge", "--from-env", "KILN_NO_SUCH_VARIABLE")
	s.prints(t, "forge", "secret", "list")
	s.must("task", "update", "web", "--context-secret", "forge")
	s.prints(t, "contextSecret: forge", "task", "show", "web", "-o", "yaml")
	for _, args := range [][]string{{"secret", "list", "-o", "json"}, {"task", "show", "web", "-o", "json"}} {
		if out := s.must(args...); strings.Contains(out, value) {
			t.Errorf("kiln %s shows the value", strings.Join(args, " "))
		}
	}
	s.wants(t, 0, "cannot be run now: web", "secret", "remove", "forge")
	s.wants(t, 2, `no secret "forge"`, "secret", "remove", "forge")
	s.holdsNot(t, value)
}

// keepAddresses has a target whose address is a password.
func (s *server) keepAddresses(t *testing.T) {
	const value = "T0K3N-in-the-path"
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte("http://127.0.0.1:9/services/"+value+"?key="+value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.wants(t, 2, "--url or --url-from-file", "notify", "add", "--events", "run.finished")
	s.prints(t, "target chat", "notify", "add", "--name", "chat", "--url-from-file", file, "--events", "run.finished")
	s.prints(t, "http://127.0.0.1:9\n", "notify", "list")
	if out := s.must("notify", "list", "-o", "json"); strings.Contains(out, value) {
		t.Errorf("kiln notify list shows the address:\n%s", out)
	}
	if r := s.kiln("notify", "test", "chat"); r.code == 0 || !strings.Contains(r.err, "127.0.0.1") || strings.Contains(r.err, value) {
		t.Errorf("kiln notify test: %+v, want a refusal that names the host alone", r)
	}
	s.prints(t, "GIVEN UP", "notify", "failed")
	s.prints(t, `"failed": []`, "notify", "failed", "-o", "json")
	s.prints(t, "", "notify", "retry", "--all")
	s.wants(t, 2, `no notification "n1" was given up`, "notify", "retry", "n1")
	s.wants(t, 2, "or all of them with --all", "notify", "retry")
	if strings.Contains(s.log.String(), value) {
		t.Error("the server's log holds the address")
	}
	s.holdsNot(t, value)
}

// holdsNot looks for a value in everything that the server has stored.
func (s *server) holdsNot(t *testing.T, value string) {
	t.Helper()
	err := filepath.WalkDir(s.data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // what comes and goes
		}
		if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(value)) {
			t.Errorf("%s holds the value in clear", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTaskIsRunFromTheCommandLine runs a task of the server, and looks at its runs.
func TestTaskIsRunFromTheCommandLine(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	dir := files(t, map[string]string{"Dockerfile": base})
	s.must("build", "-q", "-t", "box:1", dir)
	file := filepath.Join(dir, "task.yaml")
	text := "version: v1.1.0\nsteps:\n- id: say\n  cmd: $Registry/box:1 sh -c 'echo {{.Values.word}}; test {{.Values.word}} != bad && test {{default \"none\" .Values.extra}} != worse'\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.must("task", "create", "say", "-c", "/dev/null", "-f", file, "--set", "word=hello")
	if r := s.kiln("task", "run", "say"); r.code != 0 || !strings.Contains(r.err, "hello") {
		t.Fatalf("kiln task run: %+v", r)
	}
	if r := s.kiln("task", "run", "say", "--set", "word=bad"); r.code != 1 || !strings.Contains(r.err, "Failed") {
		t.Errorf("kiln task run of what fails: %+v", r)
	}
	s.prints(t, "say | bad", "task", "logs", "say")
	if r := s.kiln("task", "run", "say", "--set-secret", "extra=worse"); r.code != 1 || strings.Contains(r.err, "worse") {
		t.Errorf("kiln task run with a secret: %+v, want it to be used and not shown", r)
	}
	s.prints(t, "Failed", "task", "list-runs", "say", "--run-status", "failed", "--since", "1h", "--trigger", "manual")
	var list apiclient.Runs
	if err := json.Unmarshal([]byte(s.must("task", "list-runs", "say", "-o", "json")), &list); err != nil || len(list.Runs) != 3 {
		t.Fatalf("runs = %+v, %v, want 3", list, err)
	}
	s.prints(t, "Failed", "task", "show-run", "--run-id", list.Runs[0].ID)
	again := s.kiln("rerun", list.Runs[2].ID)
	if again.code != 0 {
		t.Errorf("kiln rerun: %+v", again)
	}
	s.wants(t, 2, "exclude each other", "rerun", "--pinned", "--fresh", list.Runs[2].ID)
	fresh := strings.TrimSpace(s.must("task", "rerun", "--fresh", "--no-wait", list.Runs[2].ID))
	if r := s.show(fresh); r.Task != "say" || r.Cause.Kind != run.CauseRerun || r.Cause.RerunOf != list.Runs[2].ID {
		t.Errorf("run that was asked anew = %+v", r)
	}
	sleeps := strings.TrimSpace(s.must("task", "run", "say", "--no-wait", "--set", "word=x; sleep 600"))
	s.must("task", "cancel-run", "--run-id", sleeps)
	waitFor(t, "the canceled run has ended", func() bool { return s.show(sleeps).State == run.Canceled })
	s.wants(t, 2, "has ended already: Canceled", "task", "cancel-run", sleeps)
	s.must("task", "update", "say", "--status", "Disabled")
	s.wants(t, 2, "disabled", "task", "run", "say")
	s.prints(t, "", "task", "run", "say", "--force", "-q")
	s.must("task", "delete", "say", "--yes")
	s.prints(t, list.Runs[0].ID, "task", "list-runs", "say")
	s.wants(t, 2, `no task "say"`, "task", "run", "say")
	s.wants(t, 2, "has been deleted", "rerun", list.Runs[2].ID)
}
