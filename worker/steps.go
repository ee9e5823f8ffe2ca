package worker

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/taskspec"
)

// once executes a step a single time. A *stepFailure is the step's own.
func (a *attempt) once(ctx context.Context, s *taskspec.Step, rec *run.Step) error {
	var err error
	switch s.Kind {
	case taskspec.KindBuild:
		err = a.build(ctx, s, rec)
	case taskspec.KindCmd:
		err = a.cmd(ctx, s, rec)
	default:
		err = a.push(ctx, s)
	}
	var failed *solve.StepError
	if errors.As(err, &failed) {
		if failed.ExitCode >= 0 {
			rec.ExitCode = &failed.ExitCode
		}
		return &stepFailure{s.ID, err}
	}
	return err
}

// inWorkspace returns dir relative to the workspace's root.
func inWorkspace(dir string) (string, error) {
	rest, ok := strings.CutPrefix(path.Clean(dir), workspace)
	if !ok || rest != "" && rest[0] != '/' {
		return "", fmt.Errorf("working directory %s is outside %s, so a build finds no files there", dir, workspace)
	}
	return path.Join(".", rest), nil
}

func (a *attempt) cmd(ctx context.Context, s *taskspec.Step, rec *run.Step) error {
	switch {
	case s.Cmd.Docker != nil:
		text, err := a.dockerCommand(ctx, s.Cmd.Docker)
		return a.said(ctx, s, text, err)
	case s.Cmd.Purge != nil:
		text, err := a.purge(ctx, s.Cmd.Purge)
		return a.said(ctx, s, text, err)
	}
	image, err := a.imageOf(s)
	if err != nil {
		return &stepFailure{s.ID, err}
	}
	env, err := a.environment(ctx, s, workspace, s.Env)
	if err != nil {
		return err
	}
	c := solve.Container{Step: s.ID, Image: image, Args: s.Cmd.Args, EntryPoint: s.Cmd.EntryPoint,
		Env: env, Dir: s.WorkingDirectory, User: s.User}
	if s.KeepImageWorkdir {
		c.Dir = ""
	}
	a.connect(s, &c)
	a.equip(&c, s)
	if err := a.mount(&c, s.Cmd.Options.Mounts, workspace, a.ownMounts()); err != nil {
		return &stepFailure{s.ID, err}
	}
	if len(c.Binds) > 0 { // besides what every step sees
		c.Binds = append([]solve.Bind{{Source: workspace, Path: workspace}, {Source: home, Path: home}}, c.Binds...)
	}
	c.Docker = a.dockerOf(s)
	a.wrote.Store(true)
	if s.Detach {
		return a.serve(ctx, s, c)
	}
	code, err := a.runPatiently(ctx, s, c)
	rec.Built = a.images.scriptedBy(s.ID)
	if err != nil {
		return err
	}
	rec.ExitCode = &code
	if code != 0 {
		return &stepFailure{s.ID, exitError(code, c)}
	}
	return nil
}

// wroteWorkspace reports whether a cmd step has been started, so that the workspace may differ from
// the source.
func (a *attempt) wroteWorkspace() bool { return a.wrote.Load() }

// push publishes images of the run. Those for the co-located registry move in one transaction; those
// for other registries are copied one by one.
func (a *attempt) push(ctx context.Context, s *taskspec.Step) error {
	pub := registry.Publication{Run: a.run.ID, Attempt: a.run.Attempt, Step: s.ID}
	var foreign []copyJob
	published := map[string]builtImage{} // by digest
	for _, name := range s.Push {
		built, ok := a.images.find(name)
		if !ok {
			return &stepFailure{s.ID, fmt.Errorf("image %s was not built, pulled or tagged by an earlier step of this run", name)}
		}
		ref, err := a.images.canonical(name)
		if err != nil {
			return &stepFailure{s.ID, err}
		}
		tagged, ok := ref.(reference.Tagged)
		if !ok {
			return &stepFailure{s.ID, fmt.Errorf("image %s: only a tag can be pushed, not a digest", name)}
		}
		if built, err = a.stage(ctx, built); err != nil {
			return &stepFailure{s.ID, fmt.Errorf("push %s: %w", name, err)}
		}
		if reference.Domain(ref) != a.images.registry {
			foreign = append(foreign, copyJob{built: built, to: ref})
			continue
		}
		published[built.output.Digest] = built
		pub.Tags = append(pub.Tags, registry.Tag{Repository: reference.Path(ref), Tag: tagged.Tag(),
			Digest: built.output.Digest, Source: built.staging, Unique: strings.Contains(tagged.Tag(), a.run.ID)})
	}
	var err error
	if pub.Attachments, err = a.attachments(pub.Tags, published); err != nil {
		return err
	}
	if err := a.publish(ctx, s.ID, pub); err != nil {
		return err
	}
	for _, j := range foreign {
		if err := a.copyOut(ctx, s.ID, j); err != nil {
			return err
		}
	}
	return nil
}

// stepsOwn are the refusals of a publication that are due to what the step asks for.
var stepsOwn = []error{registry.ErrTagExists, registry.ErrTagProtected, registry.ErrLocked, registry.ErrInvalid, registry.ErrDenied}

func (a *attempt) publish(ctx context.Context, step string, pub registry.Publication) error {
	if len(pub.Tags) == 0 {
		return nil
	}
	if err := CheckTags(a.run.Spec.Limits, pub.Tags); err != nil {
		return &stepFailure{step, err}
	}
	published, err := a.w.publishPatiently(ctx, a.tokens, pub)
	if slices.ContainsFunc(stepsOwn, func(r error) bool { return errors.Is(err, r) }) {
		return &stepFailure{step, err}
	}
	if err != nil {
		return err
	}
	var done []run.Image
	for i, p := range published {
		if p.Digest != pub.Tags[i].Digest {
			a.logs.say(step, "%s:%s was pushed by an earlier attempt of this run, and stays as it is", p.Repository, p.Tag)
		}
		img := run.Image{Registry: a.images.registry, Repository: p.Repository, Tag: p.Tag, Digest: p.Digest, Step: step}
		if len(p.Attached) > 0 {
			img.Provenance = p.Attached[0]
		}
		done = append(done, img)
		a.logs.say(step, "pushed %s", img)
	}
	a.reports.images(done)
	return nil
}

// sink is where the session sends what a step says.
func (l *logs) sink(step string) solve.LogFunc {
	return func(entries ...event.LogEntry) { l.add(step, entries) }
}
