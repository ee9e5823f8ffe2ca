// Package natstest starts a real NATS server inside the test process.
package natstest

import (
	"log/slog"
	"testing"

	"kiln/internal/bus"
)

// Start runs an embedded server with JetStream on t's temporary directory and returns a bus on it.
// Both stop when t ends.
func Start(t testing.TB) *bus.Bus {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	nc, err := s.Connect(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.Open(t.Context(), nc, log)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
