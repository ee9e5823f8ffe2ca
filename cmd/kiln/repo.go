package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
)

func newRepoCommand(c *cli) *cobra.Command {
	return commandGroup("repo", "List, show, delete and lock repositories of the registry",
		"Repositories of the server's own registry, and what they take on its disk.",
		append([]*cobra.Command{newRepoListCommand(c), newRepoShowCommand(c), newRepoDeleteCommand(c)},
			newLockCommands(c, "REPOSITORY", repositoryOnly)...)...)
}

func newRepoListCommand(c *cli) *cobra.Command {
	var all bool
	f := newImageFlags()
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List repositories with their sizes",
		Long: "List the repositories. Of their size, what is unique is in no other repository: deleting the repository\n" +
			"frees it. What is shared is counted in each of them, and once in the total.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.listRepos(cmd.Context(), all, f) },
	}
	f.add(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list kiln's own, too: staged images and uploaded contexts")
	return cmd
}

func (c *cli) listRepos(ctx context.Context, all bool, f *imageFlags) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	list := apiclient.Repositories{Repositories: []apiclient.Repository{}}
	for {
		page, err := client.Repositories(ctx, all, list.Next, apiclient.MaxImagePage)
		if err != nil {
			return err
		}
		list.Repositories, list.Next, list.Total = append(list.Repositories, page.Repositories...), page.Next, page.Total
		if page.Next == "" {
			break
		}
	}
	if f.output.json() {
		return c.printJSON(list)
	}
	w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "REPOSITORY\tMANIFESTS\tTAGS\tUNTAGGED\tSIZE\tUNIQUE\tSHARED\tLOCKS")
	for _, r := range list.Repositories {
		unique, shared := sizeText(r.Unique), sizeText(r.Shared)
		if r.Internal {
			unique, shared = "-", "-"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\t%s\t%s\n", render.Clean(r.Name), r.Manifests, r.Tags, r.Untagged, sizeText(r.Size),
			unique, shared, locksShort(r.Locks))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(c.Out, "\nStored in all: %s in %s\n", sizeText(list.Total.Size), count(list.Total.Blobs, "blob"))
	return nil
}

func newRepoShowCommand(c *cli) *cobra.Command {
	f := newImageFlags()
	return f.add(&cobra.Command{
		Use:   "show REPOSITORY [flags]",
		Short: "Show a repository and its sizes",
		Args:  argument("REPOSITORY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			image, err := imageArgument(cmd.Context(), client, args[0], repositoryOnly)
			if err != nil {
				return err
			}
			r, err := client.Repository(cmd.Context(), image.Repository)
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(r)
			}
			w := tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)
			fmt.Fprintf(w, "Repository:\t%s\nCreated:\t%s\nManifests:\t%d, %d of them untagged\nTags:\t%d\n", render.Clean(r.Name), stamp(r.Created), r.Manifests, r.Untagged, r.Tags)
			fmt.Fprintf(w, "Size:\t%s\n", sizeText(r.Size))
			if !r.Internal {
				fmt.Fprintf(w, "  unique:\t%s (what deleting the repository frees)\n  shared:\t%s\n", sizeText(r.Unique), sizeText(r.Shared))
			}
			fmt.Fprintf(w, "Locks:\t%s\n", locksText(r.Locks))
			return w.Flush()
		},
	})
}

func newRepoDeleteCommand(c *cli) *cobra.Command {
	f := newImageFlags()
	return f.deletes(&cobra.Command{
		Use:   "delete REPOSITORY [flags]",
		Short: "Delete a repository with all that is in it",
		Long:  "Delete a repository with all that is in it. A lock of the repository, or of anything in it, refuses that.",
		Args:  argument("REPOSITORY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.delete(cmd.Context(), args[0], repositoryOnly, f, cmd.CommandPath())
		},
	})
}
