package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"kiln/internal/run"
	"kiln/taskspec"
)

// workspace is where a step finds the run's files.
const workspace = "/workspace"

// A planError says that the run's task cannot be executed as it is written.
type planError struct{ err error }

func (e *planError) Error() string { return e.err.Error() }
func (e *planError) Unwrap() error { return e.err }

// plan makes the task that the attempt executes.
func (a *attempt) plan(ctx context.Context) (*taskspec.Task, error) {
	r := a.run
	r.Cause.Repository = cmp.Or(r.Cause.Repository, a.origin.Repository)
	r.Cause.Ref = cmp.Or(r.Cause.Ref, a.origin.Ref)
	r.Cause.Commit = cmp.Or(r.Cause.Commit, a.origin.Commit)
	t, warnings, err := Plan(r, a.planOptions(ctx))
	for _, w := range warnings {
		a.logs.say("", "warning: %s", w)
	}
	if err != nil {
		return nil, &planError{err}
	}
	return t, nil
}

// PlanOptions is what a plan depends on beside the run.
type PlanOptions struct {
	Registry string            // canonical host of the co-located registry
	Secrets  map[string]string // values of --set-secret
	Images   map[string]string // image aliases, nil for the default table
	// Privileged says that the worker allows privileged containers to runs that do.
	Privileged bool
	// Vault returns the value of a secret that a task file names. Nil means that there is none.
	Vault func(taskspec.Secret) (string, error)
	// AliasFile reads an alias file of the source. Nil means that the source is not known yet.
	AliasFile func(name string) ([]byte, error)
}

// Plan turns a run's specification into the task to execute, or says what is wrong with it:
// taskspec.Errors when the task file is, one that wraps run.ErrLimit when it pushes to where its author may not. Warnings come in either case. It reads nothing but its arguments, so a server can refuse a
// request with the same words before it is queued. A task file of the context is not known then, nor is one whose
// alias files are: the rest is checked, and the task is nil.
func Plan(r run.Run, opt PlanOptions) (*taskspec.Task, taskspec.Warnings, error) {
	t, warnings, err := planned(r, opt)
	if err == nil {
		err = checkPushes(t, r.Spec.Limits, opt.Registry)
	}
	return t, warnings, err
}

func planned(r run.Run, opt PlanOptions) (*taskspec.Task, taskspec.Warnings, error) {
	vars := runVars(r, opt.Registry)
	switch {
	case r.Spec.Build != nil:
		return buildTask(r.Spec, vars)
	case r.Spec.TaskFile != nil:
		return fileTask(r.Spec, vars, opt)
	}
	return nil, nil, errors.New("the run has neither a build nor a task file")
}

func runVars(r run.Run, registry string) taskspec.RunVars {
	vars := taskspec.RunVars{ID: r.ID, Registry: registry, SharedVolume: "workspace-" + r.ID, OS: "linux",
		Architecture: architecture(r.Spec.Platform), Date: r.Created, TriggeredBy: r.Cause.Kind, TaskName: r.Task,
		Commit: r.Cause.Commit, Repository: r.Cause.Repository}
	switch branch, ok := strings.CutPrefix(r.Cause.Ref, "refs/heads/"); {
	case ok, !strings.HasPrefix(r.Cause.Ref, "refs/"):
		vars.Branch = branch
	case strings.HasPrefix(r.Cause.Ref, "refs/tags/"):
		vars.GitTag = strings.TrimPrefix(r.Cause.Ref, "refs/tags/")
	}
	return vars
}

// architecture is the second part of a platform such as linux/arm64/v8.
func architecture(platform string) string {
	platform, _, _ = strings.Cut(platform, ",") // the first of several
	if parts := strings.Split(platform, "/"); len(parts) > 1 {
		return parts[1]
	}
	return "amd64"
}

// buildTask is the task of `kiln build`: one build, then one push unless nothing is to be pushed.
func buildTask(spec run.Spec, vars taskspec.RunVars) (*taskspec.Task, taskspec.Warnings, error) {
	b := spec.Build
	timeout := spec.Timeout
	if timeout <= 0 {
		timeout = time.Hour
	}
	build, err := taskspec.ParseBuild(b.Options, nil)
	if err != nil {
		return nil, nil, err
	}
	if build.Context != "." || len(build.Tags)+len(build.Platforms)+len(build.BuildArgs) > 0 || build.Dockerfile+build.Target != "" {
		return nil, nil, errors.New("the options of a build must not name its context, Dockerfile, images, platforms, target or arguments: those have fields of their own")
	}
	build.Dockerfile, build.Target, build.NoCache = b.Dockerfile, b.Target, b.NoCache
	if spec.Platform != "" {
		build.Platforms = strings.Split(spec.Platform, ",")
	}
	for _, arg := range b.BuildArgs {
		k, v, ok := strings.Cut(arg, "=")
		build.BuildArgs = append(build.BuildArgs, taskspec.KeyValue{Key: k, Value: v, Bare: !ok})
	}
	for _, image := range b.Images {
		name, err := imageName(image, vars)
		if err != nil {
			return nil, nil, err
		}
		build.Tags = append(build.Tags, name)
	}
	t := &taskspec.Task{Version: "v1.1.0", StepTimeout: timeout, WorkingDirectory: workspace, Steps: []*taskspec.Step{
		{ID: "build", Kind: taskspec.KindBuild, Build: build, Timeout: timeout, WorkingDirectory: workspace}}}
	if len(build.Tags) > 0 && !b.NoPush {
		t.Steps = append(t.Steps, &taskspec.Step{ID: "push", Kind: taskspec.KindPush, Push: build.Tags,
			After: []string{"build"}, Timeout: timeout, WorkingDirectory: workspace})
	}
	warnings, err := checkSupported(t, "", privileges{})
	return t, warnings, err
}

// imageName makes a full reference of what was given as -t: in the co-located registry unless it names
// another, under the run's ID unless it names a tag.
func imageName(image string, vars taskspec.RunVars) (string, error) {
	if strings.Contains(image, "{{") {
		rendered, err := taskspec.Render([]byte(image), taskspec.Options{File: "image name", Run: vars})
		if err != nil {
			return "", err
		}
		image = strings.TrimSpace(rendered)
	}
	if !namesRegistry(image) {
		image = vars.Registry + "/" + image
	}
	if strings.Contains(image, "@") {
		return "", fmt.Errorf("image name %q: only a tag can be pushed, not a digest", image)
	}
	if !strings.Contains(path.Base(image), ":") {
		image += ":" + vars.ID
	}
	if _, err := parseReference(image); err != nil {
		return "", fmt.Errorf("image name %q: %w", image, err)
	}
	return image, nil
}

// namesRegistry applies the docker rule: the first component is a host if it has a dot or a port or is
// localhost.
func namesRegistry(image string) bool {
	host, _, ok := strings.Cut(image, "/")
	return ok && (strings.ContainsAny(host, ".:") || host == "localhost")
}

func fileTask(spec run.Spec, vars taskspec.RunVars, opt PlanOptions) (*taskspec.Task, taskspec.Warnings, error) {
	f := spec.TaskFile
	if f.FromContext {
		return nil, nil, checkFromContext(f)
	}
	set, secrets := slices.Clone(f.Set), slices.Collect(maps.Values(opt.Secrets))
	for k, v := range opt.Secrets {
		set = append(set, k+"="+v)
	}
	unknown, aliasFile := false, opt.AliasFile
	if aliasFile == nil && spec.Context != "" {
		aliasFile = func(string) ([]byte, error) { unknown = true; return nil, nil }
	}
	t, warnings, err := taskspec.Parse(f.Content, taskspec.Options{File: f.Name, Run: vars, Values: f.Values,
		ValuesFile: f.ValuesName, Set: set, Redact: secrets, ImageAliases: opt.Images, Secrets: opt.Vault, AliasSource: aliasFile,
		Env: f.Env, Network: f.Network, WorkingDirectory: f.WorkingDirectory, Encoded: spec.Context == "", DockerCommands: true})
	if unknown {
		return nil, nil, nil // what the text will be, the worker will see
	}
	if err != nil {
		return nil, warnings, err
	}
	more, err := checkSupported(t, f.Name, privileges{worker: opt.Privileged, run: spec.Privileged, restricted: spec.Restricted})
	return t, append(warnings, more...), err
}

// checkSupported refuses what this worker cannot execute yet, by name, and warns of what changes only how
// a step is executed and has no effect.
func checkSupported(t *taskspec.Task, file string, allowed privileges) (taskspec.Warnings, error) {
	warnings, errs := checkNetworks(t, file)
	for _, s := range t.Steps {
		problem := func(property, why string) *taskspec.Error {
			return &taskspec.Error{File: file, Line: s.Line, Col: 1, Step: s.ID, Property: property, Message: why}
		}
		for _, c := range slices.Concat(unsupported(s), unfit(t, s, allowed)) {
			if c.found {
				errs = append(errs, problem(c.property, c.why))
			}
		}
		for _, c := range withoutEffect(s) {
			if c.found {
				warnings = append(warnings, problem(c.property, "has no effect on this worker"))
			}
		}
	}
	if len(errs) == 0 {
		return warnings, nil
	}
	return warnings, errs
}

// A finding is a property that a step may have, and what is to be said about it.
type finding struct {
	found         bool
	property, why string
}

// unsupported are the properties without which a step would do something else than its author wants.
func unsupported(s *taskspec.Step) []finding {
	list := []finding{
		{s.Network == "host", "network", "the host's network is never given to a step; leave the property out for the run's own network"},
	}
	return append(list, refusedOptions(s)...)
}

// withoutEffect are properties that change how a step is executed, not what it does.
func withoutEffect(s *taskspec.Step) []finding {
	list := []finding{
		{s.Detach && s.Kind != taskspec.KindCmd, "detach", ""}, {s.Detach && s.Repeat > 0, "repeat", ""}, {s.Isolation != "", "isolation", ""},
	}
	if b := s.Build; b != nil {
		list = append(list,
			finding{s.Privileged, "privileged", ""}, finding{s.CPUs != "", "cpus", ""},
			finding{b.Provenance != "" || b.SBOM != "" || len(b.Attest) > 0, "build: attestations", ""},
		)
	}
	return list
}

// steps is the plan as the run's record shows it; what an earlier attempt has finished stays so.
func (a *attempt) steps() []run.Step {
	steps := make([]run.Step, len(a.task.Steps))
	for i, s := range a.task.Steps {
		steps[i] = run.Step{ID: s.ID, Kind: string(s.Kind), State: run.StepPending}
		if done, ok := a.finished(s); ok {
			steps[i] = done
		}
	}
	return steps
}

// finished returns the record of a build or push step that an earlier attempt has completed.
func (a *attempt) finished(s *taskspec.Step) (run.Step, bool) {
	for _, r := range a.run.Steps {
		if r.ID == s.ID && r.State == run.StepSucceeded && s.Kind != taskspec.KindCmd && r.Kind == string(s.Kind) {
			// A build that writes files writes them again, into the workspace of this attempt.
			return r, s.Kind != taskspec.KindBuild || r.Output != nil && s.Build.IIDFile+s.Build.MetadataFile == ""
		}
	}
	return run.Step{}, false
}
