package links

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"kiln/internal/dockerfile"
	"kiln/taskspec"
)

// workspace is where a step finds the run's files.
const workspace = "/workspace/"

// Bases returns the images that the Dockerfiles of a task's builds refer to, by step ID, as far as the
// Dockerfiles are in the context. Vars are those that the task was parsed with.
func Bases(t *taskspec.Task, vars taskspec.RunVars, read Reader) map[string][]taskspec.PlanBase {
	all := map[string][]taskspec.PlanBase{}
	for _, s := range t.Steps {
		if s.Build != nil {
			all[s.ID] = stepBases(s, vars, read)
		}
	}
	return all
}

func stepBases(s *taskspec.Step, vars taskspec.RunVars, read Reader) []taskspec.PlanBase {
	name, data, err := readDockerfile(s, read)
	if err != nil {
		return []taskspec.PlanBase{{Use: string(dockerfile.UseFrom), Dockerfile: name, Unresolved: err.Error()}}
	}
	var list []taskspec.PlanBase
	known := map[taskspec.PlanBase]bool{}
	add := func(b taskspec.PlanBase) {
		if !known[b] {
			known[b] = true
			list = append(list, b)
		}
	}
	for _, platform := range platforms(s.Build, vars) {
		found, err := dockerfile.Scan(data, scanOptions(s.Build, platform))
		if err != nil {
			add(taskspec.PlanBase{Use: string(dockerfile.UseFrom), Dockerfile: name, Unresolved: err.Error()})
			continue
		}
		if found.Runtime != nil {
			add(planBase(*found.Runtime, name, true))
		}
		for _, b := range found.Buildtime {
			add(planBase(b, name, false))
		}
	}
	return list
}

func planBase(b dockerfile.Base, name string, runtime bool) taskspec.PlanBase {
	return taskspec.PlanBase{Ref: b.Ref, Written: b.Written, Use: string(b.Use), Runtime: runtime, Platform: b.Platform,
		Dockerfile: name, Line: b.Line, Unresolved: b.Unresolved}
}

// platforms returns what a step builds for; "" stands for the default.
func platforms(b *taskspec.Build, vars taskspec.RunVars) []string {
	switch {
	case len(b.Platforms) > 0:
		return b.Platforms
	case vars.OS != "" && vars.Architecture != "":
		return []string{vars.OS + "/" + vars.Architecture}
	}
	return []string{""}
}

func scanOptions(b *taskspec.Build, platform string) dockerfile.Options {
	opt := dockerfile.Options{BuildArgs: map[string]string{}, Target: b.Target, Platform: platform, Contexts: map[string]string{}}
	for _, kv := range b.BuildArgs {
		if !kv.Bare {
			opt.BuildArgs[kv.Key] = kv.Value
		}
	}
	for _, kv := range b.Contexts {
		opt.Contexts[kv.Key] = kv.Value
	}
	return opt
}

// readDockerfile returns the path in the context and the content of a build step's Dockerfile.
func readDockerfile(s *taskspec.Step, read Reader) (name string, data []byte, err error) {
	context := s.Build.Context
	if strings.Contains(context, "://") || strings.HasPrefix(context, "git@") || strings.HasPrefix(context, "github.com/") {
		return s.Build.Dockerfile, nil, fmt.Errorf("the context %s is not part of the source", context)
	}
	name = path.Join(s.WorkingDirectory, context, "Dockerfile")
	if s.Build.Dockerfile != "" {
		name = path.Join(s.WorkingDirectory, s.Build.Dockerfile)
	}
	rel, ok := strings.CutPrefix(name, workspace)
	if !ok {
		return name, nil, errors.New("it is outside of /workspace")
	}
	data, err = read(rel)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("it is not in the context; does an earlier step make it?")
	}
	return rel, data, err
}
