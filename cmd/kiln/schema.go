package main

import (
	"github.com/spf13/cobra"

	"kiln/taskspec"
)

func newSchemaCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of task files, for editors",
		Long: "Print the JSON Schema (draft 2020-12) of task files. With it an editor completes properties, shows what\n" +
			"they mean and marks misspelt ones. Save it and name it in the first line of a task file:\n\n" +
			"  # yaml-language-server: $schema=kiln-task.schema.json",
		Example: "  kiln schema >kiln-task.schema.json",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			_, err := c.Out.Write(taskspec.Schema())
			return err
		},
	}
}
