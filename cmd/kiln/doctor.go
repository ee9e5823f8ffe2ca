package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
)

func newDoctorCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check that everything kiln needs is there",
		Long: "Check this client, its server and what builds need. Without a server, this host is checked for one.\n" +
			"The exit code is 1 if something is missing.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !c.printChecks(c.checks(cmd.Context())) {
				return errReported
			}
			return nil
		},
	}
}

// checks examines the client first, then asks the server, as far as it gets.
func (c *cli) checks(ctx context.Context) []apiclient.Check {
	client, err := c.client()
	if err != nil {
		return append([]apiclient.Check{failed("server address and token", err)}, c.hostChecks(ctx)...)
	}
	checks := []apiclient.Check{{Name: "server address and token", OK: true, Detail: client.BaseURL}}
	switch path, open := c.openToken(); {
	case open:
		checks = append(checks, apiclient.Check{
			Name: "token file", Detail: path + " can be read by others", Remedy: "chmod 600 " + path,
		})
	case client.Token == "":
		checks[0] = apiclient.Check{
			Name: "server address and token", Detail: "no token for " + client.BaseURL,
			Remedy: "set KILN_TOKEN to a token of this server, or name its data directory with --data",
		}
	}
	s, err := client.Status(ctx)
	if err != nil {
		return append(append(checks, failed("server", err)), c.hostChecks(ctx)...)
	}
	checks = append(checks, apiclient.Check{
		Name: "server", OK: true,
		Detail: fmt.Sprintf("version %s, since %s, registry %s, data in %s", s.Version, clock(s.Started), s.Registry, orDash(s.DataDir)),
	})
	same := apiclient.Check{Name: "versions", OK: s.Version == version(), Detail: "client and server are " + version()}
	if !same.OK {
		same.Detail = fmt.Sprintf("client %s, server %s", version(), s.Version)
		same.Remedy = "restart the server with the newer program"
	}
	return append(append(checks, same), s.Checks...)
}

// openToken reports whether the token of a server on this host lies open to other users.
func (c *cli) openToken() (path string, open bool) {
	dir, err := c.dataDir()
	if err != nil {
		return "", false
	}
	path = filepath.Join(dir, apiclient.TokenFile)
	fi, err := os.Stat(path)
	return path, err == nil && fi.Mode().Perm()&0o077 != 0
}

// hostChecks examines whether a server with its own build daemon would work on this host.
func (c *cli) hostChecks(ctx context.Context) []apiclient.Check {
	dir, err := c.dataDir()
	if err != nil {
		return nil
	}
	cfg, err := daemonConfig(serveConfig{workerConfig: workerConfig{data: dir, runc: "runc"}}, daemonRegistry{})
	if err != nil {
		return []apiclient.Check{failed("data directory", err)}
	}
	return hostChecks(ctx, cfg)
}

func failed(name string, err error) apiclient.Check {
	return apiclient.Check{Name: name, Detail: err.Error(), Remedy: remedy(err)}
}

// printChecks prints one line for each check, and reports whether all passed.
func (c *cli) printChecks(checks []apiclient.Check) bool {
	all := true
	for _, k := range checks {
		mark := "ok  "
		if !k.OK {
			mark, all = "FAIL", false
		}
		line := mark + "  " + k.Name
		if k.Detail != "" {
			line += ": " + k.Detail
		}
		fmt.Fprintln(c.Out, render.Clean(line))
		if !k.OK && k.Remedy != "" {
			fmt.Fprintln(c.Out, "      Try: "+render.Clean(k.Remedy))
		}
	}
	return all
}
