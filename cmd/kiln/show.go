package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/run"
)

func newShowCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"json"}}
	cmd := &cobra.Command{
		Use:               "show [flags] RUN",
		Short:             "Show all about a run",
		Long:              "Show a run: its state and why, its attempts, steps, images and base images.\n" + runHelpText,
		Args:              argument(runArgument),
		ValidArgsFunction: c.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withRun(cmd.Context(), args[0], func(client *apiclient.Client, id string) error {
				r, err := client.Run(cmd.Context(), id)
				switch {
				case err != nil:
					return err
				case output.json():
					return c.printJSON(shownRun{r, r.Dependencies()})
				}
				showRun(c.Out, r, time.Now())
				return nil
			})
		},
	}
	cmd.Flags().VarP(&output, "output", "o", "print the run as one JSON document")
	return cmd
}

// A shownRun is a run with what follows from it.
type shownRun struct {
	run.Run
	Dependencies []run.Dependency `json:"dependencies,omitempty"`
}

// showRun prints all about a run.
func showRun(out io.Writer, r run.Run, now time.Time) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	defer w.Flush()
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", name, render.Clean(value))
		}
	}
	field("Run", r.ID)
	field("Status", string(r.State))
	field("Reason", r.Reason)
	field("Executes", what(r))
	field("Cause", cause(r.Cause))
	field("Context", r.Spec.Context)
	field("Platform", r.Spec.Platform)
	field("Created", clock(r.Created))
	field("Started", clock(r.Started))
	field("Finished", clock(r.Finished))
	field("Duration", duration(r, now))

	if len(r.Attempts) > 0 {
		fmt.Fprint(w, "\nATTEMPT\tWORKER\tASSIGNED\tDURATION\tOUTCOME\n")
		for _, a := range r.Attempts {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", a.N, render.Clean(a.Worker), clock(a.Assigned),
				render.Took(a.Assigned, a.Ended), render.Clean(because(a.Outcome, a.Reason)))
		}
	}
	if len(r.Steps) > 0 {
		fmt.Fprint(w, "\nSTEP\tKIND\tSTATUS\tEXIT\tDURATION\tTRIES\tERROR\n")
		for _, s := range r.Steps {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", render.Clean(s.ID), s.Kind, s.State, exitText(s.ExitCode),
				render.Took(s.Started, s.Finished), s.Tries, render.Clean(s.Error))
		}
	}
	showMade(w, r)
}

// showMade prints what a run has published and what that was made from.
func showMade(w io.Writer, r run.Run) {
	if len(r.Images) > 0 {
		fmt.Fprint(w, "\nIMAGES\n")
		for _, i := range r.Images {
			fmt.Fprintln(w, render.Clean(i.String()))
			if i.Provenance != "" {
				fmt.Fprintln(w, "  provenance "+render.Clean(i.Provenance))
			}
		}
	}
	if len(r.Bases) > 0 {
		runtime := map[string]bool{}
		for _, s := range r.Steps {
			for _, out := range s.Outputs() {
				runtime[out.Runtime] = true
			}
		}
		fmt.Fprint(w, "\nBASE\tUSE\n")
		seen := map[string]bool{}
		for _, b := range r.Bases {
			ref, use := b.Ref+"@"+b.Digest, "buildtime"
			if runtime[ref] {
				use = "runtime"
			}
			if !seen[ref] { // several steps may have the same
				seen[ref] = true
				fmt.Fprintf(w, "%s\t%s\n", render.Clean(ref), use)
			}
		}
	}
	if r.Cause.Commit != "" {
		fmt.Fprintf(w, "\nCOMMIT\n%s\n", render.Clean(r.Cause.Commit))
	}
}

func cause(c run.Cause) string {
	s := c.Kind
	if c.RerunOf != "" {
		s += " of " + c.RerunOf
	}
	if c.By != "" {
		s += " by " + c.By
	}
	return s
}

func because(outcome, reason string) string {
	if outcome == "" || reason == "" {
		return outcome + reason
	}
	return outcome + ": " + reason
}

func exitText(code *int) string {
	if code == nil {
		return "-"
	}
	return fmt.Sprint(*code)
}

func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05 MST")
}
