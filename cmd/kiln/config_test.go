package main

import (
	"testing"

	"github.com/spf13/pflag"

	"kiln/cmd/kiln/internal/config"
)

// TestVariablesOfClientsAreNoSettings keeps a server from taking for its own what its environment says to clients.
func TestVariablesOfClientsAreNoSettings(t *testing.T) {
	t.Parallel()
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	new(serveConfig).add(f)
	f.VisitAll(func(f *pflag.Flag) {
		switch v := config.Variable(f.Name); v {
		case envServer, envToken, envCA, envData:
			t.Errorf("--%s has the variable %s", f.Name, v)
		}
	})
}
