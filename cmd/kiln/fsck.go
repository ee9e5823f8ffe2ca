package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
)

func newFsckCommand(c *cli) *cobra.Command {
	var quick bool
	f := newImageFlags()
	cmd := &cobra.Command{
		Use:   "fsck [flags]",
		Short: "Verify what the registry stores",
		Long: "Verify that every blob and manifest of the registry is there and has its digest, that manifests refer to\n" +
			"nothing that is missing, and that no file is without an owner. It changes nothing, and pushes and pulls go\n" +
			"on. What is damaged is healed by deleting the images it belongs to and pushing them again.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			found, err := client.CheckImages(cmd.Context(), quick)
			if err != nil {
				return err
			}
			if f.output.json() {
				err = c.printJSON(found)
			} else {
				c.printCheckedImages(found)
			}
			if err == nil && !found.OK() {
				return errReported
			}
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&quick, "quick", false, "do not read files: find what is missing, not what is damaged")
	return cmd
}

func (c *cli) printCheckedImages(found apiclient.CheckedImages) {
	for _, list := range []struct {
		what  string
		names []string
	}{{"missing", found.Missing}, {"damaged", found.Damaged}, {"dangling", found.Dangling}, {"orphaned file", found.Orphaned}, {"miscounted", found.Miscounted}} {
		for _, name := range list.names {
			fmt.Fprintf(c.Out, "%s: %s\n", list.what, render.Clean(name))
		}
	}
	result := "all is well"
	if !found.OK() {
		result = "the registry is damaged"
	}
	fmt.Fprintf(c.Out, "%s and %s looked at, %s: %s\n", count(found.Blobs, "blob"), count(found.Manifests, "manifest"), sizeText(found.Size), result)
}
