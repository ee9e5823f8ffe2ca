package task

import (
	"fmt"
	"maps"
	"path"
	"time"

	"kiln/internal/run"
)

// Inputs are what a run is pinned to, and what was asked for in it alone.
type Inputs struct {
	Commit string // of a git context; required there
	// File and Values are the contents of the task file and values file at that commit, for a step that is
	// a file of the context.
	File, Values []byte
	Set          map[string]string // in addition to the task's, and before it
	Args         map[string]string // of a build, in the same way
	NoPush       bool
}

// Spec returns what a run of the task executes. Secrets are not part of it: the run's are those that
// [Task.Secrets] names.
func (t *Task) Spec(in Inputs) (run.Spec, error) {
	c, err := ParseContext(t.Context)
	if err != nil {
		return run.Spec{}, fmt.Errorf("task %q: context: %w", t.Name, err)
	}
	if c.Kind == Git {
		if !isCommit(in.Commit) {
			return run.Spec{}, fmt.Errorf("task %q: %q is no commit; resolve the ref first", t.Name, clip(in.Commit))
		}
		c.Ref = in.Commit
	}
	s := run.Spec{Context: c.String(), Platform: t.Platform, Timeout: time.Duration(t.Timeout)}
	switch {
	case t.Step.Build != nil:
		b := t.Step.Build
		s.Build = &run.BuildSpec{Dockerfile: b.Dockerfile, Images: b.Images, BuildArgs: pairs(b.Args, in.Args),
			Target: b.Target, NoPush: b.NoPush || in.NoPush, NoCache: b.NoCache}
	case t.Step.File != nil:
		if in.File == nil {
			return run.Spec{}, fmt.Errorf("task %q: %s was not read from the context", t.Name, t.Step.File.Path)
		}
		s.TaskFile = &run.TaskFileSpec{Name: t.Step.File.Path, Content: in.File, Set: pairs(t.Set, in.Set)}
		if t.Step.File.Values != "" {
			if in.Values == nil {
				return run.Spec{}, fmt.Errorf("task %q: %s was not read from the context", t.Name, t.Step.File.Values)
			}
			s.TaskFile.ValuesName, s.TaskFile.Values = t.Step.File.Values, in.Values
		}
	case t.Step.Inline != nil:
		s.TaskFile = &run.TaskFileSpec{Name: t.Name + ".yaml", Content: []byte(t.Step.Inline.Task), Set: pairs(t.Set, in.Set)}
		if v := t.Step.Inline.Values; v != "" {
			s.TaskFile.ValuesName, s.TaskFile.Values = t.Name+".values.yaml", []byte(v)
		}
	default:
		return run.Spec{}, fmt.Errorf("task %q has no step", t.Name)
	}
	return s, nil
}

// pairs returns values as K=V, sorted; those of later maps count.
func pairs(values ...map[string]string) []string {
	all := map[string]string{}
	for _, m := range values {
		maps.Copy(all, m)
	}
	var list []string
	for _, k := range sortedKeys(all) {
		list = append(list, k+"="+all[k])
	}
	return list
}

// FilePath returns the path of a file of the context in its repository: below the context's subdirectory.
func (t *Task) FilePath(file string) (string, error) {
	c, err := ParseContext(t.Context)
	if err != nil {
		return "", fmt.Errorf("task %q: context: %w", t.Name, err)
	}
	return path.Join(c.Subdir, file), nil
}

// Secrets returns the names of all secrets that a run of the task needs, sorted.
func (t *Task) Secrets() []string {
	names := map[string]bool{t.ContextSecret: true}
	for _, name := range t.SetSecret {
		names[name] = true
	}
	if t.Step.Build != nil {
		for _, name := range t.Step.Build.SecretArgs {
			names[name] = true
		}
	}
	for _, c := range t.Credentials {
		names[c.UsernameSecret], names[c.PasswordSecret], names[c.TokenSecret] = true, true, true
	}
	delete(names, "")
	return sortedKeys(names)
}
