package main

import (
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kiln/internal/task"
)

func newTaskTimerCommand(c *cli) *cobra.Command {
	cmd := group("timer", "Manage the timers of a task", "Manage the timers of a task: times at which it is due.")
	cmd.AddCommand(newTimerAddCommand(c), newTimerUpdateCommand(c), newTimerRemoveCommand(c), newTimerListCommand(c))
	return cmd
}

type timerFlags struct {
	name     string
	schedule string
	timeZone string
	catchUp  string
	enabled  switchFlag
}

func (f *timerFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.name, "timer-name", "", "`NAME` of the timer")
	fl.StringVar(&f.schedule, "schedule", "", "when it is due: a cron expression of five fields, such as `'0 2 * * mon-fri'`")
	fl.StringVar(&f.timeZone, "time-zone", "UTC", "time zone of the schedule, such as `Europe/Berlin`")
	fl.StringVar(&f.catchUp, "catch-up", string(task.CatchUpOne), "what becomes of times that passed while the server was down: `One` run for all of them, or None")
	f.enabled = true
	fl.Var(&f.enabled, "enabled", "whether it acts")
}

// apply sets what was given, or everything if the timer is new.
func (f *timerFlags) apply(cmd *cobra.Command, timer *task.Timer, isNew bool) {
	given := func(flag string) bool { return isNew || cmd.Flags().Changed(flag) }
	if given("schedule") {
		timer.Schedule = f.schedule
	}
	if given("time-zone") {
		timer.TimeZone = f.timeZone
	}
	if given("catch-up") {
		timer.CatchUp = task.CatchUp(f.catchUp)
	}
	if given("enabled") {
		timer.Status = statusOf(f.enabled)
	}
}

func statusOf(enabled switchFlag) task.Status {
	if enabled {
		return task.Enabled
	}
	return task.Disabled
}

// required reports a flag that has to be given.
func required(cmd *cobra.Command, flags ...string) error {
	for _, name := range flags {
		if f := cmd.Flags().Lookup(name); f.Value.String() == "" {
			return usagef(cmd.CommandPath()+" --help", "--%s is missing", name)
		}
	}
	return nil
}

func newTimerAddCommand(c *cli) *cobra.Command {
	var f timerFlags
	cmd := &cobra.Command{
		Use:     "add [flags] NAME",
		Short:   "Add a timer to a task",
		Example: "  kiln task timer add web --timer-name nightly --schedule '0 2 * * *' --time-zone Europe/Berlin",
	}
	name := c.forTask(cmd)
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		if err := required(cmd, "timer-name", "schedule"); err != nil {
			return err
		}
		return c.editTask(cmd.Context(), name, func(t *task.Task) error {
			if _, exists := t.Timer(f.name); exists {
				return usagef("kiln task timer update", "task %q has a timer %q already", t.Name, f.name)
			}
			timer := task.Timer{Name: f.name}
			f.apply(cmd, &timer, true)
			t.Triggers.Timers = append(t.Triggers.Timers, timer)
			return nil
		})
	}
	return cmd
}

func newTimerUpdateCommand(c *cli) *cobra.Command {
	var f timerFlags
	cmd := &cobra.Command{
		Use:     "update [flags] NAME",
		Short:   "Change a timer of a task",
		Example: "  kiln task timer update web --timer-name nightly --enabled=false",
	}
	name := c.forTask(cmd)
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		if err := required(cmd, "timer-name"); err != nil {
			return err
		}
		return c.editTask(cmd.Context(), name, func(t *task.Task) error {
			i, err := findTimer(t, f.name)
			if err == nil {
				f.apply(cmd, &t.Triggers.Timers[i], false)
			}
			return err
		})
	}
	return cmd
}

func newTimerRemoveCommand(c *cli) *cobra.Command {
	var timer string
	cmd := &cobra.Command{Use: "remove [flags] NAME", Short: "Remove a timer from a task",
		Example: "  kiln task timer remove web --timer-name nightly"}
	name := c.forTask(cmd)
	cmd.Flags().StringVar(&timer, "timer-name", "", "`NAME` of the timer")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		if err := required(cmd, "timer-name"); err != nil {
			return err
		}
		return c.editTask(cmd.Context(), name, func(t *task.Task) error {
			i, err := findTimer(t, timer)
			if err == nil {
				t.Triggers.Timers = slices.Delete(t.Triggers.Timers, i, i+1)
			}
			return err
		})
	}
	return cmd
}

func findTimer(t *task.Task, name string) (int, error) {
	i := slices.IndexFunc(t.Triggers.Timers, func(timer task.Timer) bool { return timer.Name == name })
	if i < 0 {
		return 0, usagef("kiln task timer list "+t.Name, "task %q has no timer %q", t.Name, name)
	}
	return i, nil
}

func newTimerListCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	cmd := &cobra.Command{Use: "list [flags] NAME", Short: "List the timers of a task"}
	name := c.forTask(cmd)
	cmd.Flags().VarP(&output, "output", "o", "format")
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
		timers := t.Task.Triggers.Timers
		if output.json() {
			return c.printJSON(append([]task.Timer{}, timers...))
		}
		w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, "NAME\tSTATUS\tSCHEDULE\tTIME ZONE\tCATCH UP")
		for _, timer := range timers {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", timer.Name, timer.Status, timer.Schedule, timer.TimeZone, timer.CatchUp)
		}
		return w.Flush()
	}
	return cmd
}
