package main

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"time"

	"kiln/internal/bus"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// openState opens messages and records in the NATS servers behind nc, and upgrades them. Seal seals to the servers of the
// state. It has patience with NATS servers that are starting.
func (cfg *serveConfig) openState(ctx context.Context, nc *bus.Conn, seal func(v any) ([]byte, error), log *slog.Logger) (b *bus.Bus, st *store.Store, err error) {
	replicas := bus.ReplicasOn(nc, cfg.nats.replicas)
	upgrade := store.Upgrade{By: version(), Process: rand.Text(), Replicas: replicas.Count, Raise: replicas.Raise, Lease: cfg.lease, Seal: seal, Log: log}
	err = bus.Patiently(ctx, func() (err error) {
		if err := upgrade.Run(ctx, nc); err != nil {
			return err
		}
		if b, err = bus.OpenShared(ctx, nc, replicas, log); err != nil {
			return err
		}
		if slices.Contains(cfg.roles, roleScheduler) {
			if err := b.LimitLogs(ctx, time.Duration(cfg.keepLogs), int64(cfg.maxLogs)); err != nil {
				return err
			}
		}
		if cfg.shared() {
			st, err = store.OpenShared(ctx, b.JetStream(), cfg.lease, replicas.Count, replicas.Raise)
		} else {
			st, err = store.Open(ctx, b.JetStream(), cfg.lease)
		}
		return err
	})
	switch {
	case errors.Is(err, store.ErrNewer):
		err = usagef("the kiln that wrote it or a later one, or the backup of before it was upgraded", "%w", err)
	case errors.Is(err, store.ErrInUse):
		err = usagef("stop all processes of the kiln of before, then start this one", "%w", err)
	case errors.Is(err, bus.ErrRoom):
		err = usagef("max_file_store: 40GB in the section jetstream of the NATS server's configuration (its default is three quarters of what is free)", "%w", err)
	case errors.Is(err, bus.ErrReplicas):
		err = usagef("start the other servers of the NATS cluster, or --nats-replicas 1 for state that is lost with one of them", "%w", err)
	}
	return b, st, err
}

// seal seals a value to this server.
func (n *node) seal(v any) ([]byte, error) { return secret.Seal(n.identity.Recipient(), v) }
