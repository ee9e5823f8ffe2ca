package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/taskspec"
)

const checkHelp = `Check a task file: every mistake and everything doubtful, with its line and column.

No server is needed and nothing is executed. Run variables that are not given with --run have stand-ins,
and so have all secrets. CONTEXT is the directory that the task works on, from which alias files are read.`

func newCheckCommand(c *cli) *cobra.Command {
	f := documentFlags{output: outputFlag{allowed: []string{"json"}}}
	cmd := &cobra.Command{
		Use:               "check [flags] [CONTEXT]",
		Short:             "Check a task file",
		Long:              checkHelp,
		Example:           "  kiln check\n  kiln check -f ci/task.yaml --set tag=1.2 .\n  kiln check -o json | jq '.problems[].message'",
		Args:              optionalContext,
		ValidArgsFunction: completeDirectory,
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := c.document(f, args)
			if err != nil {
				return err
			}
			_, warnings, err := taskspec.Parse(d.src, d.opt)
			return c.printCheck(d, f.output.json(), warnings, err)
		},
	}
	f.add(cmd)
	cmd.Flags().VarP(&f.output, "output", "o", "print the problems as one JSON document")
	return cmd
}

// A checkReport is what check prints as JSON.
type checkReport struct {
	File     string              `json:"file"`
	Errors   int                 `json:"errors"`
	Warnings int                 `json:"warnings"`
	Problems []apiclient.Problem `json:"problems"` // errors first, each by place
}

func (c *cli) printCheck(d *document, asJSON bool, warnings taskspec.Warnings, err error) error {
	errs, ok := errors.AsType[taskspec.Errors](err)
	if err != nil && !ok {
		return err
	}
	r := checkReport{File: d.opt.File, Errors: len(errs), Warnings: len(warnings), Problems: append(problems(errs, false), problems(warnings, true)...)}
	if asJSON {
		if err := c.printJSON(r); err != nil {
			return err
		}
	} else {
		printProblems(c.Out, r.Problems)
	}
	return d.verdict(errs)
}

// problems returns messages about a document in the form in which the API has them.
func problems(messages []*taskspec.Error, warning bool) []apiclient.Problem {
	list := make([]apiclient.Problem, len(messages))
	for i, e := range messages {
		list[i] = apiclient.Problem{
			File: e.File, Line: e.Line, Column: e.Col, Step: e.Step, Property: e.Property, Message: e.Message, Warning: warning,
		}
	}
	return list
}

func printProblems(w io.Writer, list []apiclient.Problem) {
	for _, p := range list {
		kind := ""
		if p.Warning {
			kind = "warning: "
		}
		fmt.Fprintf(w, "%s%s\n", kind, render.Clean(p.String()))
	}
}

// documentFlags are the flags of the commands that read a task file and need no server.
type documentFlags struct {
	file       string
	set        []string
	setSecrets []string
	values     string
	run        []string
	outside    outsideFlags
	output     outputFlag
}

// outsideFlags are what steps of a task file have for which it names none.
type outsideFlags struct {
	env              []string
	network, workdir string
}

func (f *outsideFlags) add(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.env, "env", nil, "set `K=V` in the environment of all steps that do not set it; may be repeated")
	fl.StringVar(&f.network, "network", "", "existing network that all steps join by default")
	fl.StringVar(&f.workdir, "working-directory", "", "directory of steps that name none: relative to /workspace, or absolute")
}

func (f *documentFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVarP(&f.file, "file", "f", "", "task file; - reads standard input (default CONTEXT/acr-task.yaml, then CONTEXT/acb.yaml)")
	fl.StringArrayVar(&f.set, "set", nil, "set a value `K=V` for .Values.K; may be repeated")
	fl.StringArrayVar(&f.setSecrets, "set-secret", nil, "say that .Values.`K` is a secret value; shown as ***; may be repeated")
	fl.StringVar(&f.values, "values", "", "file of values, in YAML; found as the task file is")
	fl.StringArrayVar(&f.run, "run", nil, "set a run variable `K=V`: "+strings.Join(runVariableNames(), ", ")+"; may be repeated")
	f.outside.add(fl)
}

// optionalContext accepts a context directory or nothing.
func optionalContext(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef(cmd.CommandPath()+" --help", "%q: only one CONTEXT can be given", strings.Join(args[1:], " "))
	}
	return nil
}

// standIn is the value of every secret. It means nothing to YAML or a shell, and mask finds it again.
const standIn = "kilnsecret0value"

// mask replaces the stand-ins of secrets, as they are or in base64.
func mask(s string) string {
	s = strings.ReplaceAll(s, standIn, "***")
	return strings.ReplaceAll(s, "a2lsbnNlY3JldDB2YWx1ZQ==", "***")
}

// A document is a task file and all that it depends on.
type document struct {
	src []byte
	opt taskspec.Options
	dir string // of its context, "" for none
}

// document reads the task file that flags and arguments name.
func (c *cli) document(f documentFlags, args []string) (*document, error) {
	dir := "."
	if len(args) > 0 {
		dir = args[0]
	}
	if dir == noContext {
		dir = ""
	} else if err := checkContext(dir); err != nil {
		return nil, err
	}
	task, err := c.findTask(f.file, dir)
	if err != nil {
		return nil, err
	}
	if err := addValues(task, taskFlags{set: f.set, values: f.values}, dir); err != nil {
		return nil, err
	}
	for _, k := range f.setSecrets {
		k, _, _ := strings.Cut(k, "=")
		task.Set = append(task.Set, k+"="+standIn)
	}
	vars, err := runVariables(f.run)
	if err != nil {
		return nil, err
	}
	d := &document{src: task.Content, dir: dir}
	d.opt = taskspec.Options{
		File: task.Name, Run: vars, Values: task.Values, ValuesFile: task.ValuesName, Set: task.Set, Env: f.outside.env,
		Network: f.outside.network, WorkingDirectory: f.outside.workdir, Encoded: dir == "", Redact: []string{standIn},
		Secrets:     func(taskspec.Secret) (string, error) { return standIn, nil },
		AliasSource: d.aliasFile,
	}
	return d, nil
}

// parse returns the document's task to be shown, or says on standard error what is wrong with it.
func (c *cli) parse(d *document) (*taskspec.Task, error) {
	d.opt.Lenient = true
	task, warnings, err := taskspec.Parse(d.src, d.opt)
	printProblems(c.Err, problems(warnings, true))
	if errs, ok := errors.AsType[taskspec.Errors](err); ok {
		printProblems(c.Err, problems(errs, false))
		return nil, d.verdict(errs)
	}
	return task, err
}

// verdict returns the error of a command whose document has mistakes.
func (d *document) verdict(errs taskspec.Errors) error {
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return usagef("", "%s is not valid: one error", d.opt.File)
	}
	return usagef("", "%s is not valid: %d errors", d.opt.File, len(errs))
}

// aliasFile reads a file of alias.src: from the working directory if it is there, else from the context.
func (d *document) aliasFile(src string) ([]byte, error) {
	if strings.Contains(src, "://") {
		return nil, errors.New("files of other hosts are not read here; copy it into the context")
	}
	for _, dir := range []string{d.opt.WorkingDirectory, ""} {
		data, err := d.read(path.Join(dir, src))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, fmt.Errorf("no such file in %s", d.dir)
}

// read reads a file of the context, and nothing outside of it.
func (d *document) read(name string) ([]byte, error) {
	if d.dir == "" {
		return nil, errors.New("there is no context to read it from")
	}
	root, err := os.OpenRoot(d.dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	name = strings.TrimPrefix(name, "/workspace/")
	if fi, err := root.Stat(filepath.FromSlash(name)); err == nil && !fi.Mode().IsRegular() {
		return nil, errors.New("not a file")
	}
	f, err := root.Open(filepath.FromSlash(name))
	if err != nil {
		if cause := errors.Unwrap(err); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(f, maxFile+1)); err != nil {
		return nil, err
	}
	if b.Len() > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	return b.Bytes(), nil
}

// runVariable sets a run variable from its text.
type runVariable struct {
	name string
	set  func(vars *taskspec.RunVars, value string) error
}

// variables are the run variables, by their names in --run.
var variables = []runVariable{
	{"id", func(v *taskspec.RunVars, s string) error { v.ID = s; return nil }},
	{"registry", func(v *taskspec.RunVars, s string) error { v.Registry = s; return nil }},
	{"commit", func(v *taskspec.RunVars, s string) error { v.Commit = s; return nil }},
	{"branch", func(v *taskspec.RunVars, s string) error { v.Branch = s; return nil }},
	{"date", setDate},
	{"repository", func(v *taskspec.RunVars, s string) error { v.Repository = s; return nil }},
	{"gitTag", func(v *taskspec.RunVars, s string) error { v.GitTag = s; return nil }},
	{"triggeredBy", func(v *taskspec.RunVars, s string) error { v.TriggeredBy = s; return nil }},
	{"osVersion", func(v *taskspec.RunVars, s string) error { v.OSVersion = s; return nil }},
	{"taskName", func(v *taskspec.RunVars, s string) error { v.TaskName = s; return nil }},
	{"sharedVolume", func(v *taskspec.RunVars, s string) error { v.SharedVolume = s; return nil }},
	{"os", func(v *taskspec.RunVars, s string) error { v.OS = s; return nil }},
	{"arch", func(v *taskspec.RunVars, s string) error { v.Architecture = s; return nil }},
}

func setDate(v *taskspec.RunVars, s string) error {
	var err error
	if s == "" {
		v.Date = time.Time{}
	} else if v.Date, err = time.Parse(time.RFC3339, s); err != nil {
		return usagef("--run date=2026-01-02T03:04:05Z", "--run date: %q is no time", s)
	}
	return nil
}

func runVariableNames() []string {
	names := make([]string, len(variables))
	for i, v := range variables {
		names[i] = v.name
	}
	return names
}

// runVariables returns the run variables of a run that is only thought of, with those of --run.
func runVariables(flags []string) (taskspec.RunVars, error) {
	vars := taskspec.RunVars{
		ID: "r000000000000", Registry: "localhost:7070", SharedVolume: "workspace-r000000000000", OS: "linux", Architecture: "amd64",
		TriggeredBy: "manual", Date: time.Date(2026, time.January, 2, 3, 4, 5, 0, time.UTC),
	}
next:
	for _, kv := range flags {
		k, value, ok := strings.Cut(kv, "=")
		if !ok {
			return vars, usagef("--run "+k+"=VALUE", "--run %q: no value", kv)
		}
		for _, v := range variables {
			if v.name == k {
				if err := v.set(&vars, value); err != nil {
					return vars, err
				}
				continue next
			}
		}
		err := &usageError{err: fmt.Errorf("--run %q: no such variable", k), try: "one of " + strings.Join(runVariableNames(), ", ")}
		if name, ok := nearest(k, runVariableNames()); ok {
			err.try = "--run " + name + "=" + value
		}
		return vars, err
	}
	return vars, nil
}
