package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/task"
)

func newTaskCommand(c *cli) *cobra.Command {
	cmd := group("task", "Manage tasks: what is built from which source, and what makes it due",
		"Manage tasks. A task says what is executed (a Dockerfile or task file of a source, or a task file of its\n"+
			"own) and what makes it due: commits, base images that move, times. \"kiln apply\" does the same from files.")
	cmd.AddCommand(newTaskCreateCommand(c), newTaskUpdateCommand(c), newTaskShowCommand(c), newTaskListCommand(c),
		newTaskDeleteCommand(c), newTaskRunCommand(c), newTaskLogsCommand(c), newTaskListRunsCommand(c),
		newTaskShowRunCommand(c), newTaskCancelRunCommand(c), newRerunCommand(c), newTaskTimerCommand(c), newTaskCredentialCommand(c))
	return cmd
}

// group returns a command that has subcommands only.
func group(use, short, long string) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Long: long, Args: unknownSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
}

// unknownSubcommand refuses arguments of a group: each would be a command.
func unknownSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, sub := range cmd.Commands() {
		names = append(names, sub.Name())
	}
	try := cmd.CommandPath() + " --help"
	if name, ok := nearest(args[0], names); ok {
		try = cmd.CommandPath() + " " + name
	}
	return usagef(try, "unknown command %q", strings.TrimPrefix(cmd.CommandPath()+" "+args[0], "kiln "))
}

// forTask lets a command take the name of a task, as its argument or as --name, and returns how to read it.
func (c *cli) forTask(cmd *cobra.Command) func(args []string) (string, error) {
	var flag string
	cmd.Flags().StringVarP(&flag, "name", "n", "", "`NAME` of the task, in place of the argument")
	_ = cmd.RegisterFlagCompletionFunc("name", c.completeTask)
	cmd.Args = cobra.ArbitraryArgs
	cmd.ValidArgsFunction = c.completeTask
	return func(args []string) (string, error) {
		help := cmd.CommandPath() + " --help"
		switch {
		case len(args) > 1 || len(args) == 1 && flag != "":
			return "", usagef(help, "%q: only one task can be named", args[len(args)-1])
		case len(args) == 1:
			flag = args[0]
		case flag == "":
			return "", usagef(help, "NAME, the name of a task, is missing")
		}
		if err := task.ValidName(flag); err != nil {
			return "", usagef("kiln task list", "name of the task: %w", err)
		}
		return flag, nil
	}
}

// completeTask proposes the names of tasks.
func (c *cli) completeTask(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	client, err := c.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	tasks, err := client.Tasks(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, t := range tasks {
		if strings.HasPrefix(task.NameKey(t.Task.Name), task.NameKey(prefix)) {
			names = append(names, t.Task.Name+"\t"+render.Clean(t.Task.Context))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func newTaskShowCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "yaml", "json"}, value: "table"}
	cmd := &cobra.Command{
		Use:     "show [flags] NAME",
		Short:   "Show a task",
		Long:    "Show a task. With -o yaml it is printed as \"kiln apply\" takes it. Secrets are shown by name; nothing prints their values.",
		Example: "  kiln task show web\n  kiln task show web -o yaml >web.yaml",
	}
	name := c.forTask(cmd)
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
		return c.printTask(t, output.value)
	}
	cmd.Flags().VarP(&output, "output", "o", "format")
	return cmd
}

// printTask prints a task in a format.
func (c *cli) printTask(t apiclient.Task, format string) error {
	switch format {
	case "json":
		return c.printJSON(t)
	case "yaml":
		text, err := task.Encode(&t.Task)
		if err != nil {
			return err
		}
		_, err = c.Out.Write(text)
		return err
	}
	showTask(c.Out, t.Task)
	return nil
}

// showTask prints a task for a person.
func showTask(out io.Writer, t task.Task) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	defer w.Flush()
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", name, render.Clean(value))
		}
	}
	field("Task", t.Name)
	field("UID", t.UID)
	field("Status", string(t.Status))
	field("Context", t.Context)
	field("Context secret", t.ContextSecret)
	field("Executes", executes(t))
	if b := t.Step.Build; b != nil {
		field("Images", strings.Join(b.Images, ", "))
		field("Target", b.Target)
	}
	field("Platform", t.Platform)
	field("Timeout", t.Timeout.String())
	if t.CPU > 0 {
		field("CPU", fmt.Sprint(t.CPU))
	}
	if t.Memory > 0 {
		field("Memory", t.Memory.String())
	}
	if t.AllowPrivileged {
		field("Privileged", "allowed")
	}
	field("Pool", t.Pool)
	field("Secrets", strings.Join(t.Secrets(), ", "))
	field("Created", clock(t.Created))
	field("Updated", clock(t.Updated))
	fmt.Fprint(w, "\nTRIGGER\tKIND\tSTATUS\tWHEN\n")
	for _, s := range t.Triggers.Source {
		fmt.Fprintf(w, "%s\tsource\t%s\t%s\n", s.Name, s.Status, render.Clean(whenSource(s)))
	}
	b := t.Triggers.BaseImage
	fmt.Fprintf(w, "%s\tbase image\t%s\t%s\n", b.Name, b.Status, strings.ToLower(string(b.Type))+" base images move")
	for _, timer := range t.Triggers.Timers {
		fmt.Fprintf(w, "%s\ttimer\t%s\t%s %s\n", timer.Name, timer.Status, timer.Schedule, timer.TimeZone)
	}
	if len(t.Credentials) > 0 {
		fmt.Fprint(w, "\nLOGIN SERVER\tUSER\tSECRETS\n")
	}
	for _, cred := range t.Credentials {
		fmt.Fprintf(w, "%s\t%s\t%s\n", cred.Server, render.Clean(cred.Username), credentialSecrets(cred))
	}
}

// executes says in a few words what a task executes.
func executes(t task.Task) string {
	switch {
	case t.Step.Build != nil:
		return "build of " + t.Step.Build.Dockerfile
	case t.Step.File != nil:
		return "task file " + t.Step.File.Path
	}
	return "task file of its own"
}

// whenSource says in a few words when a source trigger fires.
func whenSource(s task.SourceTrigger) string {
	var events []string
	for _, e := range s.Events {
		events = append(events, string(e))
	}
	text := strings.Join(events, ", ")
	for _, filter := range []struct {
		name  string
		globs task.Globs
	}{{"branches", s.Branches}, {"tags", s.Tags}, {"paths", s.Paths}} {
		if len(filter.globs) > 0 {
			text += "; " + filter.name + " " + strings.Join(filter.globs, " ")
		}
	}
	return text
}

func newTaskListCommand(c *cli) *cobra.Command {
	return newListCommand(c, listing[apiclient.Task]{
		use: "list [flags]", short: "List the tasks",
		get:      (*apiclient.Client).Tasks,
		document: func(all []apiclient.Task) any { return apiclient.Tasks{Tasks: all} },
		header:   "NAME\tSTATUS\tPLATFORM\tTRIGGERS\tUPDATED\tEXECUTES\tCONTEXT",
		row: func(w io.Writer, t apiclient.Task) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s ago\t%s\t%s\n", t.Task.Name, t.Task.Status, t.Task.Platform, triggerKinds(t.Task),
				age(time.Since(t.Task.Updated)), render.Clean(executes(t.Task)), render.Clean(t.Task.Context))
		},
	})
}

// triggerKinds names the kinds of triggers that are enabled.
func triggerKinds(t task.Task) string {
	var kinds []string
	for _, s := range t.Triggers.Source {
		if s.Status == task.Enabled {
			kinds = append(kinds, "source")
			break
		}
	}
	if t.Triggers.BaseImage.Status == task.Enabled {
		kinds = append(kinds, "base-image")
	}
	for _, timer := range t.Triggers.Timers {
		if timer.Status == task.Enabled {
			kinds = append(kinds, "timer")
			break
		}
	}
	if len(kinds) == 0 {
		return "-"
	}
	return strings.Join(kinds, ",")
}

func newTaskDeleteCommand(c *cli) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete [flags] NAME",
		Short: "Delete a task; its runs are kept",
		Long:  "Delete a task. Runs that it has had are kept, and those that are queued or executed go on.",
	}
	name := c.forTask(cmd)
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
		if err := c.confirm(yes, fmt.Sprintf("Delete task %q?", t.Task.Name)); err != nil {
			return err
		}
		if _, err := client.DeleteTask(cmd.Context(), t.Task.Name, t.Revision); err != nil {
			return err
		}
		fmt.Fprintf(c.Out, "deleted %s\n", t.Task.Name)
		return nil
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// confirm asks a person a question whose answer is to be yes. Where nobody can be asked it wants --yes.
func (c *cli) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	f, ok := c.In.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return usagef("--yes", "%s Nobody can be asked: standard input is no terminal", question)
	}
	fmt.Fprintf(c.Err, "%s [y/N] ", render.Clean(question))
	answer, err := bufio.NewReader(io.LimitReader(f, 100)).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return usagef("", "nothing was done")
	}
	return nil
}

// warn prints what is doubtful about a task.
func (c *cli) warn(problems []apiclient.Problem) {
	for _, p := range problems {
		c.say("warning: " + p.String())
	}
}

// editTask changes a task as it is now. Somebody else's change meanwhile is not overwritten.
func (c *cli) editTask(ctx context.Context, name string, edit func(*task.Task) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	t, err := client.Task(ctx, name)
	if err != nil {
		return err
	}
	if err := edit(&t.Task); err != nil {
		return err
	}
	return c.storeTask(ctx, client, t)
}

// storeTask replaces a task of which the revision was read, and says what has become of it.
func (c *cli) storeTask(ctx context.Context, client *apiclient.Client, t apiclient.Task) error {
	stored, err := client.ReplaceTask(ctx, t.Task.Name, t.Task, t.Revision, false)
	if err != nil {
		return err
	}
	c.warn(stored.Warnings)
	verb := "updated"
	if stored.Revision == t.Revision {
		verb = "unchanged"
	}
	fmt.Fprintf(c.Out, "%s %s\n", verb, stored.Task.Name)
	return nil
}
