package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/webhook"
)

const hookArgument = "hook (its ID or name)"

func newHookCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hook",
		Short: "Keep the addresses that forges and registries deliver to",
		Long: "A hook is an address of this server that a git forge or a registry delivers its webhooks to. Each has an\n" +
			"ID that nobody can guess, and a secret that deliveries are authenticated by.",
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newHookCreateCommand(c), newHookListCommand(c), newHookShowCommand(c), newHookRotateCommand(c),
		newHookSwitchCommand(c, true), newHookSwitchCommand(c, false), newHookCheckCommand(c), newHookDeleteCommand(c))
	return cmd
}

func newHookCreateCommand(c *cli) *cobra.Command {
	var h apiclient.CreateHook
	output := outputFlag{allowed: []string{"text", "json"}, value: "text"}
	cmd := &cobra.Command{
		Use:   "create --provider PROVIDER [flags]",
		Short: "Make a hook",
		Long: "Make a hook and print its address and secret, and what to enter at the forge or registry. The secret is\n" +
			"shown this once. With --token-secret the server registers the hook itself at GitHub, GitLab, Gitea or\n" +
			"Forgejo, with the token stored under that name (kiln secret set).\n\n" +
			"Providers: " + strings.Join(webhook.Providers(), ", "),
		Example: "  kiln hook create --provider github\n" +
			"  kiln hook create --provider gitea --repo https://git.example.com/team/app --token-secret forge --address https://kiln.example.com",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if h.Provider == "" {
				return usagef("--provider "+webhook.Providers()[0], "--provider is missing")
			}
			return c.hookCreate(cmd.Context(), h, output)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&h.Provider, "provider", "", "who delivers: github, gitlab, gitea, forgejo, dockerhub, generic ...")
	f.StringVar(&h.Name, "name", "", "name of the hook (default made of provider and ID)")
	f.StringVar(&h.Repository, "repo", "", "URL of the repository that the hook is for")
	f.StringVar(&h.TokenSecret, "token-secret", "", "secret with a token of the forge: registers the hook at --repo")
	f.StringVar(&h.API, "api-url", "", "address of the forge's API (default derived from --repo)")
	f.StringVar(&h.Address, "address", "", "address of this server as the sender reaches it (default the server's --public-url, else the one used now)")
	f.StringVar(&h.Registry, "registry", "", "how images name the registry that delivers: host[:port]")
	f.VarP(&output, "output", "o", "format")
	return cmd
}

func (c *cli) hookCreate(ctx context.Context, h apiclient.CreateHook, output outputFlag) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	made, err := client.CreateHook(ctx, h)
	if err != nil {
		return err
	}
	if output.json() {
		return c.printJSON(made)
	}
	fmt.Fprintf(c.Out, "hook %s (%s)\n", made.Name, made.ID)
	if made.Registered {
		fmt.Fprintf(c.Out, "registered at %s; kiln hook check %s says whether it is still there\n", render.Clean(made.Repository), made.Name)
		return nil
	}
	c.printHookSecret(made)
	return nil
}

// printHookSecret prints a new secret and where it goes.
func (c *cli) printHookSecret(h apiclient.Hook) {
	address := h.URL
	if inURL(h.Provider) {
		address += "?token=" + h.Secret
	}
	fmt.Fprintf(c.Out, "address  %s\nsecret   %s\n\nThe secret is not shown again. %s\n", address, h.Secret, whatToEnter(h))
}

// inURL reports whether a provider can carry the secret nowhere but in the address.
func inURL(provider string) bool { return provider == "dockerhub" || provider == "quay" }

// whatToEnter tells a person where address and secret go.
func whatToEnter(h apiclient.Hook) string {
	page := strings.TrimSuffix(strings.TrimSuffix(h.Repository, "/"), ".git")
	at := func(path, otherwise string) string {
		if strings.HasPrefix(page, "http") {
			return render.Clean(page + path)
		}
		return otherwise
	}
	switch h.Provider {
	case "github":
		return "At " + at("/settings/hooks/new", "GitHub, in the repository's Settings, Webhooks, Add webhook") +
			":\n  Payload URL    the address\n  Content type   application/json\n  Secret         the secret\n  Events         pushes and pull requests (and packages, for images of ghcr.io)"
	case "gitlab":
		return "At " + at("/-/hooks", "GitLab, in the project's Settings, Webhooks") +
			":\n  URL            the address\n  Secret token   the secret\n  Trigger        push events, tag push events, merge request events"
	case "gitea", "forgejo":
		return "At " + at("/settings/hooks/"+h.Provider+"/new", "the repository's Settings, Webhooks, Add webhook") +
			":\n  Target URL     the address\n  Content type   application/json\n  Secret         the secret\n  Trigger on     push, create, delete, pull request, pull request synchronized"
	case "bitbucket":
		return "At the repository's settings, Webhooks, Add webhook:\n  URL            the address\n  Secret         the secret\n  Triggers       repository push; pull request created, updated, merged, declined"
	case "azure-devops":
		return "At the project's settings, Service hooks, add Web Hooks for \"Code pushed\" and the pull request events:\n  URL            the address\n  Basic auth     any user name, the secret as the password"
	case "dockerhub":
		return "At Docker Hub, in the repository's Webhooks: enter the whole address, which holds the secret."
	case "quay":
		return "At Quay, in the repository's Settings, Create Notification, Push to Repository, Webhook POST: enter the whole address, which holds the secret."
	case "harbor":
		return "At Harbor, in the project's Webhooks, New Webhook, for \"Artifact pushed\":\n  Endpoint URL   the address\n  Auth header    Bearer and the secret"
	case "acr":
		return "With the Azure CLI:\n  az acr webhook create -r REGISTRY -n kiln --actions push --uri ADDRESS --headers \"Authorization=Bearer SECRET\""
	case "distribution":
		return "In the registry's configuration, under notifications.endpoints:\n  - name: kiln\n    url: the address\n    headers: {Authorization: [Bearer SECRET]}"
	}
	return "How the sender signs, or where it puts the secret, is in docs/webhooks.md."
}

func newHookListCommand(c *cli) *cobra.Command {
	return newListCommand(c, listing[apiclient.Hook]{
		use: "list", short: "List the hooks",
		get:      (*apiclient.Client).Hooks,
		document: func(all []apiclient.Hook) any { return apiclient.Hooks{Hooks: all} },
		header:   "NAME\tPROVIDER\tSTATUS\tLAST DELIVERY\tREPOSITORY\tID",
		row: func(w io.Writer, h apiclient.Hook) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", h.Name, h.Provider, hookStatus(h), lastDelivery(h), render.Clean(orDash(h.Repository)), h.ID)
		},
	})
}

func hookStatus(h apiclient.Hook) string {
	switch {
	case h.Disabled:
		return "Disabled"
	case h.Rotating:
		return "Enabled, rotating"
	}
	return "Enabled"
}

func lastDelivery(h apiclient.Hook) string {
	if h.LastDelivery.IsZero() {
		return "-"
	}
	return age(time.Since(h.LastDelivery)) + " ago"
}

// withHook makes a command that does something with one hook.
func (c *cli) withHook(use, short, long string, do func(ctx context.Context, client *apiclient.Client, hook string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " HOOK", Short: short, Long: long, Args: argument(hookArgument), ValidArgsFunction: c.completeHook,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			return do(cmd.Context(), client, args[0])
		},
	}
}

func (c *cli) completeHook(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := c.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	hooks, err := client.Hooks(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, h := range hooks {
		names = append(names, h.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func newHookShowCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"text", "json"}, value: "text"}
	cmd := c.withHook("show", "Show a hook", "Show a hook. Its secret cannot be shown again; kiln hook rotate makes another.",
		func(ctx context.Context, client *apiclient.Client, hook string) error {
			h, err := client.Hook(ctx, hook)
			if err != nil {
				return err
			}
			if output.json() {
				return c.printJSON(h)
			}
			w := tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)
			fmt.Fprintf(w, "name\t%s\nid\t%s\nprovider\t%s\nstatus\t%s\naddress\t%s\n", h.Name, h.ID, h.Provider, hookStatus(h), h.URL)
			fmt.Fprintf(w, "repository\t%s\nregistered\t%t\nregistry\t%s\ncreated\t%s\nlast delivery\t%s\n", render.Clean(orDash(h.Repository)),
				h.Registered, orDash(h.Registry), clock(h.Created), lastDelivery(h))
			return w.Flush()
		})
	cmd.Flags().VarP(&output, "output", "o", "format")
	return cmd
}

func newHookRotateCommand(c *cli) *cobra.Command {
	finish := false
	cmd := c.withHook("rotate", "Give a hook another secret",
		"Make another secret for a hook and print it, or give it to the forge if the hook is registered there. The\n"+
			"secret so far is accepted too, until --finish: so no delivery is refused while the sender is changed.",
		func(ctx context.Context, client *apiclient.Client, hook string) error {
			h, err := client.RotateHook(ctx, hook, apiclient.RotateHook{Finish: finish})
			switch {
			case err != nil:
				return err
			case finish:
				c.say("hook " + h.Name + " accepts its present secret only")
				return nil
			case h.Registered:
				fmt.Fprintf(c.Out, "the forge has the new secret; once deliveries arrive: kiln hook rotate --finish %s\n", h.Name)
				return nil
			}
			c.printHookSecret(h)
			fmt.Fprintf(c.Out, "\nThe secret so far is accepted too, until: kiln hook rotate --finish %s\n", h.Name)
			return nil
		})
	cmd.Flags().BoolVar(&finish, "finish", false, "accept the secret before the last rotation no more")
	return cmd
}

func newHookSwitchCommand(c *cli, enable bool) *cobra.Command {
	use, short, long := "disable", "Have a hook drop what is delivered", "Drop what is delivered by a hook. The sender is told so, and sees no error."
	if enable {
		use, short, long = "enable", "Have a hook act on deliveries again", "Act on what is delivered by a hook again. What came while it was disabled is not repeated."
	}
	return c.withHook(use, short, long, func(ctx context.Context, client *apiclient.Client, hook string) error {
		h, err := client.EnableHook(ctx, hook, enable)
		if err == nil {
			c.say("hook " + h.Name + ": " + hookStatus(h))
		}
		return err
	})
}

func newHookCheckCommand(c *cli) *cobra.Command {
	return c.withHook("check", "Ask the forge whether a hook is still there",
		"Ask the forge whether a hook that kiln has registered is still there, active, and delivers to this server.\nIt exits with 1 if not.",
		func(ctx context.Context, client *apiclient.Client, hook string) error {
			check, err := client.CheckHook(ctx, hook)
			switch {
			case err != nil:
				return err
			case !check.OK:
				return fmt.Errorf("hook %s: %s", hook, check.Problem)
			}
			c.say("hook " + hook + " is at the forge and active")
			return nil
		})
}

func newHookDeleteCommand(c *cli) *cobra.Command {
	local := false
	cmd := c.withHook("delete", "Delete a hook",
		"Delete a hook, at the forge too if kiln has registered it there. Deliveries to its address are refused from then on.",
		func(ctx context.Context, client *apiclient.Client, hook string) error {
			h, err := client.DeleteHook(ctx, hook, local)
			if err == nil {
				c.say("hook " + h.Name + " is deleted")
			}
			return err
		})
	cmd.Flags().BoolVar(&local, "local", false, "delete it here only, without asking the forge")
	return cmd
}
