package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/graph"
	"kiln/internal/netguard"
	"kiln/internal/registry"
)

func newImportCommand(c *cli) *cobra.Command {
	var im apiclient.Import
	var stdin bool
	f := newImageFlags()
	cmd := &cobra.Command{
		Use:   "import SOURCE [flags]",
		Short: "Copy an image of any registry into the server's",
		Long: "Have the server copy an image from a registry, without a detour by this host: by tag or digest, with all\n" +
			"images of an index. A source without a host is Docker Hub's. What the server has already is not fetched.\n" +
			"For a registry that asks for credentials, those of a task for it are used, or --username.",
		Args: argument("SOURCE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			im.Source = args[0]
			if len(im.Names) == 0 {
				im.Names = []string{importedName(im.Source)}
			}
			if (im.Username != "") != stdin {
				return usagef("--username NAME --password-stdin", "--username and --password-stdin are given together")
			}
			if stdin {
				line, err := bufio.NewReader(io.LimitReader(c.In, 64<<10)).ReadString('\n')
				if err != nil && !errors.Is(err, io.EOF) {
					return err
				}
				im.Password = strings.TrimRight(line, "\r\n")
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			done, err := client.Import(cmd.Context(), im)
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(done)
			}
			for _, name := range done.Names {
				fmt.Fprintln(c.Out, render.Clean(name))
			}
			c.say(fmt.Sprintf("%s: %s and %s fetched, %s", done.Digest, count(done.Manifests, "manifest"), count(done.Blobs, "blob"), sizeText(done.Size)))
			return nil
		},
	}
	f.add(cmd)
	fl := cmd.Flags()
	fl.StringArrayVarP(&im.Names, "tag", "t", nil, "`NAME` that it gets: REPOSITORY:TAG, or REPOSITORY for no tag (default that of the source); may be repeated")
	fl.BoolVar(&im.Force, "force", false, "move tags that name something else")
	fl.StringVar(&im.Username, "username", "", "user name for the registry")
	fl.BoolVar(&stdin, "password-stdin", false, "read the password for the registry from standard input")
	return cmd
}

// importedName is what an image is called if nobody says: as in its registry.
func importedName(source string) string {
	name := source
	if host, rest, ok := strings.Cut(source, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		name = rest
	}
	if repository, _, ok := strings.Cut(name, "@"); ok {
		repository, _, _ = strings.Cut(repository, ":")
		return repository
	}
	if !strings.Contains(name, ":") {
		name += ":latest"
	}
	return name
}

// importImage copies an image of a registry.
func (n *node) importImage(ctx context.Context, im apiclient.Import) (apiclient.Imported, error) {
	name, err := graph.Canonical(im.Source, graph.Aliases{})
	if err != nil {
		return apiclient.Imported{}, &apiclient.Error{Status: http.StatusUnprocessableEntity, Code: apiclient.CodeInvalid, Message: "source: " + err.Error()}
	}
	host, _, _ := strings.Cut(string(name), "/")
	src := registry.Source{Reference: string(name), User: im.Username, Password: im.Password, PlainHTTP: n.allowed.PlainHTTP(host),
		Own: slices.Contains(append([]string{n.host}, n.aliases...), host)}
	if im.Username == "" && !src.Own {
		if src.User, src.Password, err = n.logins.of(ctx, host); err != nil {
			return apiclient.Imported{}, err
		}
	}
	t := n.outside()
	defer t.CloseIdleConnections()
	src.Transport = t
	done, err := n.registry.Import(ctx, src, im.Names, im.Force)
	if errors.Is(err, netguard.ErrRefused) {
		err = &apiclient.Error{Status: http.StatusUnprocessableEntity, Code: apiclient.CodeInvalid, Message: err.Error()}
	}
	return done, err
}
