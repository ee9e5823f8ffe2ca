package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"kiln/internal/bus"
	"kiln/internal/store"
)

// openState opens messages and records in the NATS servers behind nc. It has patience with those that are
// starting.
func (cfg *serveConfig) openState(ctx context.Context, nc *bus.Conn, log *slog.Logger) (b *bus.Bus, st *store.Store, err error) {
	replicas := bus.ReplicasOn(nc, cfg.nats.replicas)
	err = bus.Patiently(ctx, func() (err error) {
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
	if errors.Is(err, bus.ErrReplicas) {
		err = usagef("start the other servers of the NATS cluster, or --nats-replicas 1 for state that is lost with one of them", "%w", err)
	}
	return b, st, err
}
