package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// pageSize is how many runs are asked for at once.
const pageSize = 200

func newRunsCommand(c *cli) *cobra.Command {
	n := 20
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	cmd := &cobra.Command{
		Use:   "runs [flags]",
		Short: "List runs, newest first",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n <= 0 {
				return usagef("-n 20", "-n %d: must be positive", n)
			}
			return c.runs(cmd.Context(), n, output)
		},
	}
	cmd.Flags().IntVarP(&n, "number", "n", n, "list at most this many")
	cmd.Flags().VarP(&output, "output", "o", "format")
	return cmd
}

func (c *cli) runs(ctx context.Context, n int, output outputFlag) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	runs, err := listRuns(ctx, client, n)
	if err != nil {
		return err
	}
	if output.json() {
		return c.printJSON(apiclient.Runs{Runs: runs})
	}
	w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "RUN\tSTATUS\tCAUSE\tCREATED\tDURATION\tWHAT")
	now := time.Now()
	for _, r := range runs {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s ago\t%s\t%s\n", r.ID, r.State, render.Clean(r.Cause.Kind),
			age(now.Sub(r.Created)), duration(r, now), render.Clean(what(r)))
	}
	return w.Flush()
}

// listRuns returns the newest n runs.
func listRuns(ctx context.Context, client *apiclient.Client, n int) ([]run.Run, error) {
	all, before := []run.Run{}, ""
	for len(all) < n {
		page, err := client.Runs(ctx, apiclient.RunsQuery{Limit: min(n-len(all), pageSize), Before: before})
		if err != nil {
			return nil, err
		}
		if len(page) == 0 || page[0].ID == before {
			break
		}
		all = append(all, page...)
		before = page[len(page)-1].ID
	}
	return all[:min(n, len(all))], nil
}

// what says in a few words what a run executes.
func what(r run.Run) string {
	switch {
	case r.Task != "":
		return r.Task
	case r.Spec.Build != nil && len(r.Spec.Build.Images) > 0:
		return "build " + strings.Join(r.Spec.Build.Images, ", ")
	case r.Spec.Build != nil:
		return "build"
	case r.Spec.TaskFile != nil:
		return "run " + r.Spec.TaskFile.Name
	}
	return ""
}

func duration(r run.Run, now time.Time) string {
	if !r.State.Final() {
		return render.Took(r.Started, now)
	}
	return render.Took(r.Started, r.Finished)
}

// age rounds a duration as a person would.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
