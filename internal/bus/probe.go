package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// bucketProbes is where Probe writes. What is there tells nothing and goes by itself.
const bucketProbes = "probes"

// Probe returns nil if the message store has taken a message to its disk just now, and otherwise why it does not.
// Writer names who asks: those who have different names do not disturb each other.
func (b *Bus) Probe(ctx context.Context, writer string) error {
	if err := b.Room(); err != nil {
		return err
	}
	kv, err := b.js.KeyValue(ctx, bucketProbes)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = b.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucketProbes, TTL: time.Hour, MaxBytes: 1 << 20})
	}
	if err == nil {
		_, err = kv.Put(ctx, writer, nil)
	}
	if err != nil {
		return fmt.Errorf("message store: %w", mapError(err))
	}
	return nil
}
