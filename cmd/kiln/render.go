package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"kiln/taskspec"
)

func newRenderCommand(c *cli) *cobra.Command {
	var f documentFlags
	cmd := &cobra.Command{
		Use:               "render [flags] [CONTEXT]",
		Short:             "Print a task file as it is after aliases and templates",
		Long:              "Print the text that a task file becomes: aliases replaced, templates executed, secret values as ***.\n\nNo server is needed. Run variables that are not given with --run have stand-ins.",
		Example:           "  kiln render --run id=r1 --run registry=registry.example.com\n  kiln render -f ci/task.yaml --set tag=1.2 .",
		Args:              optionalContext,
		ValidArgsFunction: completeDirectory,
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := c.document(f, args)
			if err != nil {
				return err
			}
			text, err := taskspec.Render(d.src, d.opt)
			if errs, ok := errors.AsType[taskspec.Errors](err); ok {
				printProblems(c.Err, problems(errs, false))
				return d.verdict(errs)
			}
			if err != nil {
				return err
			}
			text = mask(strings.ReplaceAll(text, "\r\n", "\n"))
			if !strings.HasSuffix(text, "\n") {
				text += "\n"
			}
			_, err = fmt.Fprint(c.Out, text)
			return err
		},
	}
	f.add(cmd)
	return cmd
}
