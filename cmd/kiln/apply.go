package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/task"
	"kiln/taskspec"
)

const applyHelp = `Make the tasks of the server be what files say.

A file holds any number of YAML documents of kind Task, as "kiln task show -o yaml" prints them. Of a
directory the files that end in .yaml or .yml are read, not those of its subdirectories. Tasks that are
new are created, others are replaced by what their document says; a task that is as it should be is not
touched. Everything is checked before anything is changed.

With --prune, tasks that no document describes are deleted. They are listed first, and somebody has to
agree: at the terminal, or by --yes.`

type applyFlags struct {
	files  []string
	dryRun bool
	prune  bool
	yes    bool
	output outputFlag
}

func newApplyCommand(c *cli) *cobra.Command {
	f := applyFlags{output: outputFlag{allowed: []string{"json"}}}
	cmd := &cobra.Command{
		Use:     "apply [flags] -f FILE|DIR",
		Short:   "Create, change and delete tasks as files say",
		Long:    applyHelp,
		Example: "  kiln apply -f tasks/ --dry-run\n  kiln apply -f tasks/ --prune --yes\n  kiln task show web -o yaml | kiln apply -f -",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(f.files) == 0 {
				return usagef("kiln apply -f tasks/", "-f FILE|DIR is missing")
			}
			return c.apply(cmd.Context(), &f)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringArrayVarP(&f.files, "filename", "f", nil, "`FILE` or directory; - reads standard input; may be repeated")
	fl.BoolVar(&f.dryRun, "dry-run", false, "check, and show what would be changed, and change nothing")
	fl.BoolVar(&f.prune, "prune", false, "delete the tasks that no document describes")
	fl.BoolVarP(&f.yes, "yes", "y", false, "delete without asking")
	fl.VarP(&f.output, "output", "o", "print what was done as one JSON document")
	return cmd
}

// A described task is one of a file.
type described struct {
	file string
	task *task.Task
}

// An action is what is to be done about a task.
type action struct {
	Name     string              `json:"name"`
	Action   string              `json:"action"` // created, updated, unchanged or deleted
	Changes  []task.Change       `json:"changes,omitempty"`
	Warnings []apiclient.Problem `json:"warnings,omitempty"`

	task     *task.Task
	revision uint64 // 0 if it is new
}

func (c *cli) apply(ctx context.Context, f *applyFlags) error {
	tasks, err := c.readTasks(f.files)
	if err != nil {
		return err
	}
	if len(tasks) == 0 {
		return usagef("kiln task show NAME -o yaml, for an example", "%s: no task", strings.Join(f.files, ", "))
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	plan, err := planTasks(ctx, client, tasks)
	if err != nil {
		return err
	}
	if f.prune {
		surplus, err := surplusTasks(ctx, client, tasks)
		if err != nil {
			return err
		}
		if err := c.confirmPrune(f, surplus); err != nil {
			return err
		}
		plan = append(plan, surplus...)
	}
	var done []action
	for _, a := range plan {
		if !f.dryRun {
			if err := carryOut(ctx, client, a); err != nil {
				return errors.Join(err, c.printActions(f, done))
			}
		}
		done = append(done, a)
	}
	return c.printActions(f, done)
}

// readTasks reads the tasks of files and directories. All mistakes are reported at once.
func (c *cli) readTasks(paths []string) ([]described, error) {
	var all []described
	var problems []apiclient.Problem
	places := map[string]string{}
	for _, path := range paths {
		files, err := taskFiles(path)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			text, err := c.readTaskFile(file)
			if err != nil {
				return nil, err
			}
			tasks, err := task.Decode(file, text)
			var errs taskspec.Errors
			if errors.As(err, &errs) {
				problems = append(problems, problemsOf(errs)...)
			} else if err != nil {
				return nil, err
			}
			for _, t := range tasks {
				key := task.NameKey(t.Name)
				if other, twice := places[key]; twice {
					problems = append(problems, apiclient.Problem{File: file, Property: "name",
						Message: fmt.Sprintf("%q is already the name of a task in %s", t.Name, other)})
				}
				places[key] = file
				all = append(all, described{file, t})
			}
		}
	}
	if len(problems) > 0 {
		return nil, &apiclient.Error{Status: 422, Code: apiclient.CodeInvalid, Message: "the files are not valid; nothing was changed", Problems: problems}
	}
	return all, nil
}

func problemsOf(errs taskspec.Errors) []apiclient.Problem {
	list := make([]apiclient.Problem, len(errs))
	for i, e := range errs {
		list[i] = apiclient.Problem{File: e.File, Line: e.Line, Column: e.Col, Step: e.Step, Property: e.Property, Message: e.Message}
	}
	return list
}

// taskFiles returns a file, or the files of a directory in the order of their names.
func taskFiles(path string) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, usagef("", "%w", err)
	}
	if !fi.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, usagef("", "%w", err)
	}
	var files []string
	for _, e := range entries {
		if file := filepath.Join(path, e.Name()); isTaskFile(file) && isFile(file) {
			files = append(files, file)
		}
	}
	if len(files) == 0 {
		return nil, usagef("-f FILE", "%s: no file that ends in .yaml or .yml", path)
	}
	return files, nil
}

func (c *cli) readTaskFile(file string) ([]byte, error) {
	if file == "-" {
		return readInput("standard input", c.In)
	}
	return readFile(file)
}

// planTasks compares the tasks with those of the server, which checks them.
func planTasks(ctx context.Context, client *apiclient.Client, tasks []described) ([]action, error) {
	var plan []action
	problem := &apiclient.Error{Status: 422, Code: apiclient.CodeInvalid, Message: "the tasks are not valid; nothing was changed"}
	for _, d := range tasks {
		a, err := planTask(ctx, client, d.task)
		var answer *apiclient.Error
		switch {
		case errors.As(err, &answer) && answer.Code == apiclient.CodeInvalid:
			problem.Problems = append(problem.Problems, within(d, answer)...)
		case err != nil:
			return nil, err
		}
		plan = append(plan, a)
	}
	if len(problem.Problems) > 0 {
		return nil, problem
	}
	return plan, nil
}

// within says of what the server found wrong with a task where the task is.
func within(d described, answer *apiclient.Error) []apiclient.Problem {
	list := answer.Problems
	if len(list) == 0 {
		list = []apiclient.Problem{{Message: answer.Message}}
	}
	for i, p := range list {
		if p.File == "" {
			list[i].File, list[i].Message = d.file, fmt.Sprintf("task %q: %s", d.task.Name, p.Message)
		} else {
			list[i].File = fmt.Sprintf("%s: task %q: %s", d.file, d.task.Name, p.File)
		}
	}
	return list
}

func planTask(ctx context.Context, client *apiclient.Client, t *task.Task) (action, error) {
	a := action{Name: t.Name, task: t}
	now, err := client.Task(ctx, t.Name)
	var answer *apiclient.Error
	if errors.As(err, &answer) && answer.Code == apiclient.CodeNotFound {
		checked, err := client.CreateTask(ctx, *t, true)
		a.Action, a.Changes, a.Warnings = "created", task.Diff(nil, t), checked.Warnings
		return a, err
	}
	if err != nil {
		return a, err
	}
	checked, err := client.ReplaceTask(ctx, t.Name, *t, now.Revision, true)
	a.Action, a.Changes, a.Warnings, a.revision = "updated", task.Diff(&now.Task, t), checked.Warnings, now.Revision
	if len(a.Changes) == 0 {
		a.Action = "unchanged"
	}
	return a, err
}

// surplusTasks returns the deletion of the tasks of the server that are none of those.
func surplusTasks(ctx context.Context, client *apiclient.Client, tasks []described) ([]action, error) {
	all, err := client.Tasks(ctx)
	if err != nil {
		return nil, err
	}
	var surplus []action
	for _, t := range all {
		key := task.NameKey(t.Task.Name)
		if !slices.ContainsFunc(tasks, func(d described) bool { return task.NameKey(d.task.Name) == key }) {
			surplus = append(surplus, action{Name: t.Task.Name, Action: "deleted", revision: t.Revision})
		}
	}
	return surplus, nil
}

func (c *cli) confirmPrune(f *applyFlags, surplus []action) error {
	if f.dryRun || len(surplus) == 0 {
		return nil
	}
	names := make([]string, len(surplus))
	for i, a := range surplus {
		names[i] = a.Name
	}
	return c.confirm(f.yes, fmt.Sprintf("Delete the tasks that no document describes: %s?", strings.Join(names, ", ")))
}

// carryOut does what is to be done about one task.
func carryOut(ctx context.Context, client *apiclient.Client, a action) error {
	var err error
	switch a.Action {
	case "created":
		_, err = client.CreateTask(ctx, *a.task, false)
	case "updated":
		_, err = client.ReplaceTask(ctx, a.Name, *a.task, a.revision, false)
	case "deleted":
		_, err = client.DeleteTask(ctx, a.Name, a.revision)
	}
	return err
}

// printActions prints what was done, or would be, with what is doubtful about it.
func (c *cli) printActions(f *applyFlags, done []action) error {
	for _, a := range done {
		for _, p := range a.Warnings {
			c.say(fmt.Sprintf("warning: task %q: %s", a.Name, p))
		}
	}
	if f.output.json() {
		return c.printJSON(struct {
			DryRun bool     `json:"dryRun,omitempty"`
			Tasks  []action `json:"tasks"`
		}{f.dryRun, append([]action{}, done...)})
	}
	for _, a := range done {
		if err := printAction(c.Out, a, f.dryRun); err != nil {
			return err
		}
	}
	return nil
}

func printAction(out io.Writer, a action, dryRun bool) error {
	verb := a.Action
	if dryRun && verb != "unchanged" {
		verb = "would be " + verb + ":"
	}
	_, err := fmt.Fprintf(out, "%s %s\n", verb, a.Name)
	for _, change := range a.Changes {
		_, err = fmt.Fprintf(out, "  %s\n", render.Clean(change.String()))
	}
	return err
}
