package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/task"
)

func newTaskCredentialCommand(c *cli) *cobra.Command {
	cmd := group("credential", "Manage how a task signs in to registries",
		"Manage how the runs of a task sign in to registries. A task holds the names of secrets, not their values:\n"+
			"store those with \"kiln secret set\". The server's own registry needs none.")
	cmd.AddCommand(newCredentialSetCommand(c, "add"), newCredentialSetCommand(c, "update"), newCredentialRemoveCommand(c), newCredentialListCommand(c))
	return cmd
}

type credentialFlags struct {
	cred     task.Credential
	password string
}

func (f *credentialFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.StringVar(&f.cred.Server, "login-server", "", "registry, as `HOST[:PORT]`")
	fl.StringVarP(&f.cred.Username, "username", "u", "", "user `NAME`")
	fl.StringVar(&f.cred.UsernameSecret, "username-secret", "", "`SECRET` with the user name")
	fl.StringVar(&f.cred.PasswordSecret, "password-secret", "", "`SECRET` with the password")
	fl.StringVar(&f.cred.TokenSecret, "token-secret", "", "`SECRET` with an identity token, in place of user name and password")
	fl.StringVarP(&f.password, "password", "p", "", "refused: use --password-secret")
	_ = fl.MarkHidden("password")
}

// check refuses a password on the command line.
func (f *credentialFlags) check(cmd *cobra.Command) error {
	if cmd.Flags().Changed("password") {
		return onCommandLine("--password", "--password-secret")
	}
	return required(cmd, "login-server")
}

// onCommandLine refuses a secret value that was given as a flag.
func onCommandLine(flag, instead string) error {
	return usagef("kiln secret set NAME <FILE, then "+instead+" NAME",
		"%s: a secret on the command line is visible to every user of this host and stays in the shell's history; "+
			"a task holds the name of a secret instead", flag)
}

// apply sets what was given. What excludes the new way to sign in is dropped.
func (f *credentialFlags) apply(cred *task.Credential) {
	n := f.cred
	if n.TokenSecret != "" {
		*cred = task.Credential{Server: cred.Server}
	} else if n.Username != "" || n.UsernameSecret != "" || n.PasswordSecret != "" {
		cred.TokenSecret = ""
	}
	if n.Username != "" || n.UsernameSecret != "" {
		cred.Username, cred.UsernameSecret = n.Username, n.UsernameSecret
	}
	if n.PasswordSecret != "" {
		cred.PasswordSecret = n.PasswordSecret
	}
	if n.TokenSecret != "" {
		cred.TokenSecret = n.TokenSecret
	}
}

// newCredentialSetCommand returns the command that adds a credential, or that changes one.
func newCredentialSetCommand(c *cli, verb string) *cobra.Command {
	var f credentialFlags
	short := map[string]string{"add": "Have a task sign in to a registry", "update": "Change how a task signs in to a registry"}[verb]
	cmd := &cobra.Command{
		Use: verb + " [flags] NAME", Short: short,
		Example: "  kiln secret set hub-password <password.txt\n  kiln task credential " + verb + " web --login-server docker.io -u bot --password-secret hub-password",
	}
	name := c.forTask(cmd)
	f.add(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		if err := f.check(cmd); err != nil {
			return err
		}
		return c.editTask(cmd.Context(), name, func(t *task.Task) error {
			i := findCredential(t, f.cred.Server)
			switch {
			case verb == "add" && i >= 0:
				return usagef("kiln task credential update", "task %q has a credential for %s already", t.Name, f.cred.Server)
			case verb == "update" && i < 0:
				return noCredential(t, f.cred.Server)
			case i < 0:
				t.Credentials = append(t.Credentials, task.Credential{Server: f.cred.Server})
				i = len(t.Credentials) - 1
			}
			f.apply(&t.Credentials[i])
			return nil
		})
	}
	return cmd
}

// findCredential returns the place of the credential for a server, or -1.
func findCredential(t *task.Task, server string) int {
	probe := task.Task{Credentials: []task.Credential{{Server: server}}}
	probe.Normalize()
	return slices.IndexFunc(t.Credentials, func(cred task.Credential) bool { return cred.Server == probe.Credentials[0].Server })
}

func noCredential(t *task.Task, server string) error {
	return usagef("kiln task credential list "+t.Name, "task %q has no credential for %s", t.Name, server)
}

func newCredentialRemoveCommand(c *cli) *cobra.Command {
	var server string
	cmd := &cobra.Command{Use: "remove [flags] NAME", Short: "Have a task no longer sign in to a registry",
		Example: "  kiln task credential remove web --login-server docker.io"}
	name := c.forTask(cmd)
	cmd.Flags().StringVar(&server, "login-server", "", "registry, as `HOST[:PORT]`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		if err := required(cmd, "login-server"); err != nil {
			return err
		}
		return c.editTask(cmd.Context(), name, func(t *task.Task) error {
			i := findCredential(t, server)
			if i < 0 {
				return noCredential(t, server)
			}
			t.Credentials = slices.Delete(t.Credentials, i, i+1)
			return nil
		})
	}
	return cmd
}

func newCredentialListCommand(c *cli) *cobra.Command {
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	cmd := &cobra.Command{Use: "list [flags] NAME", Short: "List the registries that a task signs in to"}
	name := c.forTask(cmd)
	cmd.Flags().VarP(&output, "output", "o", "format")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := name(args)
		if err != nil {
			return err
		}
		client, err := c.client()
		if err != nil {
			return err
		}
		t, err := client.Task(cmd.Context(), name)
		if err != nil {
			return err
		}
		if output.json() {
			return c.printJSON(append([]task.Credential{}, t.Task.Credentials...))
		}
		w := tabwriter.NewWriter(c.Out, 0, 8, 3, ' ', 0)
		fmt.Fprintln(w, "LOGIN SERVER\tUSER\tSECRETS")
		for _, cred := range t.Task.Credentials {
			fmt.Fprintf(w, "%s\t%s\t%s\n", cred.Server, render.Clean(cred.Username), credentialSecrets(cred))
		}
		return w.Flush()
	}
	return cmd
}

// credentialSecrets names the secrets that a credential consists of.
func credentialSecrets(cred task.Credential) string {
	var names []string
	for _, name := range []string{cred.UsernameSecret, cred.PasswordSecret, cred.TokenSecret} {
		if name != "" {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}
