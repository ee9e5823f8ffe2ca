package main

import (
	"github.com/spf13/cobra"
)

func newCompletionCommand(c *cli) *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "Print the completion script of a shell",
		Example:   "  source <(kiln completion bash)\n  kiln completion zsh >\"${fpath[1]}/_kiln\"\n  kiln completion fish | source",
		ValidArgs: shells,
		Args:      argument("SHELL, bash, zsh or fish,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(c.Out, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(c.Out)
			case "fish":
				return cmd.Root().GenFishCompletion(c.Out, true)
			}
			return usagef("kiln completion bash", "no completion for %q, only for bash, zsh and fish", args[0])
		},
	}
}
