package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"kiln/internal/buildkit/cni"
)

func newCNICommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "cni DIR",
		Short: "Set up kiln's networks for a BuildKit daemon as it is shipped",
		Long: "Make of DIR, on the host of a BuildKit daemon, what the daemon needs to separate runs as kiln's own does,\n" +
			"and print what belongs into its buildkitd.toml. The daemon then executes this program, where it is now, for\n" +
			"each container. After an update of the program nothing is to be done.",
		Example: "  kiln cni /etc/kiln-cni >>/etc/buildkit/buildkitd.toml",
		Args:    argument("directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return err
			}
			toml, err := cni.Install(dir, program)
			if err != nil {
				return err
			}
			fmt.Fprint(c.Out, toml)
			return nil
		},
	}
}
