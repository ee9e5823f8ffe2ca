package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"

	"github.com/spf13/cobra"
)

func newWorkerCommand(c *cli) *cobra.Command {
	var cfg serveConfig
	cmd := &cobra.Command{
		Use:   "worker --nats URL [flags]",
		Short: "Execute runs for a server on another host, and keep workers",
		Long: "Execute runs for a server elsewhere. A worker needs to reach the server's NATS servers, its registry, whose\n" +
			"address it finds there, and a BuildKit daemon, its own unless --buildkit names one. It keeps nothing that\n" +
			"is not elsewhere too. At SIGTERM it takes no more runs and gives those in hand the time of --grace; then\n" +
			"it hands them back.",
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := c.settle(cmd, &cfg, cfg.validateApart); err != nil {
				return err
			}
			return c.serve(cmd.Context(), cfg)
		},
	}
	cfg.addApart(cmd.Flags())
	cmd.AddCommand(newWorkerListCommand(c), newWorkerDrainCommand(c, true), newWorkerDrainCommand(c, false), newWorkerConfigCommand(c))
	return cmd
}

func newWorkerListCommand(c *cli) *cobra.Command {
	return newListCommand(c, listing[apiclient.Worker]{
		use: "list", short: "List the workers",
		get:      (*apiclient.Client).Workers,
		document: func(all []apiclient.Worker) any { return apiclient.Workers{Workers: all} },
		header:   "NAME\tSTATE\tPOOL\tRUNS\tPLATFORMS\tBUILDKIT\tREASON",
		row: func(w io.Writer, k apiclient.Worker) {
			platforms := k.Platforms
			if len(platforms) > 2 {
				platforms = append(slices.Clone(platforms[:2]), "...")
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d/%d\t%s\t%s\t%s\n", k.Name, k.State, orDash(k.Pool), len(k.Runs), k.Parallel,
				orDash(strings.Join(platforms, ",")), orDash(k.BuildKit), render.Clean(orDash(k.Reason)))
		},
	})
}

func newWorkerDrainCommand(c *cli, drain bool) *cobra.Command {
	use, short, long := "undrain WORKER", "Give a worker runs again", "Give a worker runs again that was drained."
	if drain {
		use, short = "drain WORKER", "Give a worker no more runs"
		long = "Give a worker no more runs; it finishes those that it has in hand. That holds until kiln worker undrain, also\nwhen the worker is started again."
	}
	return &cobra.Command{
		Use: use, Short: short, Long: long, Args: argument("worker (its name)"), ValidArgsFunction: c.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			w, err := client.DrainWorker(cmd.Context(), args[0], drain)
			if err == nil {
				c.say(fmt.Sprintf("worker %s: %s, %s in hand", w.Name, w.State, count(int64(len(w.Runs)), "run")))
			}
			return err
		},
	}
}

func (c *cli) completeWorker(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := c.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	workers, err := client.Workers(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, w := range workers {
		names = append(names, w.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
