package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
)

func newTokenAdminCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "admin",
		Short: "Print the administrator's token of the server on this host",
		Long: "Print the administrator's token of the server on --data, which clients elsewhere find in KILN_TOKEN. It may do\n" +
			"everything. Only who may read the server's data directory can print it.",
		Example: "  export KILN_TOKEN=$(docker-compose exec -T server kiln token admin)",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			dir, err := c.dataDir()
			if err != nil {
				return err
			}
			token, err := apiclient.ReadToken(dir)
			if err != nil {
				return usagef("--data DIR of a server that has been started, as the user who runs it", "%w", err)
			}
			fmt.Fprintln(c.Out, token)
			return nil
		},
	}
}
