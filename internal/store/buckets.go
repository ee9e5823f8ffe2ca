package store

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// buckets makes buckets with copies on servers of a cluster.
type buckets struct {
	js       jetstream.JetStream
	replicas int
	raise    bool // those of existing buckets, too
}

// open makes a bucket or brings an existing one to cfg.
func (b buckets) open(ctx context.Context, cfg jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	s, err := b.js.Stream(ctx, "KV_"+cfg.Bucket)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, err
	}
	if err == nil && cfg.TTL > 0 && s.CachedInfo().Config.Storage != cfg.Storage {
		// Its records are kept alive by those who write them, and so come again.
		if err := b.js.DeleteKeyValue(ctx, cfg.Bucket); err != nil {
			return nil, err
		}
		s, err = nil, jetstream.ErrStreamNotFound
	}
	cfg.Replicas = b.replicas
	if err == nil {
		cfg.Replicas = s.CachedInfo().Config.Replicas
		if b.raise {
			cfg.Replicas = max(cfg.Replicas, b.replicas)
		}
	}
	if cfg.Replicas <= 1 {
		return b.js.CreateOrUpdateKeyValue(ctx, cfg)
	}
	return b.replicated(ctx, cfg, s)
}

// replicated opens a bucket with copies; s is nil if there is none yet. A value is read from the leader, because others
// may not have the latest yet; the client library would ask any of them. No bucket that others have opened is
// ever let be read so, because they know how to ask from when they have opened it.
func (b buckets) replicated(ctx context.Context, cfg jetstream.KeyValueConfig, s jetstream.Stream) (jetstream.KeyValue, error) {
	if s == nil {
		_, err := b.js.CreateKeyValue(ctx, cfg)
		if err != nil && !errors.Is(err, jetstream.ErrBucketExists) { // made by another at this moment
			return nil, err
		}
		if s, err = b.js.Stream(ctx, "KV_"+cfg.Bucket); err != nil {
			return nil, err
		}
	}
	want := s.CachedInfo().Config
	want.Replicas, want.AllowDirect = cfg.Replicas, false
	want.MaxMsgsPerSubject = max(1, int64(cfg.History))
	want.MaxAge, want.MaxBytes = cfg.TTL, -1
	if cfg.MaxBytes > 0 {
		want.MaxBytes = cfg.MaxBytes
	}
	if cfg.LimitMarkerTTL > 0 {
		want.AllowMsgTTL, want.SubjectDeleteMarkerTTL = true, cfg.LimitMarkerTTL
	}
	if _, err := b.js.UpdateStream(ctx, want); err != nil {
		return nil, err
	}
	return b.js.KeyValue(ctx, cfg.Bucket)
}
