package worker

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/run"
)

// commit is a source that is a commit of a repository.
type commit struct {
	*files
	origin   Origin
	text     map[string]string
	warnings []string
}

func (c *commit) Origin() Origin     { return c.origin }
func (c *commit) Warnings() []string { return c.warnings }

func (c *commit) ReadFile(_ context.Context, name string, limit int64) ([]byte, error) {
	text, ok := c.text[name]
	switch {
	case !ok:
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	case int64(len(text)) > limit:
		return nil, errors.New("too large")
	}
	return []byte(text), nil
}

const (
	someCommit = "0123456789abcdef0123456789abcdef01234567"
	someURL    = "https://git.test/o/r.git"
)

func newCommit(text map[string]string) *commit {
	return &commit{files: &files{key: "k"}, text: text,
		origin: Origin{Repository: someURL, Commit: someCommit, Subdir: "app", Author: "Ada\x1b[2J", Title: "a title\nnot this"}}
}

// fromContext is a run of a task file of its context.
func fromContext(f run.TaskFileSpec) run.Run {
	f.FromContext = true
	r := fileRun("")
	r.Spec.TaskFile, r.Spec.Context, r.Spec.Ref = &f, someURL+"#"+someCommit+":app", "refs/heads/main"
	return r
}

const echoTask = "version: v1.1.0\nsteps:\n- {id: a, cmd: 'img {{.Values.x}} {{.Values.y}}'}\n"

func TestTaskFileOfTheContext(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	src := newCommit(map[string]string{"ci/task.yaml": echoTask, "ci/values.yaml": "x: from-file\n", "acb.yaml": echoTask, "large.yaml": strings.Repeat(" ", maxTaskFile+1)})
	src.warnings = []string{"2 files are pointers"}
	var asked OpenRequest
	g.w.Open = func(_ context.Context, r OpenRequest) (Source, error) {
		asked = r
		return src, nil
	}
	r := fromContext(run.TaskFileSpec{Name: "ci/task.yaml", ValuesName: "ci/values.yaml", Set: []string{"y=from-set"}})
	r.Cause.Commit = someCommit
	rep := final(g.execute(t, g.assign(t, r, nil)))
	if rep == nil || rep.Final != run.Succeeded || rep.Commit != someCommit {
		t.Fatalf("final report = %+v", rep)
	}
	if diff := cmp.Diff([]string{"from-file", "from-set"}, s.runs[0].Args); diff != "" {
		t.Error(diff)
	}
	asked.Credentials = nil
	if diff := cmp.Diff(OpenRequest{Context: r.Spec.Context, Ref: "refs/heads/main", Commit: someCommit}, asked); diff != "" {
		t.Error(diff)
	}
	log := g.log(t, r.ID)
	if want := `source https://git.test/o/r.git in app, main, commit 0123456789ab "a title not this" by Ada [2J`; strings.Count(log, want) != 1 {
		t.Errorf("log does not say once %s:\n%s", want, log)
	}
	if strings.Count(log, "warning: 2 files are pointers") != 1 {
		t.Errorf("log does not have the source's warning once:\n%s", log)
	}
	for i, c := range []struct {
		file run.TaskFileSpec
		want run.State
		text string
	}{
		{run.TaskFileSpec{Set: []string{"x=1", "y=2"}}, run.Succeeded, ""}, // acb.yaml, since there is no acr-task.yaml
		{run.TaskFileSpec{Name: "no.yaml"}, run.Failed, `task file "no.yaml": is not in https://git.test/o/r.git, directory app at commit 0123456789ab`},
		{run.TaskFileSpec{Name: "acb.yaml", ValuesName: "no.yaml"}, run.Failed, `values file "no.yaml": is not in`},
		{run.TaskFileSpec{Name: "../acb.yaml"}, run.Failed, "is no path inside the context"},
		{run.TaskFileSpec{Name: "/acb.yaml"}, run.Failed, "is no path inside the context"},
		{run.TaskFileSpec{Name: "large.yaml"}, run.Failed, `task file "large.yaml" in https://git.test/o/r.git, directory app at commit 0123456789ab: too large`},
	} {
		r := fromContext(c.file)
		r.ID = testRun[:11] + string(rune('a'+i))
		rep := final(g.execute(t, g.assign(t, r, nil)))
		if rep == nil || rep.Final != c.want || !strings.Contains(rep.Reason, c.text) {
			t.Errorf("%+v: %+v, want %s, %q", c.file, rep, c.want, c.text)
		}
	}
}

func TestTaskFileOfTheContextIsPlannedWithoutIt(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{"": true, "acr-task.yaml": true, "./ci/x.yaml": true, "../x": false, "/x": false, "a/../../x": false, ".": false} {
		task, _, err := Plan(fromContext(run.TaskFileSpec{Name: name}), PlanOptions{Registry: "reg.test:5000"})
		if (err == nil) != ok || task != nil {
			t.Errorf("Plan of %q = %v, %v, want it accepted: %t", name, task, err, ok)
		}
	}
	if _, _, err := Plan(fromContext(run.TaskFileSpec{Name: "x", Content: []byte("x")}), PlanOptions{}); err == nil {
		t.Error("content beside a file of the context is accepted")
	}
}

// TestAliasFilesAreReadFromTheSource has a task whose image stands in files of its source.
func TestAliasFilesAreReadFromTheSource(t *testing.T) {
	t.Parallel()
	s := &script{}
	g := newRig(t, s)
	g.w.Open = func(context.Context, OpenRequest) (Source, error) {
		return newCommit(map[string]string{"a.yaml": "img: first\nword: hello\n", "ci/b.yaml": "img: second\n"}), nil
	}
	for i, c := range []struct {
		src  string
		want run.State
		text string
	}{
		{"a.yaml, /workspace/ci/b.yaml", run.Succeeded, ""},
		{"no.yaml", run.Failed, `kiln.yaml:3:9: alias.src: "no.yaml": is not in https://git.test/o/r.git`},
		{"../a.yaml", run.Failed, "is no path inside the context"},
		{"/etc/a.yaml", run.Failed, "is no path inside the context"},
		{"https://git.test/a.yaml", run.Failed, "files of other hosts are not read"},
	} {
		r := fileRun("version: v1.1.0\nalias:\n  src: [" + c.src + "]\nsteps:\n- cmd: $img $word\n")
		r.ID = testRun[:11] + string(rune('a'+i))
		if task, _, err := Plan(r, PlanOptions{Registry: "reg.test:5000"}); task != nil || err != nil {
			t.Errorf("%s: plan without the source: %v, %v", c.src, task, err)
		}
		rep := final(g.execute(t, g.assign(t, r, nil)))
		if rep == nil || rep.Final != c.want || !strings.Contains(rep.Reason, c.text) {
			t.Errorf("%s: %+v, want %s, %q", c.src, rep, c.want, c.text)
		}
	}
	if c := s.runs[0]; len(s.runs) != 1 || !strings.Contains(c.Image, "second") || len(c.Args) != 1 || c.Args[0] != "hello" {
		t.Errorf("executed: %+v", s.runs)
	}
	r := fileRun("version: v1.1.0\nalias:\n  src: [a.yaml]\nsteps:\n- cmd: $img\n")
	r.Spec.Context = ""
	if _, _, err := Plan(r, PlanOptions{}); err == nil || !strings.Contains(err.Error(), "alias files cannot be read here") {
		t.Errorf("a run without a source has an alias file: %v", err)
	}
}

func TestImagesAreAnnotatedWithWhatTheyAreMadeFrom(t *testing.T) {
	t.Parallel()
	s := &script{}
	r := fileRun("version: v1.1.0\nsteps:\n- build: -t a --annotation mine=1 --annotation org.opencontainers.image.source=other .\n")
	a := detached(t, r, s)
	annotations := func() map[string]string {
		t.Helper()
		if err := a.runGraph(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.builds[len(s.builds)-1].Annotations
	}
	want := map[string]string{"mine": "1", annotationSource: "other"}
	if diff := cmp.Diff(want, annotations()); diff != "" {
		t.Error(diff)
	}
	src := newCommit(map[string]string{"Dockerfile": "FROM golang:1 AS tools\nFROM node:22\nCOPY --from=tools /a /a\n"})
	a.src, a.origin = src, src.origin
	a.origin.Time = time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	want[annotationRevision], want[annotationCreated] = someCommit, "2026-01-02T02:04:05Z"
	if diff := cmp.Diff(want, annotations()); diff != "" {
		t.Error(diff)
	}
	a.run.Spec.Pins = map[string]string{"docker.io/library/golang:1": someDigest}
	if diff := cmp.Diff(want, annotations()); diff != "" {
		t.Errorf("the pinned image is no base: %s", diff)
	}
	a.run.Spec.Pins["docker.io/library/node:22"] = someDigest
	want[annotationBaseName], want[annotationBaseDigest] = "docker.io/library/node:22", someDigest
	if diff := cmp.Diff(want, annotations()); diff != "" {
		t.Error(diff)
	}
}
