package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/event"
)

func newEventsCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	q := apiclient.EventsQuery{Limit: 20}
	follow := false
	cmd := &cobra.Command{
		Use:   "events [flags]",
		Short: "List the facts that the server knows",
		Long: "List stored events, oldest first: pushes, pull requests, images, requests, runs. Their numbers are what\n" +
			"kiln replay takes. Events are kept for 30 days.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.Limit < 1 || q.Limit > 1000 {
				return usagef("-n 20", "-n %d: want a number from 1 to 1000", q.Limit)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			return c.events(cmd.Context(), client, q, follow, output)
		},
	}
	cmd.Flags().IntVarP(&q.Limit, "number", "n", q.Limit, "list at most this many")
	cmd.Flags().StringVar(&q.Type, "type", "", "list only events of a type, such as git.pushed, image.pushed or run.finished")
	cmd.Flags().Uint64Var(&q.After, "after", 0, "list only events after the one with this number")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens")
	cmd.Flags().VarP(&output, "output", "o", "format")
	return cmd
}

func (c *cli) events(ctx context.Context, client *apiclient.Client, q apiclient.EventsQuery, follow bool, output outputFlag) error {
	w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
	show := func(e apiclient.EventRecord) error {
		if output.json() {
			return json.NewEncoder(c.Out).Encode(e)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", e.Seq, clock(e.Event.Time), render.Clean(e.Event.Type), render.Clean(orDash(e.Event.Subject)), render.Clean(e.Event.Source))
		return nil
	}
	if !output.json() {
		fmt.Fprintln(w, "EVENT\tTIME\tTYPE\tABOUT\tFROM")
	}
	for {
		page, err := client.Events(ctx, q)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		for _, e := range page.Events {
			if err := show(e); err != nil {
				return err
			}
		}
		if err := w.Flush(); err != nil || !follow {
			return err
		}
		q.After, q.Wait = max(q.After, page.Last), true
	}
}

// deliveryOf returns how an event was delivered; it is zero for one that was not.
func deliveryOf(e event.Event) event.Delivery {
	var data struct {
		Delivery event.Delivery `json:"delivery"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return event.Delivery{}
	}
	return data.Delivery
}

func newReplayCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	dryRun := false
	cmd := &cobra.Command{
		Use:   "replay [flags] EVENT",
		Short: "Handle a stored event again",
		Long: "Handle an event again as if it came now. Decisions are made by state: what was considered already is not run\n" +
			"twice. EVENT is its number, as kiln events shows it.",
		Args: argument("EVENT, its number,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			seq, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil || seq == 0 {
				return usagef("kiln events", "event %q: want its number", args[0])
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			found, err := client.Replay(cmd.Context(), seq, dryRun)
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
