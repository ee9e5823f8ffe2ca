package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrReplicas is returned when the NATS servers cannot keep as many copies of streams as there have to be.
var ErrReplicas = errors.New("copies of the state cannot be kept")

// MaxReplicas is how many copies of a stream a NATS cluster keeps at most.
const MaxReplicas = 5

// clusterReplicas is how many copies a cluster keeps of each stream: one of its servers may be lost then.
const clusterReplicas = 3

// Replicas says how many copies there are of each stream, on as many servers of a cluster.
type Replicas struct {
	Count int  // of a new stream
	Raise bool // those that an existing stream has are raised to Count; never lowered
}

// Of returns how many copies an existing stream is to have.
func (r Replicas) Of(existing int) int {
	if r.Raise {
		return max(existing, r.Count)
	}
	return max(existing, 1)
}

// ReplicasOn returns how many copies the servers behind nc are to keep: as many as are asked for, or if that is zero
// three on a cluster and one elsewhere. A cluster of less than three is taken for one whose others are
// still starting.
func ReplicasOn(nc *Conn, asked int) Replicas {
	switch {
	case asked > 0:
		return Replicas{Count: asked, Raise: true}
	case nc.ConnectedClusterName() != "":
		return Replicas{Count: clusterReplicas}
	}
	return Replicas{Count: 1}
}

// declare creates the stream or brings an existing one to cfg.
func (b *Bus) declare(ctx context.Context, cfg streamConfig) error {
	cfg.Storage = jetstream.FileStorage
	s, err := b.js.Stream(ctx, cfg.Name)
	if err == nil {
		return b.bring(ctx, s.CachedInfo().Config, cfg)
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	return explained(b.create(ctx, cfg), b.replicas.Count)
}

func (b *Bus) create(ctx context.Context, cfg streamConfig) error {
	copies(&cfg, b.replicas.Count)
	if cfg.async {
		return b.requestAsync(ctx, "CREATE", cfg.StreamConfig)
	}
	_, err := b.js.CreateStream(ctx, cfg.StreamConfig)
	return err
}

// copies has the stream kept n times. What is read is that of the leader then, because others may not have all of it yet; and it is
// not acknowledged before it is written, which NATS refuses to do.
func copies(cfg *streamConfig, n int) {
	cfg.Replicas = n
	if n > 1 {
		cfg.AllowDirect, cfg.async = false, false
	}
}

// bring brings an existing stream to cfg.
func (b *Bus) bring(ctx context.Context, existing jetstream.StreamConfig, cfg streamConfig) error {
	n := b.replicas.Of(existing.Replicas)
	if n < b.replicas.Count && cfg.Name == StreamEvents {
		b.log.Warn("state has fewer copies than the NATS cluster could keep", "copies", n, "cluster", b.nc.ConnectedClusterName())
	}
	switch {
	case cfg.async && existing.Replicas > 1: // LimitLogs has set the rest
		existing.Replicas = n
		cfg.StreamConfig = existing
	case cfg.async: // an update by this client would lose the persist mode, which it does not know
		if n > 1 {
			b.log.Warn("stream keeps its one copy: it was made for a single NATS server", "stream", cfg.Name)
		}
		return nil
	}
	copies(&cfg, n)
	_, err := b.js.UpdateStream(ctx, cfg.StreamConfig)
	return explained(err, n)
}

// ErrRoom is returned by Open if NATS servers of others are not to store as much as kiln may.
var ErrRoom = errors.New("the NATS servers may not store as much as kiln's streams together")

// explained says of an error that there are not servers enough for n copies, or not the room.
func explained(err error, n int) error {
	if n <= 1 && hasCode(err, codeInsufficient) {
		return fmt.Errorf("%w: %w", ErrRoom, err)
	}
	if n > 1 && hasCode(err, codeNoPeers, codeNoResources, codeNoCluster, codeInsufficient) {
		return fmt.Errorf("%w on %d NATS servers: %w", ErrReplicas, n, err)
	}
	return err
}

// hasCode reports whether err is an answer of JetStream with one of the codes.
func hasCode(err error, codes ...jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && slices.Contains(codes, api.ErrorCode)
}
