package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
)

// runArgument describes RUN in messages and, in runHelpText, in help.
const (
	runArgument = "RUN, a run's ID,"
	runHelpText = "RUN is a run's ID, the beginning of one, or \"latest\"."
)

func newLogsCommand(c *cli) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs [-f] RUN",
		Short: "Print the log of a run",
		Long: "Print the log of a run, one line of output as \"step | text\".\n" + runHelpText +
			"\nWith -f the exit code tells how the run ended.",
		Args:              argument(runArgument),
		ValidArgsFunction: c.completeRun,
		RunE:              func(cmd *cobra.Command, args []string) error { return c.logs(cmd.Context(), args[0], follow) },
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the run ends; interrupting this does not end the run")
	return cmd
}

func (c *cli) logs(ctx context.Context, name string, follow bool) error {
	return c.withRun(ctx, name, func(client *apiclient.Client, id string) error {
		r, err := client.Run(ctx, id)
		if err != nil {
			return err
		}
		v := &view{display: render.NewPlain(c.Out)}
		v.run(r) // when the steps began and ended, so that these lines come in their places
		client.Lost = func(err error) { c.say("connection lost, trying again: " + err.Error()) }
		lines := false
		err = client.Follow(ctx, id, "", follow, func(e apiclient.StreamEvent) error {
			lines = lines || e.Log != nil
			return v.event(e)
		})
		v.display.Close()
		if err == nil && !lines && v.last.LogEnd > 0 {
			c.say("the log of run " + id + " is past retention: `kiln serve --keep-logs` says how long logs are kept")
		}
		switch {
		case errors.Is(err, context.Canceled):
			return nil
		case err != nil || !follow:
			return err
		}
		return outcome(v.last)
	})
}
