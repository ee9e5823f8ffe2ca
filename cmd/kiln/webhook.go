package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/event"
)

func newWebhookCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "webhook",
		Short: "Keep the addresses that are told of pushes and deletions in the registry",
		Long: "Tell an address of your own of what happens in the registry, in the words of ACR's webhooks. Requests are\n" +
			"repeated for a day if they are not taken; docs/webhooks.md describes them.",
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newWebhookCreateCommand(c), newWebhookUpdateCommand(c), newWebhookListCommand(c),
		c.onWebhook("show", "Describe a webhook", "", (*apiclient.Client).Webhook),
		c.onWebhook("delete", "Delete a webhook, and drop what waits for it", "is deleted", (*apiclient.Client).DeleteWebhook),
		c.onWebhook("ping", "Send a webhook a request of the action ping", "has taken it", (*apiclient.Client).PingWebhook),
		newWebhookEventsCommand(c))
	return cmd
}

// webhookName lets a command take the name of a webhook, as its argument or as --name, and returns how to read it
// and what other arguments there are.
func webhookName(cmd *cobra.Command) func(args []string) (name string, rest []string, err error) {
	var flag string
	cmd.Flags().StringVarP(&flag, "name", "n", "", "`NAME` of the webhook, in place of the argument")
	cmd.Args = cobra.ArbitraryArgs
	return func(args []string) (string, []string, error) {
		switch {
		case flag != "":
			return flag, args, nil
		case len(args) > 0:
			return args[0], args[1:], nil
		}
		return "", nil, usagef(cmd.CommandPath()+" --help", "NAME, the name of a webhook, is missing")
	}
}

// onlyName is webhookName for a command that takes nothing else.
func onlyName(cmd *cobra.Command) func(args []string) (string, error) {
	read := webhookName(cmd)
	return func(args []string) (string, error) {
		name, rest, err := read(args)
		if err == nil && len(rest) > 0 {
			err = usagef(cmd.CommandPath()+" --help", "%q: only one webhook can be named", rest[0])
		}
		return name, err
	}
}

// webhookFlags say what a webhook is.
type webhookFlags struct {
	uri, uriFile, headersFile string
	actions, headers          []string
	scope, status, secret     string
}

func (f *webhookFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.uri, "uri", "", "address to send to")
	fl.StringVar(&f.uriFile, "uri-from-file", "", "`FILE` with the address to send to; - is standard input")
	fl.StringSliceVar(&f.actions, "actions", nil, "what to tell of: "+strings.Join(event.WebhookActions, ", "))
	fl.StringVar(&f.scope, "scope", "", "tell of `REPOSITORY:TAG` alone; * at the end of either stands for whatever follows, REPOSITORY for its tag latest (default all)")
	fl.StringArrayVar(&f.headers, "headers", nil, "a header `NAME=VALUE` of each request; may be repeated")
	fl.StringVar(&f.headersFile, "headers-from-file", "", "`FILE` with headers, one NAME=VALUE a line; - is standard input")
	fl.StringVar(&f.secret, "secret", "", "name of the `SECRET` to sign with (default not signed)")
	fl.StringVar(&f.status, "status", "", "`enabled` or disabled (default enabled)")
}

// request makes of the flags that were given what they ask for.
func (f *webhookFlags) request(c *cli, cmd *cobra.Command, more []string) (apiclient.SetWebhook, error) {
	w := apiclient.SetWebhook{}
	given := cmd.Flags().Changed
	if len(more) > 0 && !given("actions") {
		return w, usagef(cmd.CommandPath()+" --help", "%q: only one webhook can be named", more[0])
	}
	if given("actions") {
		w.Actions = append(slices.Clone(f.actions), more...) // --actions push delete
	}
	if f.uri != "" && f.uriFile != "" {
		return w, usagef("", "--uri and --uri-from-file exclude each other")
	}
	if f.uriFile != "" {
		uri, err := c.secretValue(cmd, "URI", f.uriFile, "")
		if err != nil {
			return w, err
		}
		f.uri = strings.TrimSpace(uri)
	}
	if f.uri != "" {
		w.URI = &f.uri
	}
	if f.headersFile != "" {
		text, err := c.secretValue(cmd, "headers", f.headersFile, "")
		if err != nil {
			return w, err
		}
		f.headers = append(f.headers, slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.TrimSpace(line) == "" })...)
	}
	if given("headers") || given("headers-from-file") {
		w.Headers = map[string]string{}
		for _, h := range f.headers {
			name, value, ok := strings.Cut(h, "=")
			if ok {
				w.Headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
			} else if strings.TrimSpace(h) != "" {
				return w, usagef("--headers 'X-Name=value'", "a header is not NAME=VALUE") // not shown: it may be a secret
			}
		}
	}
	if given("scope") {
		w.Scope = &f.scope
	}
	if given("secret") {
		w.Secret = &f.secret
	}
	if given("status") {
		enabled := strings.EqualFold(f.status, "enabled")
		if !enabled && !strings.EqualFold(f.status, "disabled") {
			return w, usagef("", "--status %q: want enabled or disabled", f.status)
		}
		w.Enabled = &enabled
	}
	return w, nil
}

func newWebhookCreateCommand(c *cli) *cobra.Command {
	var f webhookFlags
	cmd := &cobra.Command{
		Use:   "create NAME --uri URI | --uri-from-file FILE --actions ACTION[,ACTION...] [flags]",
		Short: "Have an address told of pushes or deletions",
		Long: "Have an address told of pushes or deletions. The address and the headers are stored sealed and not shown\n" +
			"again, but for the host and the names. Those that hold a password are better given in a file than on a\n" +
			"command line, which others on the machine can read.",
		Example: "  kiln webhook create ci --uri https://ci.example.com/push --actions push,delete --scope 'team/app:*' --secret signing\n" +
			"  kiln webhook create -n ci --uri https://ci.example.com/push --actions push delete --headers-from-file headers",
	}
	f.add(cmd)
	name := webhookName(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, more, err := name(args)
		if err != nil {
			return err
		}
		w, err := f.request(c, cmd, more)
		if err != nil {
			return err
		}
		if w.URI == nil || len(w.Actions) == 0 {
			return usagef("--uri https://HOST/PATH --actions push", "--uri or --uri-from-file, and --actions are needed")
		}
		w.Name = name
		client, err := c.client()
		if err != nil {
			return err
		}
		made, err := client.CreateWebhook(cmd.Context(), w)
		if err == nil {
			fmt.Fprintf(c.Out, "webhook %s (%s)\n", made.Name, made.ID)
		}
		return err
	}
	return cmd
}

func newWebhookUpdateCommand(c *cli) *cobra.Command {
	var f webhookFlags
	cmd := &cobra.Command{
		Use:   "update NAME [flags]",
		Short: "Change a webhook",
		Long:  "Change a webhook: what is given, all else stays. --headers replaces all of them; --scope '' is all images.",
	}
	f.add(cmd)
	name := webhookName(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, more, err := name(args)
		if err != nil {
			return err
		}
		w, err := f.request(c, cmd, more)
		if err != nil {
			return err
		}
		client, err := c.client()
		if err != nil {
			return err
		}
		made, err := client.UpdateWebhook(cmd.Context(), name, w)
		if err == nil {
			c.say("updated " + made.Name)
		}
		return err
	}
	return cmd
}

// onWebhook makes a command that does something with one webhook, and then says so or, without words, describes it.
func (c *cli) onWebhook(use, short, done string, do func(*apiclient.Client, context.Context, string) (apiclient.Webhook, error)) *cobra.Command {
	cmd := &cobra.Command{Use: use + " NAME", Short: short}
	name := onlyName(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		client, err := c.client()
		if err != nil {
			return err
		}
		w, err := do(client, cmd.Context(), name)
		switch {
		case err != nil:
			return err
		case done == "":
			return c.printJSON(w)
		}
		c.say("webhook " + w.Name + " " + done)
		return nil
	}
	return cmd
}

func newWebhookListCommand(c *cli) *cobra.Command {
	return newListCommand(c, listing[apiclient.Webhook]{
		use: "list", short: "List the webhooks",
		get:    (*apiclient.Client).Webhooks,
		header: "NAME\tSTATUS\tSCOPE\tACTIONS\tURI",
		row: func(w io.Writer, h apiclient.Webhook) {
			status := "enabled"
			if !h.Enabled {
				status = "disabled: " + h.Reason
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", h.Name, render.Clean(status), orDash(h.Scope), strings.Join(h.Actions, ","), render.Clean(h.URI))
		},
	})
}

func newWebhookEventsCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	cmd := &cobra.Command{
		Use:   "list-events NAME",
		Short: "List the last requests to a webhook, and how it answered",
		Long: fmt.Sprintf("List the last %d requests to a webhook, the newest first, and how it answered. They are kept for 30 days.\n"+
			"With -o json also their bodies.", apiclient.MaxWebhookEvents),
	}
	name := onlyName(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		client, err := c.client()
		if err != nil {
			return err
		}
		events, err := client.WebhookEvents(cmd.Context(), name)
		if err != nil {
			return err
		}
		if output.json() {
			return c.printJSON(events)
		}
		w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, "TIME\tACTION\tIMAGE\tATTEMPT\tTOOK\tANSWER")
		for _, e := range events {
			answer := e.Error
			if answer == "" {
				answer = fmt.Sprint(e.Status, " ", http.StatusText(e.Status))
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", e.At.Format(time.RFC3339), e.Action, render.Clean(orDash(e.Image)), e.Attempt,
				e.Took.Round(time.Millisecond), render.Clean(answer))
		}
		return w.Flush()
	}
	cmd.Flags().VarP(&output, "output", "o", "format")
	return cmd
}
