package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/event"
)

func newTokenCommand(c *cli) *cobra.Command {
	cmd := group("token", "Manage tokens for the registry",
		"Manage tokens, with which people and programs use the server's registry. A token has permissions for some\n"+
			"repositories, and may expire. The server stores no token, only what it can recognize it by.")
	cmd.AddCommand(newTokenCreateCommand(c), newTokenListCommand(c), newTokenAdminCommand(c),
		c.withToken("show", "Show a token", "Show what a token is good for. Its password cannot be shown.", (*apiclient.Client).ShowToken),
		c.withToken("delete", "Delete a token", "Delete a token. From then on it is good for nothing.", (*apiclient.Client).DeleteToken))
	return cmd
}

func newTokenCreateCommand(c *cli) *cobra.Command {
	var grants []string
	var expires keepAge
	output := outputFlag{allowed: []string{"text", "json"}, value: "text"}
	cmd := &cobra.Command{
		Use:   "create NAME --repo REPOSITORY=PERMISSION,... [flags]",
		Short: "Make a token and print its password",
		Long: "Make a token and print its password, which is not shown again. Clients give it as the password; the user\n" +
			"name is free. A permission is for one repository, or with a * or / at the end for all that begin so:\n\n" +
			"  content/read     pull: read manifests and blobs\n" +
			"  content/write    push, together with content/read: write manifests, blobs and tags\n" +
			"  content/delete   delete manifests, tags and blobs\n" +
			"  metadata/read    list tags, and see manifests, tags and locks with kiln repo, manifest and tag\n" +
			"  metadata/write   set and remove locks\n\n" +
			"pull is short for content/read,metadata/read; push for content/read,content/write,metadata/read; all for all.\n" +
			"No pattern stands for kiln's own repositories.",
		Example: "  kiln token create ci --repo 'team/*=push' --expires 30d | docker login -u ci --password-stdin registry.example.com\n" +
			"  kiln token create audit --repo 'team/app=content/read,metadata/read' --repo '*=metadata/read'",
		Args: argument("NAME, the name of the token,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := apiclient.CreateToken{Name: args[0], Seconds: int64(time.Duration(expires) / time.Second)}
			if err := auth.ValidTokenName(req.Name); err != nil {
				return usagef("", "name of the token: %w", err)
			}
			if len(grants) == 0 {
				return usagef("--repo 'team/*=pull'", "say what the token is for with --repo")
			}
			for _, s := range grants {
				g, err := auth.ParseGrant(s)
				if err != nil {
					return usagef(cmd.CommandPath()+" --help", "--repo %w", err)
				}
				req.Grants = append(req.Grants, g)
			}
			if expires != 0 && req.Seconds == 0 {
				return usagef("--expires 30d", "--expires %s: want a second or more", &expires)
			}
			return c.createToken(cmd.Context(), req, output)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&grants, "repo", nil, "`REPOSITORY=PERMISSION,...` that the token has; may be repeated")
	f.Var(&expires, "expires", "how long the token is good for, such as 30d or 12h (default until it is deleted)")
	f.VarP(&output, "output", "o", "format")
	return cmd
}

func (c *cli) createToken(ctx context.Context, req apiclient.CreateToken, output outputFlag) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	made, err := client.CreateToken(ctx, req)
	if err != nil {
		return err
	}
	if output.json() {
		return c.printJSON(made)
	}
	fmt.Fprintln(c.Out, made.Password)
	c.say(fmt.Sprintf("this is the password of token %s; it is not shown again. The token %s", made.Name, untilWhen(made)))
	return nil
}

// untilWhen says how long a token is good for.
func untilWhen(t apiclient.Token) string {
	switch {
	case t.Expires.IsZero():
		return "does not expire"
	case t.Expires.Before(time.Now()):
		return "has expired " + t.Expires.Format(time.RFC3339)
	}
	return "expires " + t.Expires.Format(time.RFC3339)
}

func newTokenListCommand(c *cli) *cobra.Command {
	return newListCommand(c, listing[apiclient.Token]{
		use: "list [flags]", short: "List the tokens",
		get:      (*apiclient.Client).Tokens,
		document: func(all []apiclient.Token) any { return apiclient.Tokens{Tokens: all} },
		header:   "NAME\tCREATED\tEXPIRES\tREPOSITORIES",
		row: func(w io.Writer, t apiclient.Token) {
			expires := "never"
			if !t.Expires.IsZero() {
				expires = t.Expires.Format(time.RFC3339)
			}
			var repositories []string
			for _, g := range t.Grants {
				repositories = append(repositories, g.Repository)
			}
			fmt.Fprintf(w, "%s\t%s ago\t%s\t%s\n", t.Name, age(time.Since(t.Created)), expires, strings.Join(repositories, " "))
		},
	})
}

// withToken makes a command that does something with one token and prints it.
func (c *cli) withToken(use, short, long string, do func(*apiclient.Client, context.Context, string) (apiclient.Token, error)) *cobra.Command {
	output := outputFlag{allowed: []string{"text", "json"}, value: "text"}
	cmd := &cobra.Command{
		Use: use + " NAME", Short: short, Long: long, Args: argument("NAME, the name of a token,"), ValidArgsFunction: c.completeToken,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			t, err := do(client, cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if output.json() {
				return c.printJSON(t)
			}
			c.printToken(use, t)
			return nil
		},
	}
	cmd.Flags().VarP(&output, "output", "o", "format")
	return cmd
}

func (c *cli) printToken(use string, t apiclient.Token) {
	if use == "delete" {
		c.say(fmt.Sprintf("token %q is deleted", t.Name))
		return
	}
	fmt.Fprintf(c.Out, "token %s, made %s ago, %s\n", t.Name, age(time.Since(t.Created)), untilWhen(t))
	w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
	for _, g := range t.Grants {
		fmt.Fprintf(w, "  %s\t%s\n", g.Repository, permissionWords(g.Permissions))
	}
	_ = w.Flush()
}

func permissionWords(list []event.Permission) string {
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = string(p)
	}
	return strings.Join(words, " ")
}

// completeToken proposes the names of tokens.
func (c *cli) completeToken(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := c.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	tokens, err := client.Tokens(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]string, len(tokens))
	for i, t := range tokens {
		names[i] = t.Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
