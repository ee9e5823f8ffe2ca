package main

import (
	"cmp"
	"encoding/json"
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
	since := keepAge(24 * time.Hour)
	cmd := &cobra.Command{
		Use:   "audit [flags]",
		Short: "List who has changed what",
		Long: "List what was to change something, and who was denied, oldest first: requests to the API, and manifests and tags\n" +
			"that were pushed to the registry or deleted. What runs do is not in it, see kiln runs and kiln events. Records\n" +
			"are kept for 90 days.",
		Example: "  kiln audit --since 7d --who ci\n  kiln audit --what tasks/web",
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
			found, err := client.Audit(cmd.Context(), q)
			if err != nil {
				return err
			}
			return printAudit(c.Out, found.Records, output.json())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&since, "since", "how far back to look, such as 30d or 12h")
	f.StringVar(&q.Who, "who", "", "only what a token did: its `NAME` or ID, or admin")
	f.StringVar(&q.What, "what", "", "only what has `TEXT` in it, such as tasks/web, DELETE or an image")
	f.IntVar(&q.Limit, "top", q.Limit, "list at most this many, the newest")
	f.VarP(&output, "output", "o", "format")
	return cmd
}

func printAudit(out io.Writer, records []event.Audit, asJSON bool) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	if !asJSON {
		fmt.Fprintln(w, "TIME\tWHO\tFROM\tWHAT\tANSWER")
	}
	for _, a := range records {
		if asJSON {
			if err := json.NewEncoder(out).Encode(a); err != nil {
				return err
			}
			continue
		}
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
