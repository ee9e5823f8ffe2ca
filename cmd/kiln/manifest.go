package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
)

func newManifestCommand(c *cli) *cobra.Command {
	return commandGroup("manifest", "List, show, delete and lock manifests of the registry",
		"Manifests of the server's own registry: images, indexes of images, and what is said about them.",
		append([]*cobra.Command{newManifestListCommand(c), newManifestShowCommand(c), newManifestDeleteCommand(c), newReferrersCommand(c)},
			newLockCommands(c, "REPOSITORY@DIGEST", withReference)...)...)
}

func newManifestListCommand(c *cli) *cobra.Command {
	top := 100
	order := outputFlag{allowed: []string{"time_desc", "time_asc"}, value: "time_desc"}
	var untagged bool
	f := newImageFlags()
	cmd := &cobra.Command{
		Use:     "list-metadata REPOSITORY [flags]",
		Aliases: []string{"list"},
		Short:   "List the manifests of a repository with their metadata",
		Long:    "List the manifests of a repository, also those that no tag names, by the time they were pushed.",
		Args:    argument("REPOSITORY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if top <= 0 {
				return usagef("--top 100", "--top %d: must be positive", top)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			image, err := imageArgument(cmd.Context(), client, args[0], repositoryOnly)
			if err != nil {
				return err
			}
			list := []apiclient.Manifest{}
			for after := ""; len(list) < top; {
				page, err := client.Manifests(cmd.Context(), image.Repository, order.value == "time_asc", untagged, after, min(top-len(list), apiclient.MaxImagePage))
				if err != nil {
					return err
				}
				list, after = append(list, page.Manifests...), page.Next
				if after == "" {
					break
				}
			}
			return c.printManifests(list, f)
		},
	}
	f.add(cmd)
	cmd.Flags().Var(&order, "orderby", "order")
	cmd.Flags().IntVar(&top, "top", top, "list at most this many")
	cmd.Flags().BoolVar(&untagged, "untagged", false, "only those that neither a tag nor an index names")
	return cmd
}

func (c *cli) printManifests(list []apiclient.Manifest, f *imageFlags) error {
	if f.output.json() {
		return c.printJSON(list)
	}
	w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "DIGEST\tTAGS\tPUSHED\tPULLED\tSIZE\tPLATFORM\tLOCKS")
	for _, m := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", render.Clean(m.Digest), render.Clean(tagsText(m)), stamp(m.Timestamp), stamp(m.LastPulled),
			sizeText(m.ImageSize), render.Clean(platformsText(m)), locksShort(m.Locks))
	}
	return w.Flush()
}

// tagsText names the tags of a manifest, or says why it has none.
func tagsText(m apiclient.Manifest) string {
	switch {
	case len(m.Tags) > 0:
		return strings.Join(m.Tags, ",")
	case m.Untagged:
		return "<untagged>"
	case m.Subject != "":
		return "<referrer>"
	}
	return "<in an index>"
}

func platformsText(m apiclient.Manifest) string {
	if len(m.Platforms) == 0 {
		return "-"
	}
	return strings.Join(m.Platforms, ",")
}

func locksShort(locks []string) string {
	if len(locks) == 0 {
		return "-"
	}
	return strings.Join(locks, ",")
}

// stamp is a time as lists show it.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

func newManifestShowCommand(c *cli) *cobra.Command {
	f := newImageFlags()
	return f.add(&cobra.Command{
		Use:   "show REPOSITORY:TAG|REPOSITORY@DIGEST [flags]",
		Short: "Show a manifest, what it is made of and what deleting it frees",
		Args:  argument("REPOSITORY:TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, image, err := c.image(cmd.Context(), args[0], withReference)
			if err != nil {
				return err
			}
			m, err := client.Manifest(cmd.Context(), image.Repository, image.Reference)
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(m)
			}
			return c.printManifest(m)
		},
	})
}

// image returns the client, and the image that an argument names.
func (c *cli) image(ctx context.Context, arg string, want parts) (*apiclient.Client, apiclient.Image, error) {
	client, err := c.client()
	if err != nil {
		return nil, apiclient.Image{}, err
	}
	image, err := imageArgument(ctx, client, arg, want)
	return client, image, err
}

func (c *cli) printManifest(m apiclient.ManifestDetails) error {
	w := tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "Manifest:\t%s@%s\nTags:\t%s\nMedia type:\t%s\n", render.Clean(m.Repository), render.Clean(m.Digest), render.Clean(tagsText(m.Manifest)), render.Clean(m.MediaType))
	fmt.Fprintf(w, "Platform:\t%s\nPushed:\t%s\nUpdated:\t%s\nLast pulled:\t%s\n", render.Clean(platformsText(m.Manifest)), stamp(m.Timestamp), stamp(m.Updated), stamp(m.LastPulled))
	fmt.Fprintf(w, "Size:\t%s\nLocks:\t%s\nReferrers:\t%d\n", sizeText(m.ImageSize), locksText(m.Locks), m.Referrers)
	if m.Subject != "" {
		fmt.Fprintf(w, "About:\t%s\n", render.Clean(m.Subject))
	}
	for _, i := range m.Indexes {
		fmt.Fprintf(w, "In index:\t%s\n", render.Clean(i))
	}
	for _, d := range m.Manifests {
		fmt.Fprintf(w, "Image:\t%s\n", render.Clean(d))
	}
	for _, b := range m.Blobs {
		shared := ""
		if b.Shared {
			shared = ", shared"
		}
		fmt.Fprintf(w, "Blob:\t%s  %s%s\n", render.Clean(b.Digest), sizeText(b.Size), shared)
	}
	fmt.Fprintf(w, "Deleting it frees:\t%s\n", sizeText(m.Frees))
	return w.Flush()
}

func newManifestDeleteCommand(c *cli) *cobra.Command {
	f := newImageFlags()
	return f.deletes(&cobra.Command{
		Use:   "delete REPOSITORY:TAG|REPOSITORY@DIGEST [flags]",
		Short: "Delete a manifest with all its tags",
		Long: "Delete the manifest that a tag or digest names, with all its tags, not only the one given; with what is\n" +
			"said about it, such as signatures and provenance; and with the images that only this index names. To\n" +
			"remove a tag alone, use kiln tag untag.",
		Args: argument("REPOSITORY:TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.delete(cmd.Context(), args[0], withReference, f, cmd.CommandPath())
		},
	})
}

func newReferrersCommand(c *cli) *cobra.Command {
	var artifactType string
	f := newImageFlags()
	cmd := &cobra.Command{
		Use:   "list-referrers REPOSITORY:TAG|REPOSITORY@DIGEST [flags]",
		Short: "List what is said about a manifest: provenance, signatures, SBOMs",
		Args:  argument("REPOSITORY:TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, image, err := c.image(cmd.Context(), args[0], withReference)
			if err != nil {
				return err
			}
			list, err := client.Referrers(cmd.Context(), image.Repository, image.Reference, artifactType)
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(list.Referrers)
			}
			w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "DIGEST\tTYPE\tSIZE")
			for _, r := range list.Referrers {
				fmt.Fprintf(w, "%s\t%s\t%s\n", render.Clean(r.Digest), render.Clean(r.ArtifactType), sizeText(r.Size))
			}
			return w.Flush()
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&artifactType, "artifact-type", "", "only those of this type, such as application/vnd.in-toto+json")
	return cmd
}
