package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"kiln/internal/buildkit/daemon"
)

// buildkitdCommand is the command that a server executes as its own build daemon.
const buildkitdCommand = "buildkitd"

func newBuildkitdCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:    buildkitdCommand,
		Short:  "Run the build daemon of a server (started by kiln serve)",
		Hidden: true,
		Args:   noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewJSONHandler(c.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
			ctx, stop := context.WithCancel(cmd.Context())
			defer stop()
			go giveBack(ctx)
			return daemon.Child(ctx, c.In, log)
		},
	}
}
