package main

import (
	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
)

const rerunHelp = `Execute again what a run executed, as a new run.

A run of "kiln build" or "kiln run" is repeated with the same source, task and values. A run of a task is
repeated exactly, with its commit, its base images and what was given to it alone (--pinned); or the task is
executed as it is defined now, with the commit and base images of now (--fresh).
`

func newRerunCommand(c *cli) *cobra.Command {
	var f runFlags
	var pinned, fresh bool
	cmd := &cobra.Command{
		Use:               "rerun [flags] RUN",
		Short:             "Execute a run again",
		Long:              rerunHelp + runHelpText,
		Args:              argument(runArgument),
		ValidArgsFunction: c.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			if pinned && fresh {
				return usagef(cmd.CommandPath()+" --help", "--pinned and --fresh exclude each other")
			}
			return c.withRun(cmd.Context(), args[0], func(client *apiclient.Client, id string) error {
				patient, cancel := lingering(cmd.Context())
				defer cancel()
				r, err := client.Rerun(patient, id, fresh)
				if err != nil {
					return err
				}
				return c.finish(cmd.Context(), client, r, f)
			})
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().BoolVar(&pinned, "pinned", false, "use the commit and base images of that run again (the default)")
	cmd.Flags().BoolVar(&fresh, "fresh", false, "ask the task of that run anew")
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "print the new run's ID and do not wait for its end")
	return cmd
}
