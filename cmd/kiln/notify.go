package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/event"
)

func newNotifyCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "notify",
		Short: "Keep the addresses that events are sent to",
		Long: "Send events of runs and images to an address of your own: CloudEvents, signed as Standard Webhooks says,\n" +
			"repeated for a day if they are not taken. docs/webhooks.md describes them.",
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNotifyAddCommand(c), newNotifyListCommand(c), newNotifyRemoveCommand(c), newNotifyTestCommand(c),
		newNotifyFailedCommand(c), newNotifyRetryCommand(c))
	return cmd
}

func newNotifyAddCommand(c *cli) *cobra.Command {
	var t apiclient.AddTarget
	var file string
	cmd := &cobra.Command{
		Use:   "add --url URL | --url-from-file FILE --events EVENT[,EVENT...]",
		Short: "Have events sent to an address",
		Long: "Have events sent to an address: " + strings.Join(event.NotifiedTypes, ", ") + ".\n" +
			"With --secret each is signed with the secret of that name (kiln secret set).\n" +
			"The address is stored sealed, and no more than its host is shown again. One that holds a token is better\n" +
			"given with --url-from-file than on a command line, which others on the machine can read.",
		Example: "  kiln notify add --url https://ci.example.com/kiln --events run.finished,image.pushed --secret signing --task app\n" +
			"  kiln notify add --url-from-file chat-url --name chat --events run.finished",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (t.URL == "") == (file == "") || len(t.Events) == 0 {
				return usagef("--url https://HOST/PATH --events run.finished", "--url or --url-from-file, and --events are needed")
			}
			if file != "" {
				address, err := c.secretValue(cmd, "URL", file, "")
				if err != nil {
					return err
				}
				t.URL = strings.TrimSpace(address)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			made, err := client.AddTarget(cmd.Context(), t)
			if err == nil {
				fmt.Fprintf(c.Out, "target %s (%s)\n", made.Name, made.ID)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&t.URL, "url", "", "address to send to")
	f.StringVar(&file, "url-from-file", "", "`FILE` with the address to send to; - is standard input")
	f.StringSliceVar(&t.Events, "events", nil, "types of events to send")
	f.StringVar(&t.Secret, "secret", "", "name of the secret to sign with (default not signed)")
	f.StringVar(&t.Task, "task", "", "only events of this task")
	f.StringVar(&t.Name, "name", "", "name of the target (default made of the host)")
	return cmd
}

func newNotifyListCommand(c *cli) *cobra.Command {
	return newListCommand(c, listing[apiclient.Target]{
		use: "list", short: "List the targets",
		get:      (*apiclient.Client).Targets,
		document: func(all []apiclient.Target) any { return apiclient.Targets{Targets: all} },
		header:   "NAME\tSTATUS\tFAILED\tEVENTS\tTASK\tURL",
		row: func(w io.Writer, t apiclient.Target) {
			status := "Enabled"
			if t.Disabled {
				status = "Disabled: " + t.Reason
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", t.Name, render.Clean(status), t.Failed, strings.Join(t.Events, ","),
				render.Clean(orDash(t.Task)), render.Clean(t.URL))
		},
	})
}

// onTarget makes a command that does something with one target and then says so.
func (c *cli) onTarget(use, short, done string, do func(*apiclient.Client, context.Context, string) (apiclient.Target, error)) *cobra.Command {
	return &cobra.Command{
		Use: use + " TARGET", Short: short, Args: argument("target (its ID or name)"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			t, err := do(client, cmd.Context(), args[0])
			if err == nil {
				c.say("target " + t.Name + " " + done)
			}
			return err
		},
	}
}

func newNotifyRemoveCommand(c *cli) *cobra.Command {
	return c.onTarget("remove", "Send nothing to a target any more, and drop what waits for it", "is removed", (*apiclient.Client).RemoveTarget)
}

func newNotifyTestCommand(c *cli) *cobra.Command {
	return c.onTarget("test", "Send a target an event of type "+event.TypeTest, "has taken it", (*apiclient.Client).TestTarget)
}

func newNotifyFailedCommand(c *cli) *cobra.Command {
	return newListCommand(c, listing[apiclient.FailedNotification]{
		use: "failed", short: "List notifications that were given up",
		long:     "List notifications that could not be delivered for a day and were given up. They are kept for 30 days.",
		get:      (*apiclient.Client).FailedNotifications,
		document: func(all []apiclient.FailedNotification) any { return apiclient.FailedNotifications{Failed: all} },
		header:   "ID\tTARGET\tGIVEN UP\tATTEMPTS\tEVENT\tERROR",
		row: func(w io.Writer, f apiclient.FailedNotification) {
			fmt.Fprintf(w, "%s\t%s\t%s ago\t%d\t%s\t%s\n", f.ID, f.Target, age(time.Since(f.At)), f.Attempts, render.Clean(f.Type), render.Clean(f.Error))
		},
	})
}

func newNotifyRetryCommand(c *cli) *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "retry ID... | --all",
		Short: "Send notifications again that were given up",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("kiln notify failed", "name notifications by their IDs, or all of them with --all")
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			n, err := client.RetryFailed(cmd.Context(), args)
			if err == nil {
				c.say(fmt.Sprintf("%d notifications are sent again", n))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all of them")
	return cmd
}
