package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/run"
)

type taskRunFlags struct {
	runFlags
	ask        apiclient.TaskRun
	set        []string
	setSecrets []string
	args       []string
}

func newTaskRunCommand(c *cli) *cobra.Command {
	var f taskRunFlags
	cmd := &cobra.Command{
		Use:   "run [flags] NAME",
		Short: "Run a task now",
		Long: "Run a task now, whether it is due or not, and follow the run. What is given here holds for this run only;\n" +
			"values and arguments are set before those of the task. A disabled task is run only with --force.",
		Example: "  kiln task run web\n  kiln task run web --commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904 --no-push",
	}
	name := c.forTask(cmd)
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.ask.Commit, "commit", "", "`hash` of the commit to run, instead of the newest one")
	fl.StringVarP(&f.ask.File, "file", "f", "", "`path` of another Dockerfile or task file in the source")
	fl.StringArrayVar(&f.set, "set", nil, "set a value `K=V` for .Values.K; may be repeated")
	fl.StringArrayVar(&f.setSecrets, "set-secret", nil, "set a secret value `K[=V]` for .Values.K; without =V, the safe form, it takes the environment variable K; may be repeated")
	fl.StringArrayVar(&f.args, "arg", nil, "set a build argument `K[=V]`; without =V it takes the environment variable K; may be repeated")
	fl.StringVar(&f.ask.Target, "target", "", "build this `stage` of the Dockerfile")
	fl.BoolVar(&f.ask.NoPush, "no-push", false, "publish nothing")
	fl.BoolVar(&f.ask.Force, "force", false, "run it even if it is disabled")
	fl.BoolVar(&f.noWait, "no-wait", false, "print the run's ID and do not wait for its end")
	f.addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		return c.runStored(cmd.Context(), name, &f)
	}
	return cmd
}

// runStored runs a task of the server.
func (c *cli) runStored(ctx context.Context, name string, f *taskRunFlags) error {
	if err := assign(&f.ask.Set, "--set", f.set, "V"); err != nil {
		return err
	}
	args, err := c.keyValues("--arg", f.args)
	if err != nil {
		return err
	}
	if err := assign(&f.ask.Args, "--arg", args, "V"); err != nil {
		return err
	}
	if f.ask.Secrets, err = c.secrets("--set-secret", f.setSecrets); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	patient, cancel := lingering(ctx)
	defer cancel()
	r, err := client.RunTask(patient, name, f.ask)
	if err != nil {
		return err
	}
	return c.finish(ctx, client, r, f.runFlags)
}

func newTaskLogsCommand(c *cli) *cobra.Command {
	var follow bool
	var id, image string
	cmd := &cobra.Command{
		Use:   "logs [-f] NAME",
		Short: "Print the log of a task's newest run",
		Long: "Print the log of the newest run of a task, of the newest run that published an image, or of a run.\n" +
			"With -f the exit code tells how the run ended.",
		Example: "  kiln task logs web\n  kiln task logs -f --run-id r1a2b3c4d5e6",
	}
	name := c.forTask(cmd)
	cmd.Flags().StringVar(&id, "run-id", "", "`RUN` whose log is printed")
	cmd.Flags().StringVar(&image, "image", "", "`reference` of an image; the newest run that published it is meant")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the run ends; interrupting this does not end the run")
	_ = cmd.RegisterFlagCompletionFunc("run-id", c.completeRun)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if id != "" {
			return c.logs(cmd.Context(), id, follow)
		}
		task := ""
		if image == "" || len(args) > 0 || cmd.Flags().Changed("name") {
			var err error
			if task, err = name(args); err != nil {
				return err
			}
		}
		newest, err := c.newestRun(cmd.Context(), task, image)
		if err != nil {
			return err
		}
		return c.logs(cmd.Context(), newest, follow)
	}
	return cmd
}

// newestRun returns the ID of the newest run of a task, if one is named, that published an image, if one is.
func (c *cli) newestRun(ctx context.Context, name, image string) (string, error) {
	client, err := c.client()
	if err != nil {
		return "", err
	}
	if name != "" {
		if _, err := client.Task(ctx, name); err != nil {
			return "", err
		}
	}
	runs, err := client.Runs(ctx, apiclient.RunsQuery{Task: name, Image: image, Limit: 1})
	switch {
	case err != nil:
		return "", err
	case len(runs) == 0 && image != "":
		return "", usagef("kiln task list-runs", "no run has published %s", image)
	case len(runs) == 0:
		return "", usagef("kiln task run "+name, "task %q has not been run yet", name)
	}
	return runs[0].ID, nil
}

type listRunsFlags struct {
	query        apiclient.RunsQuery
	since, until string
	output       outputFlag
}

func newTaskListRunsCommand(c *cli) *cobra.Command {
	f := listRunsFlags{output: outputFlag{allowed: []string{"table", "json"}, value: "table"}}
	cmd := &cobra.Command{
		Use:     "list-runs [flags] [NAME]",
		Short:   "List the runs of a task, or of all, newest first",
		Long:    "List the runs of a task, newest first; without a name those of all tasks, and runs of no task.\nA run must have all that is given.",
		Example: "  kiln task list-runs web --run-status Failed --since 24h\n  kiln task list-runs --image web:latest",
	}
	name := c.forTask(cmd)
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.IntVar(&f.query.Limit, "top", 15, "list at most this many")
	fl.StringArrayVar(&f.query.Status, "run-status", nil, "only runs in this `state`; may be repeated")
	fl.StringVar(&f.query.Cause, "trigger", "", "only runs of this `cause`: manual, rerun, commit, pull-request, base-image or timer")
	fl.StringVar(&f.since, "since", "", "only runs created since a `time`, such as 24h or 2026-01-02T15:04:05Z")
	fl.StringVar(&f.until, "until", "", "only runs created before a `time`")
	fl.StringVar(&f.query.Image, "image", "", "only runs that published this `reference`: REPOSITORY, REPOSITORY:TAG or REPOSITORY@DIGEST")
	fl.StringVar(&f.query.Commit, "commit", "", "only runs of a commit whose `hash` begins so")
	fl.StringVar(&f.query.Branch, "branch", "", "only runs of this `branch` or tag")
	fl.StringVar(&f.query.Base, "base", "", "only runs that used this base `image`, or that it made due")
	fl.VarP(&f.output, "output", "o", "format")
	_ = cmd.RegisterFlagCompletionFunc("run-status", cobra.FixedCompletions(runStates, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("trigger", cobra.FixedCompletions(runCauses, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 || cmd.Flags().Changed("name") {
			var err error
			if f.query.Task, err = name(args); err != nil {
				return err
			}
		}
		return c.listTaskRuns(cmd.Context(), &f)
	}
	return cmd
}

// States and causes that a list can be filtered by.
var (
	runStates = []cobra.Completion{string(run.Queued), string(run.Started), string(run.Running), string(run.Succeeded), string(run.Failed),
		string(run.Canceled), string(run.Error), string(run.Timeout)}
	runCauses = []cobra.Completion{run.CauseManual, run.CauseRerun, run.CauseCommit, run.CausePull, run.CauseBase, run.CauseTimer}
)

func (c *cli) listTaskRuns(ctx context.Context, f *listRunsFlags) error {
	if f.query.Limit < 1 || f.query.Limit > 1000 {
		return usagef("--top 15", "--top %d: want 1 to 1000", f.query.Limit)
	}
	if err := oneOfWords("--run-status", f.query.Status, runStates); err != nil {
		return err
	}
	if f.query.Cause != "" {
		word := []string{f.query.Cause}
		if err := oneOfWords("--trigger", word, runCauses); err != nil {
			return err
		}
		f.query.Cause = word[0]
	}
	now := time.Now()
	var err error
	if f.query.Since, err = pastTime("--since", f.since, now); err != nil {
		return err
	}
	if f.query.Until, err = pastTime("--until", f.until, now); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	runs, err := client.Runs(ctx, f.query)
	if err != nil {
		return err
	}
	if f.output.json() {
		return c.printJSON(apiclient.Runs{Runs: append([]run.Run{}, runs...)})
	}
	w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "RUN\tTASK\tPLATFORM\tSTATUS\tTRIGGER\tCREATED\tDURATION")
	for _, r := range runs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s ago\t%s\n", r.ID, render.Clean(r.Task), render.Clean(r.Spec.Platform), r.State,
			render.Clean(r.Cause.Kind), age(now.Sub(r.Created)), duration(r, now))
	}
	return w.Flush()
}

// oneOfWords brings words into their usual case and refuses those that are not known.
func oneOfWords(flag string, words []string, known []string) error {
next:
	for i, word := range words {
		for _, k := range known {
			if strings.EqualFold(word, k) {
				words[i] = k
				continue next
			}
		}
		try := flag + " " + strings.Join(known, "|")
		if k, ok := nearest(word, known); ok {
			try = flag + " " + k
		}
		return usagef(try, "%s %q is not known", flag, word)
	}
	return nil
}

// pastTime reads a time, or how long ago it was. Nothing is the zero time.
func pastTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef(flag+" 24h, or "+flag+" 2026-01-02T15:04:05Z", "%s %q is no time", flag, s)
}

func newTaskShowRunCommand(c *cli) *cobra.Command {
	cmd := newShowCommand(c)
	cmd.Use, cmd.Short = "show-run [flags] RUN", "Show all about a run of a task"
	return withRunID(c, cmd)
}

func newTaskCancelRunCommand(c *cli) *cobra.Command {
	cmd := newCancelCommand(c)
	cmd.Use, cmd.Short = "cancel-run RUN", "End a run of a task"
	return withRunID(c, cmd)
}

// withRunID lets a command that takes a RUN take it as --run-id too.
func withRunID(c *cli, cmd *cobra.Command) *cobra.Command {
	var id string
	cmd.Flags().StringVar(&id, "run-id", "", "`RUN`, in place of the argument")
	_ = cmd.RegisterFlagCompletionFunc("run-id", c.completeRun)
	take, execute := cmd.Args, cmd.RunE
	complete := func(args []string) []string {
		if id != "" {
			return append(args, id)
		}
		return args
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error { return take(cmd, complete(args)) }
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return execute(cmd, complete(args)) }
	return cmd
}
