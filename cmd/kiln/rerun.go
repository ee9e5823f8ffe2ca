package main

import (
	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
)

func newRerunCommand(c *cli) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:               "rerun [flags] RUN",
		Short:             "Execute a run again",
		Long:              "Execute again what a run executed: the same source, task and values, as a new run.\n" + runHelpText,
		Args:              argument(runArgument),
		ValidArgsFunction: c.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRun(cmd.Context(), args[0], func(client *apiclient.Client, id string) error {
				patient, cancel := lingering(cmd.Context())
				defer cancel()
				r, err := client.Rerun(patient, id)
				if err != nil {
					return err
				}
				return c.finish(cmd.Context(), client, r, f)
			})
		},
	}
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "print the new run's ID and do not wait for its end")
	return cmd
}
