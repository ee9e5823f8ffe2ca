package natstest

import (
	"fmt"
	"log/slog"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"kiln/internal/bus"
)

// A Cluster is three NATS servers with JetStream that listen on loopback.
type Cluster struct{ servers map[string]*server.Server }

// StartCluster runs a cluster in this process, on t's temporary directory, and waits until it has a leader. It stops
// when t ends.
func StartCluster(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{servers: map[string]*server.Server{}}
	// A server of a cluster has to have a route; the first one's leads nowhere, and the others find it.
	routes := []*url.URL{{Scheme: "nats", Host: "127.0.0.1:1"}}
	for i := range 3 {
		name := fmt.Sprintf("n%d", i)
		s, err := server.NewServer(&server.Options{
			ServerName: name, Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, MaxPayload: bus.MaxPayload,
			JetStream: true, StoreDir: t.TempDir(), JetStreamMaxMemory: 256 << 20, JetStreamMaxStore: 1 << 40,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: server.RANDOM_PORT},
			Routes:  routes,
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(time.Minute) {
			t.Fatalf("NATS server %s is not ready", name)
		}
		c.servers[name] = s
		routes = append(routes, &url.URL{Scheme: "nats", Host: s.ClusterAddr().String()})
	}
	c.await(t, "a leader and all its peers", func() bool {
		for _, s := range c.servers {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == len(c.servers) {
				return true
			}
		}
		return false
	})
	return c
}

func (c *Cluster) await(t testing.TB, what string, reached func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(time.Minute); !reached(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("the NATS cluster has not got %s within a minute", what)
		}
	}
}

// Connect returns a connection that reaches all servers, at first the named one. It is closed when t ends.
func (c *Cluster) Connect(t testing.TB, first string) *bus.Conn {
	t.Helper()
	urls := []string{c.servers[first].ClientURL()}
	nc, err := bus.Connect(t.Context(), bus.Remote{URLs: urls}, t.Name(), slog.New(slog.DiscardHandler)) // it learns of the others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Names are the names of the servers.
func (c *Cluster) Names() []string { return []string{"n0", "n1", "n2"} }

// Stop stops a server, as one that is lost.
func (c *Cluster) Stop(name string) {
	c.servers[name].Shutdown()
	c.servers[name].WaitForShutdown()
}

// Leads reports whether a server leads a stream.
func (c *Cluster) Leads(name, stream string) bool {
	return c.servers[name].JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream)
}
