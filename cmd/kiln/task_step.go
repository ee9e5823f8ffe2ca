package main

import (
	"strings"

	"github.com/spf13/cobra"

	"kiln/internal/task"
)

// isTaskFile reports whether a path is that of a task file, as its suffix tells.
func isTaskFile(path string) bool {
	lower := strings.ToLower(path)
	return strings.HasSuffix(lower, ".yaml") || strings.HasSuffix(lower, ".yml")
}

// defineStep sets what a task executes.
func (c *cli) defineStep(cmd *cobra.Command, f *definitionFlags, t *task.Task, isNew bool) error {
	given := cmd.Flags().Changed
	var err error
	switch file := f.file; {
	case given("cmd") && given("file"):
		return usagef(cmd.CommandPath()+" --help", "--cmd and --file exclude each other")
	case given("cmd"):
		single, err := commandTask(f.cmd, 0)
		if err != nil {
			return err
		}
		t.Step = task.Step{Inline: &task.Inline{Task: string(single.Content)}}
	case given("file") && (file == "-" || t.Context == "" && isTaskFile(file)):
		err = c.inlineTask(t, file)
	case given("file") && isTaskFile(file):
		if t.Step.File == nil {
			t.Step = task.Step{File: &task.File{}}
		}
		t.Step.File.Path = file
	case given("file") || isNew:
		if t.Step.Build == nil {
			t.Step = task.Step{Build: &task.Build{}}
		}
		t.Step.Build.Dockerfile = file
	}
	if err != nil {
		return err
	}
	if given("values") {
		if err := setValues(t, f.values); err != nil {
			return err
		}
	}
	return f.defineBuild(given, t)
}

// inlineTask makes a task file that is here part of the task.
func (c *cli) inlineTask(t *task.Task, file string) error {
	found, err := c.findTask(file, "")
	if err != nil {
		return err
	}
	t.Step = task.Step{Inline: &task.Inline{Task: string(found.Content)}}
	return nil
}

// setValues sets the file of values: one of the context, or the text of one that is here.
func setValues(t *task.Task, file string) error {
	switch {
	case t.Step.File != nil:
		t.Step.File.Values = file
	case t.Step.Inline != nil:
		path, err := findInput("values file", file, "")
		if err != nil {
			return err
		}
		text, err := readFile(path)
		if err != nil {
			return err
		}
		t.Step.Inline.Values = string(text)
	default:
		return usagef("--arg K=V", "--values: a Dockerfile takes no values, only a task file does")
	}
	return nil
}

// defineBuild sets what is about the build of a Dockerfile.
func (f *definitionFlags) defineBuild(given func(string) bool, t *task.Task) error {
	flags := []string{"image", "target", "arg", "secret-arg", "no-push", "no-cache"}
	b := t.Step.Build
	if b == nil {
		for _, name := range flags {
			if given(name) {
				return usagef("a build step in the task file, or --file with a Dockerfile", "--%s: the task executes a task file, which says itself what it builds", name)
			}
		}
		return nil
	}
	if given("image") {
		for _, image := range f.images {
			if err := checkTag(image); err != nil {
				return err
			}
		}
		b.Images = f.images
	}
	if given("target") {
		b.Target = f.target
	}
	if given("no-push") {
		b.NoPush = f.noPush
	}
	if given("no-cache") {
		b.NoCache = f.noCache
	}
	if err := assign(&b.Args, "--arg", f.args, "V"); err != nil {
		return err
	}
	return assign(&b.SecretArgs, "--secret-arg", f.secretArgs, "SECRET")
}

// defineValues sets the values of a task file.
func defineValues(f *definitionFlags, t *task.Task) error {
	if t.Step.Build != nil && len(f.set)+len(f.setSecrets) > 0 {
		return usagef("--arg K=V, or --secret-arg K=SECRET", "--set and --set-secret: a Dockerfile takes no values, only a task file does")
	}
	if err := assign(&t.Set, "--set", f.set, "V"); err != nil {
		return err
	}
	return assign(&t.SetSecret, "--set-secret", f.setSecrets, "SECRET")
}

// assign sets entries of a map, given as K=V. The message does not repeat the value, which may be a secret.
func assign(m *map[string]string, flag string, kvs []string, what string) error {
	for _, kv := range kvs {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return usagef(flag+" K="+what, "%s: want K=%s", flag, what)
		}
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[k] = v
	}
	return nil
}
