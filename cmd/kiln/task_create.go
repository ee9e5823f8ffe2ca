package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
	"kiln/internal/task"
)

const createHelp = `Create a task.

The source is -c: a git repository URL.git[#REF[:DIRECTORY]], the URL of a tarball, oci://REFERENCE, or
/dev/null for none. A file that ends in .yaml or .yml is a task file, any other a Dockerfile; by default
it is Dockerfile. Without a source, -f is a task file here, which becomes part of the task; - reads it
from standard input. --cmd 'IMAGE [ARG]...' is a task of one command.

A git source is followed: a commit makes the task due. So does a base image that moves. The task holds no
secret values but names of secrets: store those first, with "kiln secret set".`

// A switchFlag is a flag that takes true or false.
type switchFlag bool

func (s *switchFlag) String() string { return strconv.FormatBool(bool(*s)) }

// Set takes true or false.
func (s *switchFlag) Set(v string) error {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return errors.New("want true or false")
	}
	*s = switchFlag(b)
	return nil
}

// Type is what the flag's help shows.
func (s *switchFlag) Type() string { return "true|false" }

// definitionFlags are the flags that say what a task is.
type definitionFlags struct {
	context, contextSecret, gitToken  string
	file, cmd, values                 string
	images, args, secretArgs          []string
	set, setSecrets                   []string
	target, platform, timeout, memory string
	status, pool                      string
	noPush, noCache, privileged       bool
	cpu                               float64
	concurrency                       int

	sourceName, baseName, baseType string
	branches, paths, schedules     []string
	onCommit, onPull, onBase       switchFlag

	output outputFlag
}

func (f *definitionFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVarP(&f.context, "context", "c", "", "source: `URL.git[#REF[:DIRECTORY]]`, the URL of a tarball, oci://REFERENCE or /dev/null")
	fl.StringVar(&f.contextSecret, "context-secret", "", "`SECRET` with the token for the source")
	fl.StringVarP(&f.file, "file", "f", "", "`path` of a Dockerfile, or with .yaml or .yml of a task file, in the source (default Dockerfile)")
	fl.StringVar(&f.cmd, "cmd", "", "execute this one command, `'IMAGE [ARG]...'`, instead of a file")
	fl.StringArrayVarP(&f.images, "image", "t", nil, "publish as `NAME[:TAG]`, such as web:{{.Run.ID}}; may be repeated")
	fl.StringVar(&f.target, "target", "", "build this `stage` of the Dockerfile")
	fl.StringArrayVar(&f.args, "arg", nil, "set a build argument `K=V`; may be repeated")
	fl.StringArrayVar(&f.secretArgs, "secret-arg", nil, "set a build argument from a secret, `K=SECRET`; may be repeated")
	fl.StringArrayVar(&f.set, "set", nil, "set a value `K=V` for .Values.K of a task file; may be repeated")
	fl.StringArrayVar(&f.setSecrets, "set-secret", nil, "set a value for .Values.K from a secret, `K=SECRET`; may be repeated")
	fl.StringVar(&f.values, "values", "", "file of values, in YAML, where the task file is")
	fl.BoolVar(&f.noPush, "no-push", false, "publish nothing")
	fl.BoolVar(&f.noCache, "no-cache", false, "execute every instruction again")
	fl.StringVar(&f.platform, "platform", "", "platform to build for, `os[/arch[/variant]]` (default linux/amd64)")
	fl.StringVar(&f.timeout, "timeout", "", "end a run after this time, such as `90s`, 1h30m or a number of seconds (default 1h)")
	fl.Float64Var(&f.cpu, "cpu", 0, "`cores` that a step gets (default what the worker gives)")
	fl.StringVar(&f.memory, "memory", "", "memory that a step gets, such as `512Mi` or 4Gi (default what the worker gives)")
	fl.BoolVar(&f.privileged, "allow-privileged", false, "let steps have privileged containers; the server must be started with the same option")
	fl.StringVar(&f.pool, "agent-pool", "", "`pool` of workers (default the default one)")
	fl.IntVar(&f.concurrency, "concurrency", 0, "runs of the task executed at once; 0 means any number")
	fl.StringVar(&f.status, "status", "", "`Enabled` or Disabled (default Enabled)")
	f.addTriggers(cmd)
	f.output.allowed = []string{"json", "yaml"}
	fl.VarP(&f.output, "output", "o", "print the task")
}

func (f *definitionFlags) addTriggers(cmd *cobra.Command) {
	fl := cmd.Flags()
	f.onCommit, f.onBase = true, true
	fl.Var(&f.onCommit, "commit-trigger-enabled", "whether commits make the task due")
	fl.Var(&f.onPull, "pull-request-trigger-enabled", "whether pull requests make the task due")
	fl.StringArrayVar(&f.branches, "branch", nil, "`pattern` of branches that are followed (default that of the source); may be repeated")
	fl.StringArrayVar(&f.paths, "path", nil, "`pattern` of files one of which a commit must touch; may be repeated")
	fl.StringVar(&f.sourceName, "source-trigger-name", "", "`name` of the source trigger (default "+task.DefaultSourceName+")")
	fl.Var(&f.onBase, "base-image-trigger-enabled", "whether base images make the task due")
	fl.StringVar(&f.baseType, "base-image-trigger-type", "", "`Runtime` for the base of the image, or All for those of build stages too (default Runtime)")
	fl.StringVar(&f.baseName, "base-image-trigger-name", "", "`name` of the base image trigger (default "+task.DefaultBaseImageName+")")
	fl.StringVar(&f.gitToken, "git-access-token", "", "refused: use --context-secret")
	_ = fl.MarkHidden("git-access-token")
}

func newTaskCreateCommand(c *cli) *cobra.Command {
	var f definitionFlags
	cmd := &cobra.Command{
		Use:   "create [flags] NAME",
		Short: "Create a task",
		Long:  createHelp,
		Example: "  kiln task create web -c https://git.example/team/web.git#main -t 'web:{{.Run.ID}}' -t web:latest\n" +
			"  kiln task create ci -c https://git.example/team/web.git -f ci/task.yaml --schedule 'nightly:0 2 * * *'\n" +
			"  kiln task create hello -c /dev/null --cmd 'alpine echo hello' --schedule '*/5 * * * *'",
	}
	name := c.forTask(cmd)
	f.add(cmd)
	cmd.Flags().StringArrayVar(&f.schedules, "schedule", nil, "a timer, `[NAME:]CRON`; may be repeated")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		return c.createTask(cmd, &f, name)
	}
	return cmd
}

func (c *cli) createTask(cmd *cobra.Command, f *definitionFlags, name string) error {
	t := task.Task{Name: name}
	if err := c.define(cmd, f, &t, true); err != nil {
		return err
	}
	for _, s := range f.schedules {
		timer := task.Timer{Schedule: s}
		if before, after, named := strings.Cut(s, ":"); named {
			timer = task.Timer{Name: before, Schedule: after}
		}
		t.Triggers.Timers = append(t.Triggers.Timers, timer)
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if err := f.checkSecrets(cmd.Context(), client); err != nil {
		return err
	}
	created, err := client.CreateTask(cmd.Context(), t, false)
	if err != nil {
		return err
	}
	c.warn(created.Warnings)
	if f.output.value != "" {
		return c.printTask(created, f.output.value)
	}
	fmt.Fprintf(c.Out, "created %s\n", created.Task.Name)
	return nil
}

func newTaskUpdateCommand(c *cli) *cobra.Command {
	var f definitionFlags
	cmd := &cobra.Command{
		Use:   "update [flags] NAME",
		Short: "Change a task",
		Long: "Change what is given of a task; the rest stays. --arg, --secret-arg, --set and --set-secret set the\n" +
			"values they name and keep the others; -t, --branch and --path replace the whole list. Timers and credentials\n" +
			"have commands of their own. To take something away, edit what \"kiln task show -o yaml\" prints and\n" +
			"give it to \"kiln apply\".\n\nIf somebody else changes the task at the same time, nothing is stored and the exit code is 2.",
		Example: "  kiln task update web --status Disabled\n  kiln task update web -t web:{{.Run.ID}} --platform linux/arm64",
	}
	name := c.forTask(cmd)
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		client, err := c.client()
		if err != nil {
			return err
		}
		t, err := client.Task(cmd.Context(), name)
		if err != nil {
			return err
		}
		if err := c.define(cmd, &f, &t.Task, false); err != nil {
			return err
		}
		if err := f.checkSecrets(cmd.Context(), client); err != nil {
			return err
		}
		if f.output.value == "" {
			return c.storeTask(cmd.Context(), client, t)
		}
		stored, err := client.ReplaceTask(cmd.Context(), name, t.Task, t.Revision, false)
		if err != nil {
			return err
		}
		c.warn(stored.Warnings)
		return c.printTask(stored, f.output.value)
	}
	return cmd
}

// checkSecrets refuses names of secrets that are none: they might be values, typed in the wrong place. So
// it does not repeat them.
func (f *definitionFlags) checkSecrets(ctx context.Context, client *apiclient.Client) error {
	var given []struct{ flag, name string }
	if f.contextSecret != "" {
		given = append(given, struct{ flag, name string }{"--context-secret", f.contextSecret})
	}
	for _, list := range []struct {
		flag string
		kvs  []string
	}{{"--secret-arg", f.secretArgs}, {"--set-secret", f.setSecrets}} {
		for _, kv := range list.kvs {
			k, name, _ := strings.Cut(kv, "=")
			given = append(given, struct{ flag, name string }{list.flag + " " + k, name})
		}
	}
	if len(given) == 0 {
		return nil
	}
	secrets, err := client.Secrets(ctx)
	if err != nil {
		return err
	}
	for _, g := range given {
		if !slices.ContainsFunc(secrets, func(s apiclient.Secret) bool { return s.Name == g.name }) {
			return usagef("kiln secret set NAME <FILE, then "+g.flag+"=NAME", "%s: there is no secret of that name; give the name of a stored secret, not its value", g.flag)
		}
	}
	return nil
}

// define sets the properties of a task that were given, and the defaults of a new one.
func (c *cli) define(cmd *cobra.Command, f *definitionFlags, t *task.Task, isNew bool) error {
	given := cmd.Flags().Changed
	if given("git-access-token") {
		return onCommandLine("--git-access-token", "--context-secret")
	}
	if given("context") {
		t.Context = f.context
		if f.context == noContext {
			t.Context = ""
		}
	} else if isNew {
		return usagef("-c URL.git, or -c /dev/null for no source", "--context is missing")
	}
	if given("context-secret") {
		t.ContextSecret = f.contextSecret
	}
	if err := c.defineStep(cmd, f, t, isNew); err != nil {
		return err
	}
	if err := defineValues(f, t); err != nil {
		return err
	}
	if err := f.defineLimits(given, t); err != nil {
		return err
	}
	f.defineTriggers(given, t, isNew)
	return nil
}

func (f *definitionFlags) defineLimits(given func(string) bool, t *task.Task) error {
	if given("platform") {
		t.Platform = f.platform
	}
	if given("timeout") {
		if err := t.Timeout.UnmarshalText([]byte(f.timeout)); err != nil {
			return usagef("--timeout 1h30m", "--timeout: %w", err)
		}
	}
	if given("memory") {
		if err := t.Memory.UnmarshalText([]byte(f.memory)); err != nil {
			return usagef("--memory 4Gi", "--memory: %w", err)
		}
	}
	if given("cpu") {
		t.CPU = f.cpu
	}
	if given("allow-privileged") {
		t.AllowPrivileged = f.privileged
	}
	if given("agent-pool") {
		t.Pool = f.pool
	}
	if given("concurrency") {
		t.Concurrency = f.concurrency
	}
	if given("status") {
		t.Status = task.Status(f.status)
	}
	return nil
}

func (f *definitionFlags) defineTriggers(given func(string) bool, t *task.Task, isNew bool) {
	b := &t.Triggers.BaseImage
	if given("base-image-trigger-enabled") {
		b.Status = statusOf(f.onBase)
	}
	if given("base-image-trigger-type") {
		b.Type = task.BaseImageType(f.baseType)
	}
	if given("base-image-trigger-name") {
		b.Name = f.baseName
	}
	asked := slices.ContainsFunc([]string{"commit-trigger-enabled", "pull-request-trigger-enabled", "branch", "path", "source-trigger-name"}, given)
	c, err := task.ParseContext(t.Context)
	follow := isNew && err == nil && c.Kind == task.Git && !c.Pinned()
	if !asked && !follow {
		return
	}
	s := f.sourceTrigger(t)
	if s == nil {
		if !f.onCommit && !f.onPull {
			return
		}
		t.Triggers.Source = append(t.Triggers.Source, task.SourceTrigger{Name: f.sourceName})
		s = &t.Triggers.Source[len(t.Triggers.Source)-1]
		s.Events = []task.SourceEvent{} // what the switches say
		f.setEvents(s, true, true)
	} else {
		f.setEvents(s, given("commit-trigger-enabled"), given("pull-request-trigger-enabled"))
	}
	if given("branch") {
		s.Branches = f.branches
	}
	if given("path") {
		s.Paths = f.paths
	}
}

// sourceTrigger returns the source trigger that is meant: the one of that name, or else the first.
func (f *definitionFlags) sourceTrigger(t *task.Task) *task.SourceTrigger {
	for i := range t.Triggers.Source {
		if f.sourceName == "" || t.Triggers.Source[i].Name == f.sourceName {
			return &t.Triggers.Source[i]
		}
	}
	return nil
}

// setEvents makes a trigger act on commits and pull requests, or not. One that acts on nothing is disabled.
func (f *definitionFlags) setEvents(s *task.SourceTrigger, commit, pull bool) {
	if !commit && !pull {
		return
	}
	events := slices.Clone(s.Events)
	set := func(e task.SourceEvent, on switchFlag) {
		events = slices.DeleteFunc(events, func(other task.SourceEvent) bool { return other == e })
		if on {
			events = append(events, e)
		}
	}
	if commit {
		set(task.Push, f.onCommit)
	}
	if pull {
		set(task.PullRequest, f.onPull)
	}
	if len(events) == 0 {
		s.Status = task.Disabled
		return
	}
	s.Status, s.Events = task.Enabled, events
}
