package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"kiln/internal/apiclient"
	"kiln/internal/secret"
	"kiln/internal/task"
)

func newSecretCommand(c *cli) *cobra.Command {
	cmd := group("secret", "Manage the secrets that tasks use",
		"Manage secrets, which tasks use by name. The server keeps them encrypted; no command prints a value.")
	cmd.AddCommand(newSecretSetCommand(c), newSecretListCommand(c), newSecretRemoveCommand(c))
	return cmd
}

func newSecretSetCommand(c *cli) *cobra.Command {
	var file, variable string
	cmd := &cobra.Command{
		Use:   "set [flags] NAME",
		Short: "Store the value of a secret",
		Long: "Store the value of a secret, new or not. The value is read from standard input, a file or an environment\n" +
			"variable; it is asked for if standard input is a terminal. Of a single line the line break is left out.\n" +
			"Runs that have not begun use the new value.",
		Example: "  kiln secret set forge-token <token.txt\n  kiln secret set hub-password --from-env HUB_PASSWORD",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usagef(cmd.CommandPath()+" --help", "NAME, the name of the secret, is missing")
			case len(args) > 1 || strings.Contains(args[0], "="):
				name, _, _ := strings.Cut(args[0], "=")
				return usagef("kiln secret set "+name+" <FILE", "the value must not be an argument: a secret on the command line is visible "+
					"to every user of this host and stays in the shell's history")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := task.ValidSecretName(args[0]); err != nil {
				return usagef("", "name of the secret: %w", err)
			}
			value, err := c.secretValue(cmd, args[0], file, variable)
			if err != nil {
				return err
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			if _, err := client.SetSecret(cmd.Context(), args[0], value); err != nil {
				return err
			}
			c.say(fmt.Sprintf("secret %q is stored", args[0]))
			return nil
		},
		ValidArgsFunction: c.completeSecret,
	}
	cmd.Flags().StringVar(&file, "from-file", "", "`FILE` with the value")
	cmd.Flags().StringVar(&variable, "from-env", "", "environment `VARIABLE` with the value")
	return cmd
}

// secretValue reads the value of a secret from where the user says it is.
func (c *cli) secretValue(cmd *cobra.Command, name, file, variable string) (string, error) {
	var value []byte
	var err error
	stdin, _ := c.In.(*os.File)
	switch {
	case file != "" && variable != "":
		return "", usagef(cmd.CommandPath()+" --help", "--from-file and --from-env exclude each other")
	case variable != "":
		v, set := c.Lookup(variable)
		if !set {
			return "", usagef("", "the environment variable %s is not set", variable)
		}
		value = []byte(v)
	case file != "" && file != "-":
		value, err = readFile(file)
	case stdin != nil && term.IsTerminal(int(stdin.Fd())):
		fmt.Fprintf(c.Err, "Value of secret %s: ", name)
		value, err = term.ReadPassword(int(stdin.Fd()))
		fmt.Fprintln(c.Err)
	default:
		value, err = readInput("standard input", c.In)
	}
	if err != nil {
		return "", err
	}
	text := secret.SingleLine(string(value))
	return text, checkSecretValue(text)
}

// checkSecretValue refuses what could not be handed to a process. No message holds a part of the value.
func checkSecretValue(text string) error {
	switch {
	case text == "":
		return usagef("", "the value is empty")
	case strings.ToValidUTF8(text, "") != text || strings.ContainsRune(text, 0):
		return &usageError{err: errors.New("the value is no text"), try: "encode it, as with base64"}
	}
	return nil
}

func newSecretListCommand(c *cli) *cobra.Command {
	return newListCommand(c, listing[apiclient.Secret]{
		use: "list [flags]", short: "List the names of the secrets",
		get:    (*apiclient.Client).Secrets,
		header: "NAME\tUPDATED",
		row: func(w io.Writer, s apiclient.Secret) {
			fmt.Fprintf(w, "%s\t%s ago\n", s.Name, age(time.Since(s.Updated)))
		},
	})
}

func newSecretRemoveCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME",
		Short:             "Remove a secret",
		Args:              argument("NAME, the name of a secret,"),
		ValidArgsFunction: c.completeSecret,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := task.ValidSecretName(args[0]); err != nil {
				return usagef("kiln secret list", "name of the secret: %w", err)
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			users, err := client.RemoveSecret(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if len(users) > 0 {
				c.say("warning: tasks that need it cannot be run now: " + strings.Join(users, ", "))
			}
			return nil
		},
	}
}

// completeSecret proposes the names of secrets.
func (c *cli) completeSecret(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := c.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	secrets, err := client.Secrets(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]string, len(secrets))
	for i, s := range secrets {
		names[i] = s.Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
