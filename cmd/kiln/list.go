package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
)

// A listing is a command that prints all things of a kind.
type listing[T any] struct {
	use, short, long string
	get              func(*apiclient.Client, context.Context) ([]T, error)
	document         func([]T) any      // what -o json prints; nil for the things themselves
	header           string             // of the table, with tabs between the columns
	row              func(io.Writer, T) // writes a line of it
}

func newListCommand[T any](c *cli, l listing[T]) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	cmd := &cobra.Command{Use: l.use, Short: l.short, Long: l.long, Args: noArguments}
	cmd.Flags().VarP(&output, "output", "o", "format")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := c.client()
		if err != nil {
			return err
		}
		all, err := l.get(client, cmd.Context())
		switch {
		case err != nil:
			return err
		case output.json() && l.document != nil:
			return c.printJSON(l.document(all))
		case output.json():
			return c.printJSON(all)
		}
		w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, l.header)
		for _, one := range all {
			l.row(w, one)
		}
		return w.Flush()
	}
	return cmd
}
