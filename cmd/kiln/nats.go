package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/spf13/pflag"

	"kiln/internal/auth"
	"kiln/internal/bus"
)

// natsTokenFile is what other processes say to the own message store, in the data directory.
const natsTokenFile = "nats.token"

// natsConfig says where messages and state are: in a store of the server's own, or in one of others.
type natsConfig struct {
	remote   bus.Remote
	replicas int
	listen   string
}

// addRemote defines the flags for a store of others.
func (c *natsConfig) addRemote(f *pflag.FlagSet) {
	f.StringSliceVar(&c.remote.URLs, "nats", nil, "`nats://HOST:PORT` of a NATS server with JetStream, 2.12 or later, to use instead of an own one; more servers of its cluster may follow")
	f.StringVar(&c.remote.CredsFile, "nats-creds", "", "`FILE` with the credentials of a NATS user")
	f.StringVar(&c.remote.TokenFile, "nats-token-file", "", "`FILE` with a NATS token, or with the password of USER in nats://USER@HOST:PORT")
	f.StringVar(&c.remote.CAFile, "nats-ca", "", "`FILE` with the certificates that NATS servers' are signed by")
	f.IntVar(&c.replicas, "nats-replicas", 0, "copies of the state on so many servers of the NATS cluster, 1 to 5; what is there with fewer gets more (default 3 on a cluster, and what is there as it is)")
}

// others reports whether messages and state are in a NATS server of others.
func (c *natsConfig) others() bool { return len(c.remote.URLs) > 0 }

func (c *natsConfig) add(f *pflag.FlagSet) {
	c.addRemote(f)
	f.StringVar(&c.listen, "nats-listen", "", "`HOST:PORT` at which others reach the own NATS server with the token in the data directory's "+natsTokenFile+" (default: nobody does)")
}

func (c *natsConfig) validate() error {
	err := c.remote.Validate()
	if err != nil {
		err = fmt.Errorf("--nats: %w", err)
	}
	if c.listen != "" {
		if _, _, lerr := net.SplitHostPort(c.listen); lerr != nil {
			err = errors.Join(err, fmt.Errorf("--nats-listen %q: want HOST:PORT, such as 127.0.0.1:4222", c.listen))
		}
		if c.others() {
			err = errors.Join(err, errors.New("--nats-listen is for the own NATS server: with --nats there is none"))
		}
	}
	if c.replicas < 0 || c.replicas > bus.MaxReplicas {
		err = errors.Join(err, fmt.Errorf("--nats-replicas %d: want 1 to %d", c.replicas, bus.MaxReplicas))
	}
	if !c.others() && c.replicas > 1 {
		err = errors.Join(err, fmt.Errorf("--nats-replicas %d goes with --nats: the own message store is a single server", c.replicas))
	}
	if !c.others() && c.remote.CredsFile+c.remote.TokenFile+c.remote.CAFile != "" {
		err = errors.Join(err, errors.New("--nats-creds, --nats-token-file and --nats-ca go with --nats"))
	}
	return err
}

// connectNATS connects to the messages and the state of this server, in a store of its own unless there is another.
func (n *node) connectNATS(ctx context.Context) (*bus.Conn, error) {
	if n.cfg.nats.others() {
		return bus.Connect(ctx, n.cfg.nats.remote, "kiln serve", n.log)
	}
	cfg := bus.ServerConfig{Dir: filepath.Join(n.cfg.data, "jetstream"), Relaxed: n.cfg.relaxed, Listen: n.cfg.nats.listen, Log: n.log}
	token := filepath.Join(n.cfg.data, natsTokenFile)
	if cfg.Listen != "" {
		var err error
		if cfg.Token, err = auth.SecretFile(token); err != nil {
			return nil, err
		}
	}
	ns, err := bus.StartServer(cfg)
	if err != nil {
		return nil, err
	}
	n.onClose(func() error { ns.Shutdown(); return nil })
	if a := ns.Address(); a != "" {
		n.log.Info("message store listens", "address", a, "token", token)
	}
	return ns.Connect("kiln")
}

// shared reports whether other processes may work on the messages and the state of this one.
func (cfg *serveConfig) shared() bool { return cfg.nats.others() || cfg.nats.listen != "" }

func (n *node) shared() bool { return n.cfg.shared() }
