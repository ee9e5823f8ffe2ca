package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// Environment variables of the client.
const (
	envServer = "KILN_SERVER"
	envToken  = "KILN_TOKEN"
	envData   = "KILN_DATA"
	envCA     = "KILN_CA"
)

// env returns an environment variable, empty if it is not set.
func (c *cli) env(name string) string {
	v, _ := c.Lookup(name)
	return v
}

// dataDir returns the data directory: flag, environment, default.
func (c *cli) dataDir() (string, error) {
	switch {
	case c.data != "":
		return c.data, nil
	case c.env(envData) != "":
		return c.env(envData), nil
	case os.Geteuid() == 0:
		return "/var/lib/kiln", nil
	case filepath.IsAbs(c.env("XDG_DATA_HOME")):
		return filepath.Join(c.env("XDG_DATA_HOME"), "kiln"), nil
	case filepath.IsAbs(c.env("HOME")):
		return filepath.Join(c.env("HOME"), ".local", "share", "kiln"), nil
	}
	return "", usagef("--data DIR", "no data directory: neither HOME nor XDG_DATA_HOME is set")
}

// client returns a client of the server that flags, environment or the data directory name.
//
// The token found in the data directory goes to no server but the one that runs there.
func (c *cli) client() (*apiclient.Client, error) {
	addr, token := c.server, c.env(envToken)
	if addr == "" {
		addr = c.env(envServer)
	}
	if addr != "" {
		if err := apiclient.CheckURL(addr); err != nil {
			return nil, usagef("", "%w", err)
		}
	}
	var at *apiclient.Location // of the server, if it is on this host
	if addr == "" || token == "" {
		var err error
		if addr, token, at, err = c.locate(addr, token); err != nil {
			return nil, err
		}
	}
	trust, err := c.trust(at)
	if err != nil {
		return nil, err
	}
	return &apiclient.Client{BaseURL: addr, Token: token, HTTP: apiclient.NewHTTP(addr, trust)}, nil
}

// locate fills in from the data directory what is empty of addr and token. It returns the location if it is
// that of the server.
func (c *cli) locate(addr, token string) (string, string, *apiclient.Location, error) {
	dir, err := c.dataDir()
	if err != nil {
		if addr != "" {
			return addr, token, nil, nil
		}
		return "", "", nil, err
	}
	at, err := apiclient.Locate(dir)
	switch {
	case err != nil && addr != "":
		return addr, token, nil, nil // another host's server, which may tell us that it wants a token
	case errors.Is(err, fs.ErrPermission):
		return "", "", nil, usagef("--server and KILN_TOKEN, or run it as the user who runs the server", "%w", err)
	case err != nil:
		return "", "", nil, err
	case addr == "":
		addr = at.URL
	}
	if !at.Serves(addr) {
		return addr, token, nil, nil
	}
	if token == "" {
		if token, err = apiclient.ReadToken(dir); err != nil {
			return "", "", nil, usagef("KILN_TOKEN, or run it as the user who runs the server", "%w", err)
		}
	}
	return addr, token, &at, nil
}

// latest names the newest run where a run is named.
const latest = "latest"

// resolveRun returns the ID of the run that a user names: by ID, by the beginning of one, or as latest.
func resolveRun(ctx context.Context, client *apiclient.Client, name string) (string, error) {
	if run.ValidID(name) {
		return name, nil
	}
	if name == latest {
		runs, err := client.Runs(ctx, apiclient.RunsQuery{Limit: 1})
		switch {
		case err != nil:
			return "", err
		case len(runs) == 0:
			return "", usagef("kiln build", "there is no run yet")
		}
		return runs[0].ID, nil
	}
	if name == "" || len(name) >= 12 || !run.ValidID(name+strings.Repeat("0", 12-len(name))) {
		return "", usagef("kiln runs", "run %q: not a run ID or the beginning of one", name)
	}
	runs, err := client.Runs(ctx, apiclient.RunsQuery{Limit: 10, Prefix: name})
	if err != nil {
		return "", err
	}
	var found []string
	for _, r := range runs {
		if strings.HasPrefix(r.ID, name) {
			found = append(found, r.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", usagef("kiln runs", "no run begins with %q", name)
	case 1:
		return found[0], nil
	}
	return "", &usageError{
		err: fmt.Errorf("run %q is ambiguous: %s", name, strings.Join(found, ", ")),
		try: "more characters",
	}
}

// withRun calls do with the run that name means.
func (c *cli) withRun(ctx context.Context, name string, do func(*apiclient.Client, string) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	id, err := resolveRun(ctx, client, name)
	if err != nil {
		return err
	}
	return do(client, id)
}
