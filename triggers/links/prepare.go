package links

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"kiln/internal/run"
	"kiln/internal/task"
	"kiln/taskspec"
)

// A standIn is what a run that never is would be given. A task is read with two that differ in all that
// runs differ in: what comes out the same depends on no run.
type standIn struct {
	letter string // that its values are made of
	cause  string
	date   time.Time
}

var standIns = [2]standIn{
	{"a", run.CauseCommit, time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)},
	{"b", run.CauseManual, time.Date(2012, 11, 10, 19, 48, 57, 0, time.UTC)},
}

// withoutStandIns keeps values that no run has out of messages.
var withoutStandIns = strings.NewReplacer(
	standIns[0].id(), "RUN", standIns[0].commit(), "COMMIT", standIns[0].secret(), "***",
	standIns[1].id(), "RUN", standIns[1].commit(), "COMMIT", standIns[1].secret(), "***",
)

func (s standIn) id() string     { return "scan" + strings.Repeat(s.letter, 8) }
func (s standIn) commit() string { return strings.Repeat(s.letter, 40) }

// secret is the value of every secret.
func (s standIn) secret() string { return "secret-" + strings.Repeat(s.letter, 12) }

// vars are the variables of the run.
func (s standIn) vars(t *task.Task, registryHost string) taskspec.RunVars {
	id := s.id()
	_, architecture, _ := strings.Cut(t.Platform, "/")
	architecture, _, _ = strings.Cut(architecture, "/")
	return taskspec.RunVars{ID: id, Commit: s.commit(), Repository: id, Branch: id, GitTag: id, TriggeredBy: s.cause,
		Registry: registryHost, SharedVolume: "workspace-" + id, OS: "linux", Architecture: cmp.Or(architecture, "amd64"),
		TaskName: t.Name, Date: s.date}
}

// prepare returns the task file that a run of the task would execute. With an error, there may still be
// one, without what the error is about.
func prepare(t *task.Task, registryHost string, s standIn, files *files) (*taskspec.Task, error) {
	vars := s.vars(t, registryHost)
	opt := taskspec.Options{Run: vars, Set: settings(t, s), Redact: []string{s.secret()}, Encoded: t.Context == "", DockerCommands: true,
		Secrets: func(taskspec.Secret) (string, error) { return s.secret(), nil }, AliasSource: files.alias,
		ImageAliases: files.images}
	switch {
	case t.Step.Build != nil:
		return buildTask(t, vars, s)
	case t.Step.Inline != nil:
		opt.File, opt.Values, opt.ValuesFile = "the inline task", []byte(t.Step.Inline.Values), "its values"
		return parse([]byte(t.Step.Inline.Task), opt)
	case t.Step.File != nil:
		f := t.Step.File
		src, err := files.get(path.Clean(f.Path))
		if err != nil {
			return nil, missing("task file", f.Path, err)
		}
		opt.File = f.Path
		if f.Values != "" {
			opt.ValuesFile = f.Values
			if opt.Values, err = files.get(path.Clean(f.Values)); err != nil {
				return nil, missing("values file", f.Values, err)
			}
		}
		return parse(src, opt)
	}
	return nil, errors.New("the task has no step")
}

func missing(kind, name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the %s %s is not in the context", kind, name)
	}
	return fmt.Errorf("the %s %s: %w", kind, name, err)
}

// settings are the values of the task file's template, with stand-ins for secrets.
func settings(t *task.Task, s standIn) []string {
	all := maps.Clone(t.Set)
	if all == nil {
		all = map[string]string{}
	}
	for k := range t.SetSecret {
		all[k] = s.secret()
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		list = append(list, k+"="+all[k])
	}
	return list
}

// parse reads a task file. Of several mistakes it names the first.
func parse(src []byte, opt taskspec.Options) (*taskspec.Task, error) {
	t, _, err := taskspec.Parse(src, opt)
	if errs, ok := errors.AsType[taskspec.Errors](err); ok && len(errs) > 1 {
		return nil, fmt.Errorf("%w (and %d more)", errs[0], len(errs)-1)
	}
	return t, err
}

// buildTask is the task file of a task that builds one Dockerfile.
func buildTask(t *task.Task, vars taskspec.RunVars, s standIn) (*taskspec.Task, error) {
	b := t.Step.Build
	build := &taskspec.Build{Context: ".", Dockerfile: cmp.Or(b.Dockerfile, "Dockerfile"), Target: b.Target}
	if t.Platform != "" {
		build.Platforms = []string{t.Platform}
	}
	for _, k := range slices.Sorted(maps.Keys(b.Args)) {
		build.BuildArgs = append(build.BuildArgs, taskspec.KeyValue{Key: k, Value: b.Args[k]})
	}
	for _, k := range slices.Sorted(maps.Keys(b.SecretArgs)) {
		build.BuildArgs = append(build.BuildArgs, taskspec.KeyValue{Key: k, Value: s.secret()})
	}
	spec := &taskspec.Task{Steps: []*taskspec.Step{{ID: "build", Kind: taskspec.KindBuild, Build: build, WorkingDirectory: "/workspace"}}}
	if b.NoPush {
		return spec, nil
	}
	push := &taskspec.Step{ID: "push", Kind: taskspec.KindPush, After: []string{"build"}}
	var wrong error
	for _, image := range b.Images {
		name, err := imageName(image, vars)
		if err != nil {
			wrong = cmp.Or(wrong, fmt.Errorf("image name %q: %w", image, err))
			continue
		}
		push.Push = append(push.Push, name)
	}
	spec.Steps = append(spec.Steps, push)
	return spec, wrong
}

// imageName returns the full reference that a build pushes: in the co-located registry unless it names
// another, under the run's ID unless it names a tag.
func imageName(image string, vars taskspec.RunVars) (string, error) {
	name := image
	if strings.Contains(image, "{{") {
		rendered, err := taskspec.Render([]byte(image), taskspec.Options{File: "image name", Run: vars})
		if err != nil {
			return "", err
		}
		name = strings.TrimSpace(rendered)
	}
	host, _, ok := strings.Cut(name, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		name = vars.Registry + "/" + name
	}
	if !strings.Contains(path.Base(name), ":") {
		name += ":" + vars.ID
	}
	return name, nil
}
