package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
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

// completionTime bounds how long a shell waits for a completion.
const completionTime = 2 * time.Second

// completeRun proposes the newest runs.
func (c *cli) completeRun(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	client, err := c.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	runs, err := client.Runs(ctx, apiclient.RunsQuery{Limit: 50, Prefix: prefix})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]string, len(runs))
	for i, r := range runs {
		names[i] = r.ID + "\t" + render.Clean(string(r.State)+" "+what(r))
	}
	return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

// completeDirectory proposes directories.
func completeDirectory(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveFilterDirs
}
