package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/taskspec"
	"kiln/triggers/links"
)

const planHelp = `Print what a run of a task file would do: which step waits for which, what can run at the same time,
which images are built, pushed and pulled, and the base images of the Dockerfiles in CONTEXT.

No server is needed and nothing is executed. Run variables that are not given with --run have stand-ins.`

func newPlanCommand(c *cli) *cobra.Command {
	f := documentFlags{output: outputFlag{value: "table", allowed: []string{"table", "json", "dot"}}}
	cmd := &cobra.Command{
		Use:               "plan [flags] [CONTEXT]",
		Short:             "Print what a run of a task file would do",
		Long:              planHelp,
		Example:           "  kiln plan\n  kiln plan -o dot | dot -Tsvg >plan.svg\n  kiln plan -o json | jq -r '.images.bases[]'",
		Args:              optionalContext,
		ValidArgsFunction: completeDirectory,
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := c.document(f, args)
			if err != nil {
				return err
			}
			task, err := c.parse(d)
			if err != nil {
				return err
			}
			return c.printPlan(taskspec.NewPlan(task, taskspec.PlanOptions{Run: d.opt.Run, Bases: links.Bases(task, d.opt.Run, d.read)}), f.output.value)
		},
	}
	f.add(cmd)
	cmd.Flags().VarP(&f.output, "output", "o", "format")
	return cmd
}

func (c *cli) printPlan(plan *taskspec.Plan, format string) error {
	var b bytes.Buffer
	switch format {
	case "json":
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(plan); err != nil {
			return err
		}
	case "dot":
		writeDot(&b, plan)
	default:
		writePlan(&b, plan)
	}
	_, err := io.WriteString(c.Out, mask(b.String()))
	return err
}

// writePlan writes a plan as tables.
func writePlan(out io.Writer, plan *taskspec.Plan) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprint(w, "STAGE\tSTEP\tKIND\tAFTER\tWHAT\n")
	for _, s := range plan.Steps {
		after := strings.Join(s.After, ", ")
		if after == "" {
			after = "-"
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", s.Stage, render.Clean(s.ID), s.Kind, render.Clean(after), render.Clean(planWhat(s)))
	}
	fmt.Fprint(w, "\nSteps of one stage can run at the same time.\n")
	if rows := imageRows(plan); len(rows) > 0 {
		fmt.Fprint(w, "\nIMAGE\tIS\tSTEP\tWHERE\n")
		for _, r := range rows {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", render.Clean(r[0]), r[1], render.Clean(r[2]), render.Clean(r[3]))
		}
	}
}

// planWhat says in at most 72 characters what a step does.
func planWhat(s taskspec.PlanStep) string {
	words := s.Pushes
	switch s.Kind {
	case taskspec.KindBuild:
		words = s.Argv
	case taskspec.KindCmd:
		words = append([]string{s.Image}, s.Argv...)
	}
	const most = 72
	text := []rune(strings.Join(words, " "))
	if len(text) > most {
		text = append(text[:most-3], []rune("...")...)
	}
	return string(text)
}

// imageRows returns what happens to which image in which step.
func imageRows(plan *taskspec.Plan) [][4]string {
	var rows [][4]string
	for _, s := range plan.Steps {
		for _, l := range []struct {
			refs []string
			is   string
		}{{s.Builds, "built"}, {s.Pushes, "pushed"}, {s.Pulls, "pulled"}} {
			for _, ref := range l.refs {
				rows = append(rows, [4]string{ref, l.is, s.ID, "-"})
			}
		}
		for _, b := range s.Bases {
			ref, where := b.Ref, fmt.Sprintf("%s:%d %s", b.Dockerfile, b.Line, b.Use)
			switch {
			case ref == "":
				ref, where = cmp.Or(b.Written, b.Dockerfile), "unresolved: "+b.Unresolved
			case b.Step != "":
				where += ", built by " + b.Step
			}
			rows = append(rows, [4]string{ref, "base", s.ID, where})
		}
	}
	return rows
}

// dotText escapes a text for a quoted string of the dot language.
var dotText = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ")

// writeDot writes a plan's graph in the dot language.
func writeDot(w io.Writer, plan *taskspec.Plan) {
	fmt.Fprint(w, "digraph task {\n  rankdir=LR;\n  node [shape=box];\n")
	for _, s := range plan.Steps {
		fmt.Fprintf(w, "  \"%s\" [label=\"%s\\n%s %s\"];\n", dotText.Replace(s.ID), dotText.Replace(s.ID), s.Kind, dotText.Replace(render.Clean(planWhat(s))))
	}
	for _, s := range plan.Steps {
		for _, id := range s.After {
			fmt.Fprintf(w, "  \"%s\" -> \"%s\";\n", dotText.Replace(id), dotText.Replace(s.ID))
		}
	}
	fmt.Fprint(w, "}\n")
}
