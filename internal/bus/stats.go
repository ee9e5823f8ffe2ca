package bus

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// StreamStats say how much a stream holds, and how far those are who read it.
type StreamStats struct {
	Stream    string
	Messages  uint64
	Bytes     uint64
	Consumers []ConsumerStats // durable ones
}

// ConsumerStats say how far a durable reader is.
type ConsumerStats struct {
	Name      string
	Pending   uint64 // messages that were not delivered yet
	Unsettled int    // that were, and are in hand or come again
}

// maxConsumers is how many readers of a stream are looked at.
const maxConsumers = 1000

// Streams returns the names of the streams that Open declares.
func Streams() []string {
	var names []string
	for _, cfg := range streams() {
		names = append(names, cfg.Name)
	}
	return names
}

// Stats describes those of the named streams that exist.
func (b *Bus) Stats(ctx context.Context, names ...string) ([]StreamStats, error) {
	ctx, stop := context.WithCancel(ctx) // the end of a list that is not read on
	defer stop()
	var stats []StreamStats
	list := b.js.ListStreams(ctx)
	for info := range list.Info() {
		if !slices.Contains(names, info.Config.Name) {
			continue
		}
		st := StreamStats{Stream: info.Config.Name, Messages: info.State.Msgs, Bytes: info.State.Bytes}
		if info.State.Consumers > 0 {
			var err error
			if st.Consumers, err = b.readers(ctx, st.Stream); err != nil {
				return nil, err
			}
		}
		stats = append(stats, st)
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list of the streams: %w", err)
	}
	return stats, ctx.Err() // an iteration that was cut short has no error
}

// readers describes the durable readers of a stream.
func (b *Bus) readers(ctx context.Context, stream string) ([]ConsumerStats, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("readers of %s: %w", stream, err)
	}
	var stats []ConsumerStats
	list := s.ListConsumers(ctx)
	for info := range list.Info() { // to its end: who lists waits for it
		if info.Config.Durable != "" && len(stats) < maxConsumers {
			stats = append(stats, ConsumerStats{Name: info.Name, Pending: info.NumPending, Unsettled: info.NumAckPending})
		}
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("readers of %s: %w", stream, err)
	}
	return stats, nil
}

// Head returns the sequence of the last message that a stream holds of the subjects that match filter, and when it
// was stored; ErrNone if there is none.
func (b *Bus) Head(ctx context.Context, stream, filter string) (uint64, time.Time, error) {
	m, err := b.last(ctx, stream, filter)
	if err != nil {
		return 0, time.Time{}, err
	}
	return m.Sequence, m.Time, nil
}
