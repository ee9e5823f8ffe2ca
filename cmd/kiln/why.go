package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/triggers/decide"
)

func newWhyCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"json"}}
	cmd := &cobra.Command{
		Use:   "why [flags] RUN|IMAGE",
		Short: "Say why a run or an image exists",
		Long: "Walk from an image to the run that published it, to the decision that made the run due, to the event that\n" +
			"was decided and the delivery that brought it; for a moved base image on to the run that pushed that.\n" +
			"IMAGE is one of the server's registry: REPOSITORY:TAG or REPOSITORY@DIGEST. " + runHelpText,
		Args:              argument("RUN or IMAGE"),
		ValidArgsFunction: c.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			show := func(w apiclient.Why, err error) error {
				switch {
				case err != nil:
					return err
				case output.json():
					return c.printJSON(w)
				}
				showWhy(c.Out, w, "")
				return nil
			}
			if strings.ContainsAny(args[0], ":@/") {
				client, err := c.client()
				if err != nil {
					return err
				}
				return show(client.WhyImage(cmd.Context(), args[0]))
			}
			return c.withRun(cmd.Context(), args[0], func(client *apiclient.Client, id string) error {
				return show(client.Why(cmd.Context(), id))
			})
		},
	}
	cmd.Flags().VarP(&output, "output", "o", "print one JSON document")
	return cmd
}

// showWhy prints an explanation, what led to it below and further in.
func showWhy(out io.Writer, why apiclient.Why, indent string) {
	r := why.Run
	line := func(format string, args ...any) {
		fmt.Fprintf(out, "%s%s\n", indent, render.Clean(fmt.Sprintf(format, args...)))
	}
	line("run %s: %s, %s", r.ID, what(r), r.State)
	for _, i := range r.Images {
		line("  published %s", i)
	}
	if d := why.Decision; d != nil {
		line("  decided %s on track %s: %s", clock(d.Time), orDash(d.Track), d.Reason)
		if d.Trigger != "" {
			line("    trigger %s", d.Trigger)
		}
		for _, v := range d.Verdicts {
			line("    %s: %s: %s", v.Input, v.Kind, v.Reason)
		}
		if len(d.Coalesced) > 0 {
			line("    stands for %s too", strings.Join(d.Coalesced, ", "))
		}
	} else {
		line("  the decision is not stored any more; the run says: %s", orDash(r.Cause.Reason))
	}
	if r.Cause.Commit != "" {
		line("  commit %s of %s", r.Cause.Commit, r.Cause.Repository)
	}
	switch e := why.Event; {
	case e != nil:
		about := strings.TrimSpace(e.Event.Type + " " + e.Event.Subject)
		line("  because of event %d: %s, from %s at %s", e.Seq, about, e.Event.Source, clock(e.Event.Time))
		if d := deliveryOf(e.Event); d.Hook != "" {
			line("    delivered to hook %s (%s) as %s", d.Hook, d.Provider, orDash(d.ID))
		}
	case r.Cause.Seq > 0:
		line("  because of event %d, which is not stored any more", r.Cause.Seq)
	}
	for _, up := range why.Upstream {
		line("  which was pushed by")
		showWhy(out, up, indent+"    ")
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newWhyNotCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	var since time.Duration
	all := false
	cmd := &cobra.Command{
		Use:   "why-not [flags] TASK",
		Short: "Say what was considered for a task, and why nothing ran",
		Long: "List the decisions about a task that made no run due, with the reason of each, newest last: the filter that\n" +
			"refused a commit, the trigger that is disabled, the event that had been decided before.",
		Args: argument("TASK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if since < 0 {
				return usagef("--since 24h", "--since %s: must not be negative", since)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			var from time.Time
			if since > 0 {
				from = time.Now().Add(-since)
			}
			d, err := client.Decisions(cmd.Context(), args[0], from)
			if err != nil {
				return err
			}
			list := []decide.Decision{}
			for _, one := range d.Decisions {
				if all || one.Kind != decide.Run {
					list = append(list, one)
				}
			}
			if output.json() {
				return c.printJSON(apiclient.Decisions{Decisions: list})
			}
			return showDecisions(c.Out, list)
		},
	}
	cmd.Flags().DurationVar(&since, "since", 0, "only what was decided in this time, such as 24h (default: all that is stored)")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list the decisions that made a run due, too")
	cmd.Flags().VarP(&output, "output", "o", "format")
	return cmd
}

func showDecisions(out io.Writer, list []decide.Decision) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "TIME\tTRACK\tDECISION\tRUN\tWHY")
	for _, d := range list {
		kind := string(d.Kind)
		if d.Filter != "" {
			kind += " (" + d.Filter + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", clock(d.Time), render.Clean(orDash(d.Track)), render.Clean(kind), orDash(d.Run), render.Clean(d.Reason))
	}
	return w.Flush()
}

func newApproveCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "approve RUN",
		Short: "Let a run go on that waits for approval",
		Long: "Approve a run of a stranger's pull request. The author is trusted in that repository from then on. Such a run\n" +
			"gets no secrets and pushes nothing all the same.\n" + runHelpText,
		Args:              argument(runArgument),
		ValidArgsFunction: c.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRun(cmd.Context(), args[0], func(client *apiclient.Client, id string) error {
				_, err := client.Approve(cmd.Context(), id)
				return err
			})
		},
	}
}

func newReconcileCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	dryRun := false
	cmd := &cobra.Command{
		Use:   "reconcile [flags]",
		Short: "Look again at every repository and base image",
		Long: "Compare what tasks follow with what was last considered, as the server does by itself every few minutes, and\n" +
			"start what is due because an event was lost.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			found, err := client.Reconcile(cmd.Context(), dryRun)
			if err != nil {
				return err
			}
			return c.printReconciled(found, output)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be decided")
	cmd.Flags().VarP(&output, "output", "o", "format")
	return cmd
}

// errIncomplete is returned when something could not be looked at; what, has been printed.
var errIncomplete = errors.New("not everything could be looked at")

func (c *cli) printReconciled(found apiclient.Reconciled, output outputFlag) error {
	if output.json() {
		if err := c.printJSON(found); err != nil {
			return err
		}
	} else {
		verb := "decided"
		if found.DryRun {
			verb = "would be decided"
		}
		fmt.Fprintf(c.Out, "looked at %d tracks; %d %s\n", found.Looked, len(found.Due), verb)
		for _, f := range found.Due {
			fmt.Fprintf(c.Out, "%s\t%s\t%s\t%s\n", render.Clean(f.Task), f.Decision.Kind, orDash(f.Decision.Run), render.Clean(f.Decision.Reason))
		}
	}
	for _, p := range found.Problems {
		c.say(p)
	}
	if len(found.Problems) > 0 {
		return errIncomplete
	}
	return nil
}
