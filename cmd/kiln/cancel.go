package main

import (
	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
)

func newCancelCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "cancel RUN",
		Short:             "End a run",
		Long:              "Ask the server to end a run. Its steps get a moment to stop by themselves.\n" + runHelpText,
		Args:              argument(runArgument),
		ValidArgsFunction: c.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRun(cmd.Context(), args[0], func(client *apiclient.Client, id string) error {
				r, err := client.Cancel(cmd.Context(), id)
				if err != nil {
					return err
				}
				if r.State.Final() {
					c.say("run " + r.ID + " had ended: " + string(r.State))
				}
				return nil
			})
		},
	}
}
