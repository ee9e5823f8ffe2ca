package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A Schedule is a message that JetStream publishes by itself at a time, once.
type Schedule struct {
	Subject string        // where the schedule is kept; it replaces the one that is there
	Target  string        // where the message is published, in the same stream
	At      time.Time     // in the past: now
	Keep    time.Duration // how long the published message stays; 0 means as long as the stream keeps it
	Message any           // as JSON
}

// Headers of a schedule. The client library knows times in whole seconds only.
const (
	headerSchedule       = "Nats-Schedule"
	headerScheduleTarget = "Nats-Schedule-Target"
	headerScheduleTTL    = "Nats-Schedule-TTL"
)

func (s Schedule) message() (*nats.Msg, error) {
	data, err := json.Marshal(s.Message)
	if err != nil {
		return nil, err
	}
	m := nats.NewMsg(s.Subject)
	m.Data = data
	m.Header.Set(headerSchedule, "@at "+s.At.UTC().Format(time.RFC3339Nano))
	m.Header.Set(headerScheduleTarget, s.Target)
	if s.Keep > 0 {
		m.Header.Set(headerScheduleTTL, s.Keep.String())
	}
	return m, nil
}

// Schedule stores a schedule, in streams that allow it. It is gone once its message is published.
func (b *Bus) Schedule(ctx context.Context, s Schedule) error {
	m, err := s.message()
	if err != nil {
		return err
	}
	if _, err := b.js.PublishMsg(ctx, m); err != nil {
		return fmt.Errorf("schedule %s: %w", s.Subject, mapError(err))
	}
	return nil
}

// ScheduleAsync is Schedule without waiting; the error of the future is to be given to MapError.
func (b *Bus) ScheduleAsync(s Schedule) (Ack, error) {
	m, err := s.message()
	if err != nil {
		return nil, err
	}
	return b.js.PublishMsgAsync(m, jetstream.WithStallWait(30*time.Second))
}

// Purge removes all messages of a subject; none is no error.
func (b *Bus) Purge(ctx context.Context, stream, subject string) error {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return err
	}
	if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
		return fmt.Errorf("purge %s: %w", subject, err)
	}
	return nil
}
