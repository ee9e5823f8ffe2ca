package task_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/run"
	"kiln/internal/task"
)

const commit = "0123456789abcdef0123456789abcdef01234567"

const full = `# A task with everything.
apiVersion: kiln/v1
kind: Task
name: web
status: enabled
context: https://git.example/team/web.git#main:app
contextSecret: git-token
step:
  build:
    images: ["web:{{.Run.ID}}", web:latest]
    args: {GO: "1.26", DEBUG: true}
    secretArgs: {TOKEN: npm}
    target: prod
timeout: 1800
cpu: 1.5
memory: 2048Mi
pool: big
credentials:
  - server: https://Registry.example/
    username: bob
    passwordSecret: registry
  - server: ghcr.io
    tokenSecret: gh
triggers:
  source:
    - name: commits
      events: [commit, tag]
      branches: [main, "release/*"]
      tags: ["v*"]
      paths: ["src/", "!**/*.md"]
      forks: never
      quiet: 10s
  baseImage: {type: all, quiet: 0s}
  timers:
    - schedule: "0  2 * * mon-fri"
      timeZone: Europe/Berlin
    - name: t1
      schedule: "*/5 * * * *"
      status: Disabled
      catchUp: none
---
---
apiVersion: kiln/v1
kind: Task
name: nightly
step:
  inline:
    task: |
      version: v1.1.0
      steps:
        - cmd: bash -c 'echo {{.Values.who}}'
set: {who: world, empty: }
setSecret: {key: deploy}
`

func decode(t *testing.T, text string) []*task.Task {
	t.Helper()
	tasks, err := task.Decode("tasks.yaml", []byte(text))
	if err != nil {
		t.Fatalf("Decode:\n%v", err)
	}
	return tasks
}

func TestDecodeReadsEverything(t *testing.T) {
	t.Parallel()
	tasks := decode(t, full)
	quiet := task.Duration(0)
	want := &task.Task{
		Name: "web", Status: task.Enabled, Context: "https://git.example/team/web.git#main:app", ContextSecret: "git-token",
		Step: task.Step{Build: &task.Build{Dockerfile: "Dockerfile", Images: []string{"web:{{.Run.ID}}", "web:latest"},
			Args: map[string]string{"GO": "1.26", "DEBUG": "true"}, SecretArgs: map[string]string{"TOKEN": "npm"}, Target: "prod"}},
		Platform: "linux/amd64", Timeout: task.Duration(30 * time.Minute), CPU: 1.5, Memory: 2 << 30, Pool: "big",
		Credentials: []task.Credential{{Server: "ghcr.io", TokenSecret: "gh"},
			{Server: "registry.example", Username: "bob", PasswordSecret: "registry"}},
		Triggers: task.Triggers{
			Source: []task.SourceTrigger{{Name: "commits", Status: task.Enabled, Events: []task.SourceEvent{task.Push, task.Tag},
				Branches: task.Globs{"main", "release/*"}, Tags: task.Globs{"v*"}, Paths: task.Globs{"src/", "!**/*.md"},
				SkipCI: task.SkipHonor, Forks: task.ForksNever, Commits: task.CommitsHead, Quiet: task.Duration(10 * time.Second)}},
			BaseImage: task.BaseImageTrigger{Name: "defaultBaseimageTriggerName", Status: task.Enabled, Type: task.All, Quiet: &quiet},
			Timers: []task.Timer{
				{Name: "t2", Schedule: "0 2 * * mon-fri", TimeZone: "Europe/Berlin", Status: task.Enabled, CatchUp: task.CatchUpOne},
				{Name: "t1", Schedule: "*/5 * * * *", TimeZone: "UTC", Status: task.Disabled, CatchUp: task.CatchUpNone},
			},
		},
	}
	if diff := cmp.Diff(want, tasks[0]); diff != "" {
		t.Errorf("first task (-want +got):\n%s", diff)
	}
	second := tasks[1]
	if second.Set["who"] != "world" || second.Set["empty"] != "" || second.Timeout != task.DefaultTimeout ||
		*second.Triggers.BaseImage.Quiet != task.DefaultBaseQuiet || second.Triggers.BaseImage.Type != task.Runtime {
		t.Errorf("second task: %+v", second)
	}
}

func TestFilesAndJSONComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	tasks := decode(t, full)
	text, err := task.Encode(tasks...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tasks, decode(t, string(text))); diff != "" {
		t.Errorf("after a round trip (-want +got):\n%s\n%s", diff, text)
	}
	again, err := task.Encode(decode(t, string(text))...)
	if err != nil || string(again) != string(text) {
		t.Errorf("encoded again: %v\n%s\nwant\n%s", err, again, text)
	}
	for _, want := range tasks {
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got task.Task
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if diff := cmp.Diff(want, &got); diff != "" || got.Hash() != want.Hash() {
			t.Errorf("JSON (-want +got):\n%s", diff)
		}
		if got.Normalize(); !cmp.Equal(want, &got) {
			t.Errorf("normalized twice: %s", cmp.Diff(want, &got))
		}
	}
	var d task.Duration
	if err := json.Unmarshal([]byte("90"), &d); err != nil || d.String() != "1m30s" {
		t.Errorf("a number of seconds in JSON = %v, %v", d, err)
	}
}

func TestAnyTextComesBackAsItWas(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	pieces := []string{" ", "  ", "\t", "\n", "\n\n", "\r", "#", ": ", "- ", "'", "\"", "\\", "{", "}", "[", "]", "&a", "*a", "!", "|", ">", "%", "@", "`",
		"\u0085", "\u2028", "\ufeff", "\u00a0", "0", "1e3", "true", "null", "~", "---", "...", "<<", "=", "é", "日", "\U0001F600", "\x01", "\x7f", "x"}
	text := func() string {
		var b strings.Builder
		for range r.IntN(7) {
			b.WriteString(pieces[r.IntN(len(pieces))])
		}
		return b.String()
	}
	for range 500 {
		want := &task.Task{Name: "x", Step: task.Step{Inline: &task.Inline{Task: "v" + text(), Values: text()}}, Set: map[string]string{"a": text(), "b": text()}}
		want.Normalize()
		if want.Validate() != nil {
			t.Fatal(want.Validate())
		}
		file, err := task.Encode(want)
		if err != nil {
			t.Fatalf("Encode(%+v): %v", want, err)
		}
		got, err := task.Decode("f", file)
		if err != nil || !cmp.Equal(want, got[0]) {
			t.Fatalf("%v\n%s\n%s", err, file, cmp.Diff([]*task.Task{want}, got))
		}
	}
}

func TestMistakesHavePlaces(t *testing.T) {
	t.Parallel()
	const head = "apiVersion: kiln/v1\nkind: Task\nname: web\n"
	const ok = "step: {inline: {task: x}}\n"
	for _, c := range []struct{ text, want string }{
		{"kind: Task\nname: x\n" + ok, "f.yaml:1:1: apiVersion: is missing; write apiVersion: kiln/v1"},
		{"apiVersion: v1\nkind: Task\nname: x\n" + ok, `f.yaml:1:13: apiVersion: "v1" is not known; write kiln/v1`},
		{"apiVersion: kiln/v1\nkind: Job\nname: x\n" + ok, `f.yaml:2:7: kind: "Job" is not known; write kind: Task`},
		{head + "stpe: {}\n", `f.yaml:4:1: unknown property "stpe" (did you mean "step"?)`},
		{head + ok + "triggers:\n  timer:\n  - {}\n", `f.yaml:6:3: triggers: unknown property "timer" (did you mean "timers"?)`},
		{head + ok + "uid: x\n", `f.yaml:5:1: unknown property "uid"`},
		{head + ok + "name: y\n", "f.yaml:5:1: name: is written twice"},
		{head + ok + "timeout: soon\n", `f.yaml:5:10: timeout: "soon" is no duration; write 90s, 10m or 1h30m`},
		{head + ok + "timeout: 9h\n", "f.yaml:5:10: timeout: 9h is not from 1s to 8h"},
		{head + ok + "memory: lots\n", `f.yaml:5:9: memory: "lots" is no amount of memory; write 512Mi or 4Gi`},
		{head + ok + "cpu: -1\n", "f.yaml:5:6: cpu: -1 is not from 0 to 1024"},
		{head + ok + "cpu: .nan\n", `f.yaml:5:6: cpu: ".nan" where a number`},
		{head + "step: {build: {noPush: yes, images: a}}\n", `f.yaml:4:24: step.build.noPush: "yes" where true or false is needed`},
		{head + "step: {build: {images: a}}\n", `f.yaml:4:24: step.build.images: "a" where a list is needed; write [a]`},
		{head + "step: {build: {}}\n", "f.yaml:1:1: context: is missing: the step reads a file of it"},
		{head + "step: {}\n", "f.yaml:4:7: step: has 0 of build, file and inline; write exactly one"},
		{head + ok + "context: ../dir\n", `f.yaml:5:10: context: "../dir" is no git repository`},
		{head + ok + "context: https://u:p@git.example/x.git\n", "f.yaml:5:10: context: the URL holds a credential; store it with"},
		{head + ok + "context: https://github.com/o/r\ntriggers:\n  source:\n  - {}\n",
			"f.yaml:8:3: triggers.source: needs a git repository as context; https://github.com/o/r is read as the URL of a tarball: if it is a repository, write .git at its end"},
		{head + ok + "triggers:\n  timers:\n  - schedule: 0 2 * *\n", "f.yaml:7:15: triggers.timers[0].schedule: column 8: 4 fields where five are needed"},
		{head + ok + "triggers:\n  timers:\n  - {schedule: 0 2 * * *, timeZone: Berlin}\n", `f.yaml:7:37: triggers.timers[0].timeZone: "Berlin" is no time zone known here`},
		{head + ok + "triggers:\n  timers: [{name: a, schedule: 0 2 * * *}, {name: a, schedule: 0 3 * * *}]\n", `f.yaml:6:51: triggers.timers[1].name: "a" is the name of another one`},
		{head + ok + "credentials:\n- {server: z.example, username: u, passwordSecret: p}\n- {server: a b, tokenSecret: t}\n", `f.yaml:7:12: credentials[0].server: "a b" is no login server`},
		{head + ok + "credentials:\n- {server: z.example, username: u}\n", "f.yaml:6:3: credentials[0]: needs username"},
		{head + ok + "set: {<<: {a: b}}\n", "f.yaml:5:7: set: merges with << are not supported"},
		{head + ok + "---\n" + head + ok, `f.yaml:6:1: name: "web" is already the name of the task in line 1`},
		{"apiVersion: kiln/v1\nkind: Task\nname: a b\n" + ok, `f.yaml:3:7: name: "a b" is not 1 to 50 letters`},
		{head + "step: [\n", "f.yaml:"},
		{"- 1\n", "f.yaml:1:1: a list where a map of properties is needed"},
	} {
		_, err := task.Decode("f.yaml", []byte(c.text))
		var errs task.Errors
		if !errors.As(err, &errs) || !strings.Contains("\n"+err.Error(), "\n"+c.want) {
			t.Errorf("Decode(%q) =\n%v\nwant\n%s", c.text, err, c.want)
		}
	}
}

func TestAllMistakesAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := task.Decode("f.yaml", []byte("apiVersion: kiln/v1\nkind: Task\nname: -x\nplatform: windows\ntimeout: 9h\nstep: {inline: {task: ''}}\npool: a b\n"))
	var errs task.Errors
	if !errors.As(err, &errs) || len(errs) != 5 {
		t.Errorf("%d mistakes, want 5:\n%v", len(errs), err)
	}
}

func TestHostileFilesAreBounded(t *testing.T) {
	t.Parallel()
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'i'; c++ {
		prev := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+prev+",", 9) + "*" + prev + "]\n"
	}
	for name, text := range map[string]string{
		"aliases":   bomb,
		"a bomb":    "step: {build: {images: &a [x]}}\ntriggers: {source: [" + strings.Repeat("{branches: [x]},", 5_000) + "{}]}",
		"depth":     strings.Repeat("{a: ", 5000) + strings.Repeat("}", 5000),
		"size":      strings.Repeat("#", 2<<20),
		"documents": strings.Repeat("--- {}\n", 3000),
	} {
		if _, err := task.Decode("f.yaml", []byte(text)); err == nil || len(err.Error()) > 64<<10 {
			t.Errorf("%s: accepted, or refused at great length", name)
		}
	}
}

func TestContexts(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]task.Context{
		"":                                      {},
		"/dev/null":                             {},
		"https://git.example/o/r.git":           {Kind: task.Git, URL: "https://git.example/o/r.git"},
		"https://git.example/o/r.git#main":      {Kind: task.Git, URL: "https://git.example/o/r.git", Ref: "main"},
		"https://git.example/o/r.git#:dir/":     {Kind: task.Git, URL: "https://git.example/o/r.git", Subdir: "dir"},
		"https://git.example/o/r.git#v1:a/b":    {Kind: task.Git, URL: "https://git.example/o/r.git", Ref: "v1", Subdir: "a/b"},
		"git@git.example:o/r.git#pull/12/head":  {Kind: task.Git, URL: "git@git.example:o/r.git", Ref: "pull/12/head"},
		"ssh://git@git.example/o/r.git":         {Kind: task.Git, URL: "ssh://git@git.example/o/r.git"},
		"https://dev.azure.com/o/p/_git/r#main": {Kind: task.Git, URL: "https://dev.azure.com/o/p/_git/r", Ref: "main"},
		"https://files.example/x.tar.gz":        {Kind: task.Tarball, URL: "https://files.example/x.tar.gz"},
		"OCI://registry.example/ctx:1":          {Kind: task.OCI, URL: "registry.example/ctx:1"},
	} {
		got, err := task.ParseContext(s)
		if err != nil || got != want {
			t.Errorf("ParseContext(%q) = %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := task.ParseContext(got.String()); err != nil || again != got {
			t.Errorf("ParseContext(%q) = %+v, %v, want %+v again", got, again, err, got)
		}
	}
	for _, bad := range []string{"dir", "file:///etc", "https://x.example/r.git#../x", "https://x.example/r.git#main:../..", "https://t@x.example/r.git", "oci://", "https:///r.git", "https://x/r.git#a b"} {
		if c, err := task.ParseContext(bad); err == nil {
			t.Errorf("ParseContext(%q) = %+v, want an error", bad, c)
		}
	}
}

func TestGlobs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		globs task.Globs
		yes   []string
		no    []string
	}{
		{task.Globs{"main"}, []string{"main"}, []string{"main2", "x/main", ""}},
		{task.Globs{"release/*"}, []string{"release/1", "release/"}, []string{"release/1/2", "release"}},
		{task.Globs{"release/**"}, []string{"release/1", "release/1/2", "release"}, []string{"releases/1"}},
		{task.Globs{"src/"}, []string{"src/a", "src/a/b"}, []string{"a/src/b"}},
		{task.Globs{"**/*.go"}, []string{"a.go", "a/b/c.go"}, []string{"a.gox", "a.go/b"}},
		{task.Globs{"a/**/b/**/c"}, []string{"a/b/c", "a/x/b/y/z/c"}, []string{"a/c", "a/b/x"}},
		{task.Globs{"v?.*"}, []string{"v1.2", "vä."}, []string{"v12.3", "v1"}},
		{task.Globs{"**", "!docs/", "!*.md"}, []string{"a", "x/README.md"}, []string{"docs/a", "README.md"}},
		{task.Globs{"!docs/"}, []string{"a"}, []string{"docs/a"}},
		{nil, nil, []string{"a", ""}},
	} {
		for _, s := range c.yes {
			if !c.globs.Match(s) {
				t.Errorf("%q does not match %q", c.globs, s)
			}
		}
		for _, s := range c.no {
			if c.globs.Match(s) {
				t.Errorf("%q matches %q", c.globs, s)
			}
		}
	}
	slow := task.Globs{strings.Repeat("*a", 100), strings.Repeat("**/", 80) + "x"}
	if slow.Match(strings.Repeat("a", 4000)+"b") || slow.Match(strings.Repeat("y/", 2000)) {
		t.Error("a hostile pattern matches")
	}
}

func TestDiffNamesWhatChanged(t *testing.T) {
	t.Parallel()
	before, after := decode(t, full)[0], decode(t, full)[0]
	if d := task.Diff(before, after); d != nil {
		t.Errorf("of equal tasks: %v", d)
	}
	after.Timeout, after.Pool = task.Duration(time.Hour), ""
	after.Triggers.Timers[0].Schedule = "0 3 * * *"
	after.Triggers.Timers = append(after.Triggers.Timers[:1], task.Timer{Name: "new", Schedule: "1 1 1 1 *"})
	after.Step.Build.Args["GO"] = "1.27"
	after.Step.Build.Images = append(after.Step.Build.Images, "web:{{.Run.Branch}}")
	var got []string
	for _, c := range task.Diff(before, after) {
		got = append(got, c.String())
	}
	want := []string{
		"~ step.build.images: [web:{{.Run.ID}}, web:latest] -> [web:{{.Run.ID}}, web:latest, web:{{.Run.Branch}}]",
		"~ step.build.args.GO: 1.26 -> 1.27",
		"~ timeout: 30m -> 1h",
		"~ triggers.timers[t2].schedule: 0 2 * * mon-fri -> 0 3 * * *",
		"+ triggers.timers[new].name: new",
		"+ triggers.timers[new].schedule: 1 1 1 1 *",
		"- pool: big",
		"- triggers.timers[t1].name: t1",
		"- triggers.timers[t1].schedule: */5 * * * *",
		"- triggers.timers[t1].timeZone: UTC",
		"- triggers.timers[t1].status: Disabled",
		"- triggers.timers[t1].catchUp: None",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Diff (-want +got):\n%s", diff)
	}
	if before.Hash() == after.Hash() {
		t.Error("different definitions have one hash")
	}
	after = decode(t, full)[0]
	after.UID, after.Created = "u", time.Now()
	if before.Hash() != after.Hash() || task.Diff(before, after) != nil {
		t.Error("what the server sets is part of the definition")
	}
	if d := task.Diff(nil, before); len(d) < 10 || d[0].String() != "+ name: web" {
		t.Errorf("of a new task: %v", d)
	}
}

func TestSpecIsPinned(t *testing.T) {
	t.Parallel()
	tasks := decode(t, full)
	got, err := tasks[0].Spec(task.Inputs{Commit: commit, Args: map[string]string{"GO": "1.27"}, NoPush: true})
	want := run.Spec{Context: "https://git.example/team/web.git#" + commit + ":app", Platform: "linux/amd64", Timeout: 30 * time.Minute,
		Build: &run.BuildSpec{Dockerfile: "Dockerfile", Images: []string{"web:{{.Run.ID}}", "web:latest"},
			BuildArgs: []string{"DEBUG=true", "GO=1.27"}, Target: "prod", NoPush: true},
		Refs: &run.SecretRefs{Context: "git-token", Args: map[string]string{"TOKEN": "npm"}, Logins: []run.Login{
			{Server: "ghcr.io", TokenSecret: "gh"}, {Server: "registry.example", Username: "bob", PasswordSecret: "registry"}}},
		Pool: "big", CPU: 1.5, Memory: 2 << 30}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Spec: %v (-want +got):\n%s", err, diff)
	}
	if _, err := tasks[0].Spec(task.Inputs{Commit: "main"}); err == nil {
		t.Error("a branch is taken for a commit")
	}
	got, err = tasks[1].Spec(task.Inputs{Set: map[string]string{"who": "you"}})
	if err != nil || got.Context != "" || got.TaskFile.Name != "nightly.yaml" || cmp.Diff(got.TaskFile.Set, []string{"empty=", "who=you"}) != "" {
		t.Errorf("Spec of an inline task = %+v, %v", got, err)
	}
	if got := tasks[0].Secrets(); cmp.Diff(got, []string{"gh", "git-token", "npm", "registry"}) != "" {
		t.Errorf("Secrets = %v", got)
	}
	file := decode(t, "apiVersion: kiln/v1\nkind: Task\nname: f\ncontext: https://x.example/r.git#:ci\nstep: {file: {path: kiln.yaml}}\n")[0]
	got, err = file.Spec(task.Inputs{Commit: commit, Ref: "refs/heads/main"})
	if err != nil || got.Ref != "refs/heads/main" || got.TaskFile.Name != "kiln.yaml" || !got.TaskFile.FromContext {
		t.Errorf("Spec of a file of the context = %+v, %v", got, err)
	}
	if p, err := file.FilePath("kiln.yaml"); err != nil || p != "ci/kiln.yaml" {
		t.Errorf("FilePath = %q, %v", p, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("apiVersion: kiln/v1\nkind: Task\nname: a\nstep: {inline: {task: \"\\n x \\t\\n\\n \"}}\nset: {a: ' 1', b: null, c: \"\\u0007\"}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tasks, err := task.Decode("f", data)
		if err != nil {
			return
		}
		text, err := task.Encode(tasks...)
		if err != nil {
			t.Fatalf("Encode: %v", err)
		}
		again, err := task.Decode("f", text)
		if err != nil || !cmp.Equal(tasks, again) {
			t.Fatalf("%v\n%s\n%s", err, text, cmp.Diff(tasks, again))
		}
	})
}

func FuzzGlobs(f *testing.F) {
	f.Add("a/**/b*", "a/x/bc")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) < 300 && len(name) < 5000 {
			task.Globs{pattern}.Match(name)
		}
		if !strings.ContainsAny(name, "*?!") && name != "" && !strings.HasSuffix(name, "/") && !(task.Globs{name}).Match(name) {
			t.Fatalf("%q does not match itself", name)
		}
	})
}
