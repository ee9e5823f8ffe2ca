package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/secret"

	"github.com/spf13/cobra"
)

func newWorkerCommand(c *cli) *cobra.Command {
	cfg := serveConfig{roles: []role{roleWorker}, apart: true}
	cmd := &cobra.Command{
		Use:   "worker --nats URL [flags]",
		Short: "Execute runs for a server on another host, and keep workers",
		Long: "Execute runs for a server elsewhere. A worker needs to reach the server's NATS servers, its registry, whose\n" +
			"address it finds there, and a BuildKit daemon, its own unless --buildkit names one. It keeps nothing that\n" +
			"is not elsewhere too. At SIGTERM it takes no more runs and gives those in hand the time of --grace; then\n" +
			"it hands them back.",
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := c.settle(cmd, &cfg); err != nil {
				return err
			}
			return c.serve(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	addConfigFlag(f)
	cfg.nats.addRemote(f)
	cfg.addWorker(f)
	cfg.steps.add(f)
	f.StringVar(&cfg.listen, "listen", "", "address to tell of the worker's health at (default: none)")
	cfg.addLog(f)
	cmd.AddCommand(newWorkerListCommand(c), newWorkerDrainCommand(c, true), newWorkerDrainCommand(c, false))
	return cmd
}

// validateApart reports everything that is wrong with the settings of kiln worker.
func (cfg *serveConfig) validateApart() error {
	var errs []error
	if !cfg.nats.others() {
		errs = append(errs, errors.New("--nats is missing: it says where the server's messages and state are"))
	}
	for _, v := range cfg.steps.vaults {
		if _, kind, _, err := secret.ParseVault(v); err == nil && kind == "store" {
			errs = append(errs, fmt.Errorf("--vault %s: a worker has not got the key of the server's secrets; use env:PREFIX or file:DIR instead", v))
		}
	}
	return errors.Join(append(errs, cfg.validateWorker())...)
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
