package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/event"
)

func newTokenCommand(c *cli) *cobra.Command {
	cmd := group("token", "Manage tokens for the API and the registry",
		"Manage tokens, with which people and programs use the server. A token has a role, permissions for some\n"+
			"repositories of the registry, or both, and may expire. The server stores no token, only what it can recognize\n"+
			"it by.")
	remove := c.withToken("delete", "Delete a token", "Delete a token. From then on it is good for nothing.", (*apiclient.Client).DeleteToken)
	remove.Aliases = []string{"revoke"}
	cmd.AddCommand(newTokenCreateCommand(c), newTokenListCommand(c), newTokenAdminCommand(c),
		c.withToken("show", "Show a token", "Show what a token is good for, and when it was used last. Its password cannot be shown.", (*apiclient.Client).ShowToken), remove)
	return cmd
}

const tokenCreateLong = `Make a token and print its password, which is not shown again. Clients set it as KILN_TOKEN; clients of
the registry give it as the password, and the user name is free.

A role says what the token may do with the API:

  reader   look at tasks, runs, logs, events, and why something ran
  runner   the same, and run tasks as they are, and cancel, repeat and approve their runs
  author   the same, and write and delete tasks and secrets, and kiln build and kiln run
  admin    everything

--task limits a role to tasks by their names, or with a * at the end by how those begin, and to secrets by
theirs. A permission is for one repository, or with a * or / at the end for all that begin so:

  content/read     pull: read manifests and blobs
  content/write    push, together with content/read: write manifests, blobs and tags
  content/delete   delete manifests, tags and blobs
  metadata/read    list tags, and see manifests, tags and locks with kiln repo, manifest and tag
  metadata/write   set and remove locks

pull is short for content/read,metadata/read; push for content/read,content/write,metadata/read; all for all.
A role brings permissions of its own, for the repositories that --repo names without any, or for all if
there is no --repo: push for authors, pull for runners and readers. What runs push and pull is limited to
what the author of their task may. No pattern stands for kiln's own repositories.`

func newTokenCreateCommand(c *cli) *cobra.Command {
	var req apiclient.CreateToken
	var grants []string
	var expires keepAge
	output := outputFlag{allowed: []string{"text", "json"}, value: "text"}
	cmd := &cobra.Command{
		Use:   "create NAME {--role ROLE | --repo REPOSITORY=PERMISSION,...} [flags]",
		Short: "Make a token and print its password",
		Long:  tokenCreateLong,
		Example: "  kiln token create dev --role author --task 'web-*' --repo 'web/*' --expires 90d\n" +
			"  kiln token create ci --repo 'team/*=push' --expires 30d | docker login -u ci --password-stdin registry.example.com\n" +
			"  kiln token create audit --repo 'team/app=content/read,metadata/read' --repo '*=metadata/read'",
		Args: argument("NAME, the name of the token,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.Seconds = args[0], int64(time.Duration(expires)/time.Second)
			if err := auth.ValidTokenName(req.Name); err != nil {
				return usagef("", "name of the token: %w", err)
			}
			if expires != 0 && req.Seconds == 0 {
				return usagef("--expires 30d", "--expires %s: want a second or more", &expires)
			}
			if err := tokenGrants(cmd, &req, grants); err != nil {
				return err
			}
			return c.createToken(cmd.Context(), req, output)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&req.Role, "role", "", "what the token may do with the API: `admin|author|runner|reader` (default nothing)")
	f.StringArrayVar(&req.Tasks, "task", nil, "`TASK` or pattern such as 'web-*' that a role is limited to; may be repeated")
	f.StringArrayVar(&grants, "repo", nil, "`REPOSITORY=PERMISSION,...` that the token has, or with a role REPOSITORY alone; may be repeated")
	f.Var(&expires, "expires", "how long the token is good for, such as 30d or 12h (default until it is deleted)")
	f.VarP(&output, "output", "o", "format")
	return cmd
}

// tokenGrants adds what --repo says to a request, and refuses one that means nothing.
func tokenGrants(cmd *cobra.Command, req *apiclient.CreateToken, grants []string) error {
	if len(grants) == 0 && req.Role == "" {
		return usagef("--role reader, or --repo 'team/*=pull'", "say what the token is for with --role or --repo")
	}
	for _, s := range grants {
		if req.Role != "" && !strings.Contains(s, "=") {
			req.Grants = append(req.Grants, event.Grant{Repository: s})
			continue
		}
		g, err := auth.ParseGrant(s)
		if err != nil {
			return usagef(cmd.CommandPath()+" --help", "--repo %w", err)
		}
		req.Grants = append(req.Grants, g)
	}
	t := event.Token{Grants: slices.Clone(req.Grants), Tasks: req.Tasks}
	if err := auth.SetRole(&t, auth.Role(req.Role)); err != nil {
		return usagef(cmd.CommandPath()+" --help", "%w", err)
	}
	return nil
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
		header:   "NAME\tROLE\tCREATED\tEXPIRES\tUSED\tTASKS\tREPOSITORIES",
		row: func(w io.Writer, t apiclient.Token) {
			expires := "never"
			if !t.Expires.IsZero() {
				expires = t.Expires.Format(time.RFC3339)
			}
			var repositories []string
			for _, g := range t.Grants {
				repositories = append(repositories, g.Repository)
			}
			used := "never"
			if !t.Used.IsZero() {
				used = age(time.Since(t.Used)) + " ago"
			}
			fmt.Fprintf(w, "%s\t%s\t%s ago\t%s\t%s\t%s\t%s\n", t.Name, orDash(t.Role), age(time.Since(t.Created)), expires, used,
				orDash(strings.Join(t.Tasks, " ")), orDash(strings.Join(repositories, " ")))
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
	if t.Role != "" {
		fmt.Fprintf(c.Out, "  role %s for %s\n", t.Role, cmp.Or(strings.Join(t.Tasks, ", "), "all tasks"))
	}
	if !t.Used.IsZero() {
		fmt.Fprintf(c.Out, "  last used %s ago\n", age(time.Since(t.Used)))
	}
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
