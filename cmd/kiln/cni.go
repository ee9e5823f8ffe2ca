package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"kiln/internal/buildkit/cni"
)

func newCNICommand(c *cli) *cobra.Command {
	var copied bool
	cmd := &cobra.Command{
		Use:   "cni DIR [flags]",
		Short: "Set up kiln's networks for a BuildKit daemon as it is shipped",
		Long: "Make of DIR, on the host of a BuildKit daemon, what the daemon needs to separate runs as kiln's own does,\n" +
			"and print what belongs into its buildkitd.toml. The daemon then executes this program, where it is now, for\n" +
			"each container. After an update of the program nothing is to be done, unless it was copied.",
		Example: "  kiln cni /etc/kiln-cni >>/etc/buildkit/buildkitd.toml",
		Args:    argument("directory"),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			program, err := os.Executable()
			if err == nil && copied {
				program, err = copyProgram(filepath.Join(dir, "bin"), program)
			}
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
	cmd.Flags().BoolVar(&copied, "copy", false, "copy this program into DIR, for a daemon that sees nothing else of this host: DIR has the same path there")
	return cmd
}

// copyProgram copies program into a directory under its own name and returns its path there. A daemon that executes
// the one of before goes on with it.
func copyProgram(dir, program string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	from, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer from.Close()
	to, err := os.CreateTemp(dir, ".kiln-")
	if err != nil {
		return "", err
	}
	defer os.Remove(to.Name()) // nothing is left there if all went well
	_, err = io.Copy(to, from)
	path := filepath.Join(dir, "kiln")
	if err = errors.Join(err, to.Chmod(0o755), to.Close()); err == nil {
		err = os.Rename(to.Name(), path)
	}
	return path, err
}
