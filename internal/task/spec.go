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
	Ref    string // in full, that the commit was found under
	Pins   map[string]string
	Set    map[string]string // in addition to the task's, and before it
	Args   map[string]string // of a build, in the same way
	File   string            // in place of the task's file or Dockerfile
	Target string            // in place of the build's
	NoPush bool
	// Restricted runs are given no secrets but the one for the context.
	Restricted bool
}

// Spec returns what a run of the task executes. It names secrets and holds none.
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
	s := run.Spec{Context: c.String(), Ref: in.Ref, Platform: t.Platform, Timeout: time.Duration(t.Timeout),
		Refs: t.secretRefs(in.Restricted), Pins: in.Pins, Pool: t.Pool, CPU: t.CPU, Memory: int64(t.Memory),
		Privileged: t.AllowPrivileged && !in.Restricted, Restricted: in.Restricted, Concurrency: t.Concurrency, Limits: t.Limits}
	switch {
	case t.Step.Build != nil:
		b := t.Step.Build
		s.Build = &run.BuildSpec{Dockerfile: b.Dockerfile, Images: b.Images, BuildArgs: pairs(b.Args, in.Args),
			Target: b.Target, NoPush: b.NoPush || in.NoPush, NoCache: b.NoCache}
		if in.File != "" {
			s.Build.Dockerfile = in.File
		}
		if in.Target != "" {
			s.Build.Target = in.Target
		}
	case t.Step.File != nil:
		f := t.Step.File
		s.TaskFile = &run.TaskFileSpec{Name: f.Path, ValuesName: f.Values, Set: pairs(t.Set, in.Set), FromContext: true}
		if in.File != "" {
			s.TaskFile.Name = in.File
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

// secretRefs returns the names of the secrets that a run needs, nil if it needs none.
func (t *Task) secretRefs(restricted bool) *run.SecretRefs {
	refs := run.SecretRefs{Context: t.ContextSecret}
	if !restricted {
		refs.Set = t.SetSecret
		if t.Step.Build != nil {
			refs.Args = t.Step.Build.SecretArgs
		}
		for _, c := range t.Credentials {
			refs.Logins = append(refs.Logins, run.Login(c))
		}
	}
	if refs.Context == "" && len(refs.Set) == 0 && len(refs.Args) == 0 && len(refs.Logins) == 0 {
		return nil
	}
	return &refs
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
