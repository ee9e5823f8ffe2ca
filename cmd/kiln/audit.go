package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/event"
)

func newAuditCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	q := apiclient.AuditQuery{Limit: 50}
	since, follow := keepAge(24*time.Hour), false
	cmd := &cobra.Command{
		Use:   "audit [flags]",
		Short: "List who has changed what",
		Long: "List what was to change something, and who was denied, oldest first: requests to the API, and manifests and tags\n" +
			"that were pushed to the registry or deleted. What runs do is not in it, see kiln runs and kiln events. Records\n" +
			"are kept for 90 days.",
		Example: "  kiln audit --since 7d --who ci\n  kiln audit --what tasks/web\n  kiln audit -f -o json",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case q.Limit < 1 || q.Limit > 1000:
				return usagef("--top 50", "--top %d: want a number from 1 to 1000", q.Limit)
			case since <= 0:
				return usagef("--since 24h", "--since %s: want a time such as 24h or 30d", &since)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			q.Since = time.Now().Add(-time.Duration(since))
			show := auditPrinter(c.Out, output.json())
			if follow {
				client.Lost = func(err error) { c.say("connection lost, trying again: " + err.Error()) }
				err := client.FollowAudit(cmd.Context(), q, show)
				if errors.Is(err, context.Canceled) {
					return nil
				}
				return err
			}
			found, err := client.Audit(cmd.Context(), q)
			if err != nil {
				return err
			}
			return show(found.Records)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&since, "since", "how far back to look, such as 30d or 12h")
	f.StringVar(&q.Who, "who", "", "only what a token did: its `NAME` or ID, or admin")
	f.StringVar(&q.What, "what", "", "only what has `TEXT` in it, such as tasks/web, DELETE or an image")
	f.IntVar(&q.Limit, "top", q.Limit, "list at most this many, the newest")
	f.BoolVarP(&follow, "follow", "f", false, "go on with what is recorded")
	f.VarP(&output, "output", "o", "format")
	return cmd
}

// auditPrinter returns what prints records, under a heading.
func auditPrinter(out io.Writer, asJSON bool) func([]event.Audit) error {
	if asJSON {
		return func(records []event.Audit) error {
			for _, a := range records {
				if err := json.NewEncoder(out).Encode(a); err != nil {
					return err
				}
			}
			return nil
		}
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "TIME\tWHO\tFROM\tWHAT\tANSWER")
	return func(records []event.Audit) error {
		for _, a := range records {
			what := a.Method + " " + a.What
			if a.Left > 0 {
				what = fmt.Sprintf("%d more attempts", a.Left)
			}
			answer := cmp.Or(a.Code, http.StatusText(a.Status))
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d %s\n", a.Time.Local().Format(time.DateTime), render.Clean(orDash(a.Who)), render.Clean(orDash(a.From)),
				render.Clean(what), a.Status, render.Clean(answer))
		}
		return w.Flush()
	}
}
