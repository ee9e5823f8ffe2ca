package worker

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"kiln/internal/solve"
	"kiln/taskspec"
)

// maxEnvFile bounds a file of --env-file, in bytes.
const maxEnvFile = 256 << 10

// environment is that of a step's container. What its files say comes before, so that the step's own counts.
// A relative name is one of a file in dir; a variable that a file only names has its value in outer.
func (a *attempt) environment(ctx context.Context, s *taskspec.Step, dir string, outer []string) ([]string, error) {
	var env []string
	for _, name := range s.Cmd.EnvFiles {
		list, err := a.envFile(ctx, s, dir, name, outer)
		if err != nil {
			return nil, fmt.Errorf("--env-file %w", err)
		}
		env = append(env, list...)
	}
	return slices.Concat(env, s.Env), nil
}

func (a *attempt) envFile(ctx context.Context, s *taskspec.Step, dir, name string, outer []string) ([]string, error) {
	file, err := a.fileOf(s, dir, name)
	if err != nil {
		return nil, &solve.StepError{ExitCode: -1, Message: err.Error()}
	}
	content := file.Value
	if content == nil {
		if content, err = a.session.ReadFile(ctx, file.File, maxEnvFile); err != nil {
			return nil, err
		}
	}
	env, err := taskspec.ParseEnvFile(name, string(content), outer)
	if err != nil {
		return nil, &solve.StepError{ExitCode: -1, Message: err.Error()}
	}
	return env, nil
}

// outsideFiles are the files of --env-file that no step could read.
func outsideFiles(s *taskspec.Step) (list []finding) {
	for _, name := range s.Cmd.EnvFiles {
		clean := path.Join(workspace, name)
		if path.IsAbs(name) {
			clean = path.Clean(name)
		}
		mounted := slices.ContainsFunc(s.Mounts, func(m taskspec.Mount) bool { return within(clean, m.Path) })
		if !mounted && !within(clean, workspace) {
			list = append(list, finding{true, "cmd", fmt.Sprintf("--env-file %s is neither in a volume that the step mounts nor in %s", name, workspace)})
		}
	}
	return list
}

// within reports whether a clean path is below a directory.
func within(p, dir string) bool { return strings.HasPrefix(p, path.Clean(dir)+"/") }
