package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Data returns the message as it was stored, for what is not JSON. It must not be changed.
func (m Message) Data() []byte { return m.msg.Data() }

// Stored returns when the message was stored.
func (m Message) Stored() (time.Time, error) {
	meta, err := m.msg.Metadata()
	if err != nil {
		return time.Time{}, err
	}
	return meta.Timestamp, nil
}

// Attempt returns which delivery of the message this is, from 1.
func (m Message) Attempt() (int, error) {
	meta, err := m.msg.Metadata()
	if err != nil {
		return 0, err
	}
	return int(meta.NumDelivered), nil
}

// Later has the message delivered again after a delay; it takes the place of Settle.
func (m Message) Later(delay time.Duration) {
	if err := m.msg.NakWithDelay(delay); err != nil {
		m.bus.log.Warn("message not settled, it will be delivered again", m.about(err)...)
	}
}

// Drop removes a durable reader and the messages of its subject. It is no error if they do not exist.
func (b *Bus) Drop(ctx context.Context, c Consumer) error {
	if err := b.js.DeleteConsumer(ctx, c.Stream, c.Name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("consumer %s of %s: %w", c.Name, c.Stream, err)
	}
	s, err := b.stream(ctx, c.Stream)
	if err != nil {
		return err
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject(c.Filter)); err != nil {
		return fmt.Errorf("purge %s: %w", c.Filter, err)
	}
	return nil
}
