package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
)

func newTagCommand(c *cli) *cobra.Command {
	return commandGroup("tag", "List, show, remove and lock tags of the registry",
		"Tags of the server's own registry.",
		append([]*cobra.Command{newTagListCommand(c), newTagShowCommand(c), newUntagCommand(c)}, newLockCommands(c, "REPOSITORY:TAG", withTag)...)...)
}

func newTagListCommand(c *cli) *cobra.Command {
	f := newImageFlags()
	return f.add(&cobra.Command{
		Use:   "list REPOSITORY [flags]",
		Short: "List the tags of a repository",
		Args:  argument("REPOSITORY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, image, err := c.image(cmd.Context(), args[0], repositoryOnly)
			if err != nil {
				return err
			}
			list := []apiclient.Tag{}
			for after := ""; ; {
				page, err := client.Tags(cmd.Context(), image.Repository, after, apiclient.MaxImagePage)
				if err != nil {
					return err
				}
				list, after = append(list, page.Tags...), page.Next
				if after == "" {
					break
				}
			}
			if f.output.json() {
				return c.printJSON(list)
			}
			w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "TAG\tDIGEST\tUPDATED\tLOCKS")
			for _, t := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", render.Clean(t.Name), render.Clean(t.Digest), stamp(t.Updated), tagLocks(t))
			}
			return w.Flush()
		},
	})
}

// tagLocks names the locks of a tag; a unique one never moves.
func tagLocks(t apiclient.Tag) string {
	if !t.Unique {
		return locksShort(t.Locks)
	}
	return strings.Join(append([]string{"unique"}, t.Locks...), ",")
}

func newTagShowCommand(c *cli) *cobra.Command {
	f := newImageFlags()
	return f.add(&cobra.Command{
		Use:   "show REPOSITORY:TAG [flags]",
		Short: "Show a tag and what it has named before",
		Args:  argument("REPOSITORY:TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, image, err := c.image(cmd.Context(), args[0], withTag)
			if err != nil {
				return err
			}
			t, err := client.Tag(cmd.Context(), image.Repository, image.Reference)
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(t)
			}
			return c.printTag(t)
		},
	})
}

func (c *cli) printTag(t apiclient.TagDetails) error {
	w := tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)
	digest := t.Digest
	if digest == "" {
		digest = "deleted"
	}
	fmt.Fprintf(w, "Tag:\t%s:%s\nDigest:\t%s\nCreated:\t%s\nUpdated:\t%s\nLocks:\t%s\n", render.Clean(t.Repository), render.Clean(t.Name),
		render.Clean(digest), stamp(t.Created), stamp(t.Updated), tagLocks(t.Tag))
	fmt.Fprint(w, "\nTIME\tDIGEST\tRUN\tSTEP\n")
	for _, m := range t.History {
		digest := m.Digest
		switch {
		case digest == "":
			digest = "deleted"
		case !m.Exists:
			digest += " (gone)"
		}
		run, step := m.Run, m.Step
		if run == "" {
			run, step = "-", "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", stamp(m.Time), render.Clean(digest), render.Clean(run), render.Clean(step))
	}
	return w.Flush()
}

func newUntagCommand(c *cli) *cobra.Command {
	f := newImageFlags()
	return f.add(&cobra.Command{
		Use:   "untag REPOSITORY:TAG [flags]",
		Short: "Remove a tag; its manifest stays",
		Long: "Remove a tag. What it named stays under its digest. If it was the unique tag of a run, the name never\n" +
			"means anything else.",
		Args: argument("REPOSITORY:TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, image, err := c.image(cmd.Context(), args[0], withTag)
			if err != nil {
				return err
			}
			done, err := client.Untag(cmd.Context(), image.Repository, image.Reference)
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(done)
			}
			fmt.Fprintf(c.Out, "%s removed\n", render.Clean(args[0]))
			return nil
		},
	})
}

func newRollbackCommand(c *cli) *cobra.Command {
	var to string
	f := newImageFlags()
	cmd := &cobra.Command{
		Use:   "rollback REPOSITORY:TAG [flags]",
		Short: "Move a tag back to the image it named before",
		Long: "Move a tag back to the image that it named before, if that is still there. kiln tag show tells what it has\n" +
			"named. It is a push like any other: what is built on the tag is built again.",
		Args: argument("REPOSITORY:TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, image, err := c.image(cmd.Context(), args[0], withTag)
			if err != nil {
				return err
			}
			done, err := client.Rollback(cmd.Context(), apiclient.Rollback{Repository: image.Repository, Tag: image.Reference, To: to})
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(done)
			}
			from := done.From
			if from == "" {
				from = "nothing"
			}
			fmt.Fprintf(c.Out, "%s: %s, was %s\n", render.Clean(args[0]), render.Clean(done.To), render.Clean(from))
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&to, "to", "", "another `DIGEST` that the tag has named")
	return cmd
}
