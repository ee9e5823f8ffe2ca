package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

var published = run.Image{Registry: "localhost:7070", Repository: "app", Tag: "1", Digest: "sha256:" + strings.Repeat("a", 64)}

func TestBuildUploadsFollowsAndPrintsImages(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	s.missing = true
	s.end = func(r *run.Run) { r.State, r.Images = run.Succeeded, []run.Image{published} }
	dir := directory(t, "Dockerfile", "FROM scratch\n", "a.txt", "a")
	env := map[string]string{envServer: s.URL, envToken: testToken, envData: os.DevNull, "V": "from env"}
	got := kiln(t.Context(), env, "build", "-t", "app:1", "-t", "team/app:{{.Run.ID}}", "--build-arg", "V", "--build-arg=W=", "--target", "x",
		"--platform", "linux/arm64/v8", "--no-cache", "--timeout", "90s", dir)
	if got.code != 0 || got.out != published.String()+"\n" {
		t.Fatalf("kiln build = %+v", got)
	}
	if !strings.Contains(got.err, "build | hello\n") || !strings.Contains(got.err, "Succeeded") {
		t.Errorf("progress:\n%s", got.err)
	}
	if len(s.submits) != 2 || s.submits[0].Key != s.submits[1].Key || len(s.contexts) != 1 {
		t.Errorf("%d requests, %d contexts; want 2 with one key, 1", len(s.submits), len(s.contexts))
	}
	want := run.Spec{
		Context: s.submits[0].Spec.Context,
		Build: &run.BuildSpec{
			Images: []string{"app:1", "team/app:{{.Run.ID}}"}, BuildArgs: []string{"V=from env", "W="}, Target: "x", NoCache: true,
		},
		Platform: "linux/arm64/v8", Timeout: 90 * time.Second,
	}
	if diff := cmp.Diff(want, s.submits[1].Spec); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
}

func TestBuildWithoutATagPrintsTheDigest(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	s.end = func(r *run.Run) {
		r.State = run.Succeeded
		r.Steps = []run.Step{{ID: "build", Kind: "build", Output: &run.Output{Digest: published.Digest}}}
	}
	got := s.kiln(t.Context(), "build", "-q", directory(t, "Dockerfile", "FROM scratch"))
	if want := (result{0, published.Digest + "\n", ""}); got != want {
		t.Errorf("kiln build = %+v, want %+v", got, want)
	}
	if !s.submits[0].Spec.Build.NoPush {
		t.Error("the request wants to push")
	}
}

func TestBuildFindsTheDockerfile(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	dir := directory(t, "Dockerfile", "FROM a", "sub/Other.Dockerfile", "FROM b")
	outside := filepath.Join(directory(t, "D", "FROM c"), "D")
	for _, tt := range []struct{ flag, path, inline string }{
		{"", "", ""},
		{"sub/Other.Dockerfile", "sub/Other.Dockerfile", ""},
		{filepath.Join(dir, "sub", "Other.Dockerfile"), "sub/Other.Dockerfile", ""},
		{outside, "", "FROM c"},
	} {
		s.submits = nil
		args := []string{"build", "--no-wait", dir}
		if tt.flag != "" {
			args = append(args, "-f", tt.flag)
		}
		if got := s.kiln(t.Context(), args...); got.code != 0 {
			t.Fatalf("kiln build -f %q = %+v", tt.flag, got)
		}
		b := s.submits[0].Spec.Build
		if b.Dockerfile != tt.path || string(b.DockerfileInline) != tt.inline {
			t.Errorf("-f %q: Dockerfile %q, inline %q; want %q, %q", tt.flag, b.Dockerfile, b.DockerfileInline, tt.path, tt.inline)
		}
	}
}

func TestRunSendsTheTask(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	dir := directory(t, "acb.yaml", "steps: []", "values.yaml", "a: b")
	env := map[string]string{envServer: s.URL, envToken: testToken, envData: os.DevNull, "PASSWORD": "hunter2"}
	got := kiln(t.Context(), env, "run", "--set", "x=1", "--set", "empty", "--set-secret", "PASSWORD", "--set-secret", "K=v=w",
		"--values", "values.yaml", "--no-wait", dir)
	if got.code != 0 || got.out != "r000000abcde\n" {
		t.Fatalf("kiln run = %+v", got)
	}
	want := &run.TaskFileSpec{
		Name: "acb.yaml", Content: []byte("steps: []"), ValuesName: "values.yaml", Values: []byte("a: b"), Set: []string{"x=1", "empty="},
	}
	if diff := cmp.Diff(want, s.submits[0].Spec.TaskFile); diff != "" {
		t.Errorf("task (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"PASSWORD": "hunter2", "K": "v=w"}, s.submits[0].Secrets); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
}

func TestRunPrefersTheContextsTaskFile(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	dir := directory(t, "acr-task.yaml", "# first", "acb.yaml", "# second")
	if got := s.kiln(t.Context(), "run", "--no-wait", dir); got.code != 0 {
		t.Fatalf("kiln run = %+v", got)
	}
	if got := string(s.submits[0].Spec.TaskFile.Content); got != "# first" {
		t.Errorf("task = %q", got)
	}
}

func TestRunOfOneCommandNeedsNoContext(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	if got := s.kiln(t.Context(), "run", "--no-wait", "--timeout", "1500ms", "--cmd", `bash -c 'echo "a: b" # {{.Run.ID}}'`, "/dev/null"); got.code != 0 {
		t.Fatalf("kiln run = %+v", got)
	}
	spec := s.submits[0].Spec
	want := "version: v1.1.0\nsteps:\n  - disableWorkingDirectoryOverride: true\n    timeout: 2\n" +
		"    cmd: |-\n      bash -c 'echo \"a: b\" # {{.Run.ID}}'\n"
	if got := string(spec.TaskFile.Content); got != want || spec.Context != "" {
		t.Errorf("task = %q with context %q, want %q", got, spec.Context, want)
	}
}

func TestJSONIsOneDocument(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	s.end = func(r *run.Run) { r.State, r.Reason = run.Failed, "step build: exit code 2" }
	got := s.kiln(t.Context(), "build", "-o", "json", directory(t, "Dockerfile", "FROM scratch"))
	var r run.Run
	if err := json.Unmarshal([]byte(got.out), &r); err != nil || r.State != run.Failed || got.code != 1 {
		t.Errorf("kiln build -o json = %+v: %v", got, err)
	}
	if want := "kiln: run r000000abcde: Failed: step build: exit code 2\nTry: kiln show r000000abcde\n"; !strings.HasSuffix(got.err, want) {
		t.Errorf("stderr = %q, want ... %q", got.err, want)
	}
}

func TestInterruptCancelsTheRun(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	s.hang = true
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	go func() {
		<-s.started
		interrupt()
	}()
	got := s.kiln(ctx, "build", directory(t, "Dockerfile", "FROM scratch"))
	if got.code != 1 || !strings.Contains(got.err, "kiln: run r000000abcde: Canceled: canceled by admin") {
		t.Errorf("kiln build = %+v", got)
	}
	if !strings.Contains(got.err, "kiln | => canceling the run") {
		t.Errorf("not announced:\n%s", got.err)
	}
}

func TestInterruptOfLogsLeavesTheRunAlone(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	s.hang = true
	s.add(run.Spec{}, run.Cause{Kind: "manual"})
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	go func() {
		<-s.started
		interrupt()
	}()
	if got := s.kiln(ctx, "logs", "-f", "latest"); got.code != 0 {
		t.Errorf("kiln logs -f = %+v", got)
	}
	if r := s.runs[0]; r.State != run.Queued {
		t.Errorf("the run is %s", r.State)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	gone := newContract(t)
	gone.Close()
	for _, tt := range []struct {
		name   string
		env    map[string]string
		refuse *apiclient.Error
		code   int
		err    string
	}{
		{"wrong token", map[string]string{envToken: "wrong"}, nil, 2,
			"kiln: the token is not known here\nTry: set KILN_TOKEN to a token of this server, or name its data directory with --data\n"},
		{"no server", map[string]string{envServer: gone.URL}, nil, 3, "connection refused\nTry: kiln serve"},
		{"bad address", map[string]string{envServer: "localhost"}, nil, 2, `kiln: server address "localhost": want http://HOST:PORT`},
		{"busy", nil, &apiclient.Error{Status: 503, Code: apiclient.CodeUnavailable, Message: "starting"}, 3, "kiln: starting\nTry: again in a moment\n"},
		{"disk full", nil, &apiclient.Error{Status: 507, Code: apiclient.CodeDiskFull, Message: "no space left", Remedy: "free some"}, 1,
			"kiln: no space left\nTry: free some\n"},
		{"invalid", nil, &apiclient.Error{Status: 422, Code: apiclient.CodeInvalid, Message: "the task is invalid", Problems: []apiclient.Problem{
			{File: "acr-task.yaml", Line: 3, Column: 5, Step: "b", Property: "when", Message: "no step \"x\""},
			{File: "acr-task.yaml", Line: 9, Message: "unknown\x1b[2J key", Warning: true},
		}}, 2, "kiln: the task is invalid\nacr-task.yaml:3:5: step \"b\": when: no step \"x\"\nwarning: acr-task.yaml:9:1: unknown key\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newContract(t)
			s.refuse = tt.refuse
			env := map[string]string{envServer: s.URL, envToken: testToken, envData: os.DevNull}
			for k, v := range tt.env {
				env[k] = v
			}
			if got := kiln(t.Context(), env, "runs"); got.code != tt.code || !strings.Contains(got.err, tt.err) {
				t.Errorf("kiln runs = %+v, want %d, %q", got, tt.code, tt.err)
			}
		})
	}
}

func TestAServerOnThisHostIsFound(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	at, _ := json.Marshal(apiclient.Location{URL: s.URL, PID: 1})
	data := directory(t, apiclient.ServerFile, string(at), apiclient.TokenFile, testToken+"\n")
	for name, args := range map[string][]string{
		"flag":        {"--data", data, "runs"},
		"same server": {"--data", data, "--server", s.URL, "runs"},
	} {
		if got := kiln(t.Context(), nil, args...); got.code != 0 {
			t.Errorf("%s: kiln runs = %+v", name, got)
		}
	}
	if got := kiln(t.Context(), map[string]string{envData: data}, "runs"); got.code != 0 {
		t.Errorf("environment: kiln runs = %+v", got)
	}
	other := newContract(t)
	got := kiln(t.Context(), map[string]string{envData: data, envServer: other.URL}, "runs")
	if got.code != 2 || !strings.Contains(got.err, "token") {
		t.Errorf("the token of one server was given to another: %+v", got)
	}
}

func TestRunsAreNamedByPrefix(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	for range 12 {
		s.add(run.Spec{Build: &run.BuildSpec{Images: []string{"app"}}}, run.Cause{Kind: "manual", By: "admin"})
	}
	if got := s.kiln(t.Context(), "show", "r000003"); got.code != 0 || !strings.Contains(got.out, "r000003abcde") {
		t.Errorf("kiln show = %+v", got)
	}
	if got := s.kiln(t.Context(), "show", "latest"); !strings.Contains(got.out, "r000011abcde") {
		t.Errorf("kiln show latest = %+v", got)
	}
	if got := s.kiln(t.Context(), "show", "r00001"); got.code != 2 || !strings.Contains(got.err, "ambiguous: r000011abcde, r000010abcde") {
		t.Errorf("kiln show of two = %+v", got)
	}
	if got := s.kiln(t.Context(), "show", "r1"); got.code != 2 || !strings.Contains(got.err, `no run begins with "r1"`) {
		t.Errorf("kiln show of none = %+v", got)
	}
	if got := s.kiln(t.Context(), "cancel", "../x"); got.code != 2 || !strings.Contains(got.err, "not a run ID") {
		t.Errorf("kiln cancel of a path = %+v", got)
	}
	if got := s.kiln(t.Context(), "runs", "-n", "5"); strings.Count(got.out, "\n") != 6 || !strings.Contains(got.out, "build app") {
		t.Errorf("kiln runs = %+v", got)
	}
	if got := s.kiln(t.Context(), "rerun", "--no-wait", "r000003"); got.code != 0 || got.out != "r000012abcde\n" {
		t.Errorf("kiln rerun = %+v", got)
	}
}

func TestShow(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	two := 2
	bases := []run.Base{{Ref: "docker.io/library/alpine:3", Digest: "sha256:b"}, {Ref: "docker.io/library/golang:1.26", Digest: "sha256:c"}}
	withProvenance := published
	withProvenance.Provenance = "sha256:d"
	s.runs = []run.Run{{
		ID: "r0abcde12345", State: run.Failed, Reason: "step test: exit code 2", Cause: run.Cause{Kind: "rerun", By: "admin", RerunOf: "r0abcde00000", Commit: "c0ffee"},
		Attempt: 1, Attempts: []run.Attempt{{N: 1, Worker: "w1", Assigned: at, Ended: at.Add(3 * time.Second), Outcome: "Failed"}},
		Created: at, Started: at, Finished: at.Add(3 * time.Second),
		Spec: run.Spec{TaskFile: &run.TaskFileSpec{Name: "acr-task.yaml"}},
		Steps: []run.Step{
			{ID: "build", Kind: "build", State: run.StepSucceeded, Started: at, Finished: at.Add(time.Second), Tries: 1,
				Output: &run.Output{Digest: "sha256:a", Ref: "localhost:7070/kiln/staging/app@sha256:a", Tags: []string{"app"},
					Bases: bases, Runtime: "docker.io/library/alpine:3@sha256:b"}},
			{ID: "test", Kind: "cmd", State: run.StepFailed, ExitCode: &two, Error: "exit code 2", Started: at, Finished: at.Add(2 * time.Second), Tries: 3},
		},
		Images: []run.Image{withProvenance},
		Bases:  slices.Concat(bases, bases[:1]),
	}}
	got := s.kiln(t.Context(), "show", "r0abcde12345")
	want := strings.Join([]string{
		"Run:       r0abcde12345",
		"Status:    Failed",
		"Reason:    step test: exit code 2",
		"Executes:  run acr-task.yaml",
		"Cause:     rerun of r0abcde00000 by admin",
		"Created:   2026-11-22 10:00:00 UTC",
		"Started:   2026-11-22 10:00:00 UTC",
		"Finished:  2026-11-22 10:00:03 UTC",
		"Duration:  3.0s",
		"",
		"ATTEMPT  WORKER  ASSIGNED                 DURATION  OUTCOME",
		"1        w1      2026-11-22 10:00:00 UTC  3.0s      Failed",
		"",
		"STEP   KIND   STATUS     EXIT  DURATION  TRIES  ERROR",
		"build  build  Succeeded  -     1.0s      1      ",
		"test   cmd    Failed     2     2.0s      3      exit code 2",
		"",
		"IMAGES",
		published.String(),
		"  provenance sha256:d",
		"",
		"BASE                                    USE",
		"docker.io/library/alpine:3@sha256:b     runtime",
		"docker.io/library/golang:1.26@sha256:c  buildtime",
		"",
		"COMMIT",
		"c0ffee",
		"",
	}, "\n")
	if diff := cmp.Diff(want, got.out); diff != "" || got.code != 0 {
		t.Errorf("kiln show = %d (-want +got):\n%s", got.code, diff)
	}
	var shown shownRun
	got = s.kiln(t.Context(), "show", "r0abcde12345", "-o", "json")
	if err := json.Unmarshal([]byte(got.out), &shown); err != nil {
		t.Fatal(err)
	}
	if d := shown.Dependencies; shown.ID != "r0abcde12345" || len(d) != 1 || d[0].Runtime == nil || d[0].Runtime.Repository != "library/alpine" || len(d[0].Buildtime) != 1 {
		t.Errorf("kiln show -o json has %+v", d)
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	s := newContract(t)
	got := s.kiln(t.Context(), "doctor")
	if got.code != 1 || got.err != "" || !strings.Contains(got.out, "ok    buildkit: v0.33.1\nFAIL  disk: 97% full\n      Try: free some space in /d\n") {
		t.Errorf("kiln doctor = %+v", got)
	}
	s.Close()
	got = s.kiln(t.Context(), "doctor")
	if got.code != 1 || !strings.Contains(got.out, "FAIL  server:") || !strings.Contains(got.out, "Try: kiln serve") {
		t.Errorf("kiln doctor without a server = %+v", got)
	}
}

// A trigger is a writer that calls a function when a text has been written to it.
type trigger struct {
	text string
	call func()
	seen strings.Builder
}

func (w *trigger) Write(b []byte) (int, error) {
	w.seen.Write(b)
	if w.call != nil && strings.Contains(w.seen.String(), w.text) {
		w.call()
		w.call = nil
	}
	return len(b), nil
}

// Not parallel: it sends a signal to the whole process.
func TestASecondInterruptLeavesTheRun(t *testing.T) {
	s := newContract(t)
	s.hang, s.stubborn = true, true
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	go func() {
		<-s.started
		interrupt()
	}()
	errs := &trigger{text: "interrupt again", call: func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}}
	env := map[string]string{envServer: s.URL, envToken: testToken, envData: os.DevNull}
	code := execute(ctx, []string{"build", directory(t, "Dockerfile", "FROM scratch")}, environment{
		In: strings.NewReader(""), Out: io.Discard, Err: errs,
		Lookup: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	})
	want := "kiln: run r000000abcde: left before the run ended\nTry: kiln logs -f r000000abcde\n"
	if got := errs.seen.String(); code != 1 || !strings.HasSuffix(got, want) {
		t.Errorf("kiln build = %d, %q", code, got)
	}
}
