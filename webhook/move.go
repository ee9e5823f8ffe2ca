package webhook

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
)

// How batches become events.
const (
	moveQuiet   = 5 * time.Millisecond // without more than floodAbove deliveries in hand, before it begins
	moveLatest  = 2 * time.Second      // after a batch was stored it begins in any case
	moveTimeout = 10 * time.Second     // of a batch
	moveAgain   = 5 * time.Second      // a batch is delivered again if its process died
	moveFull    = time.Second          // until it is tried again when EVENTS is full
	moveAhead   = 64                   // events that are not acknowledged yet
)

// Run makes events of what has been taken in, batch by batch and in order, until ctx is done; then it
// returns nil. If several processes do, one of them at a time has a batch.
func (in *Intake) Run(ctx context.Context) error {
	m := &mover{Intake: in}
	return in.bus.Consume(ctx, bus.Consumer{Stream: bus.StreamIntake, Name: "webhook", Pending: 1, AckWait: moveAgain},
		func(msg bus.Message) { m.move(ctx, msg) })
}

// A mover makes events of batches.
type mover struct {
	*Intake
	space   [packSpace]byte
	raw     []byte // the body in hand
	pending []bus.Pending
}

// move makes events of a batch and settles it.
func (m *mover) move(ctx context.Context, msg bus.Message) {
	defer msg.Keep(moveAgain)()
	seq, err := msg.Sequence()
	if err == nil {
		err = m.pause(ctx, msg)
	}
	if ctx.Err() != nil {
		msg.Later(0)
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), moveTimeout)
	defer cancel()
	if err == nil {
		err = m.events(ctx, msg.Data())
	}
	if errors.Is(err, bus.ErrFull) {
		m.log.Error("event store is full, deliveries that are accepted wait", "err", err)
		msg.Later(moveFull)
		return
	}
	msg.Settle(err)
	if err == nil || errors.Is(err, bus.ErrPoison) {
		m.advance(seq)
		_ = m.bus.Signal(event.MovedSubject, seq) // for other processes; the next one tells them as well
	}
}

// pause returns when the flood does, or the batch has waited for long enough, or ctx is done: a flood has
// the processors to itself.
func (m *mover) pause(ctx context.Context, msg bus.Message) error {
	stored, err := msg.Stored()
	if err != nil {
		return err
	}
	for {
		quiet := time.Since(m.start) - time.Duration(m.rush.Load())
		left := min(moveQuiet-quiet, moveLatest-time.Since(stored))
		if left <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(left):
		}
	}
}

// events stores the events of a batch. They are sent one after the other without waiting, which keeps them
// in order; all that were sent are waited for.
func (m *mover) events(ctx context.Context, batch []byte) error {
	all, err := records(batch)
	if err != nil {
		return fmt.Errorf("%w: %w", bus.ErrPoison, err)
	}
	for _, r := range all {
		if err = m.event(ctx, r); err != nil {
			break
		}
	}
	return errors.Join(err, m.settle(ctx, 0))
}

// event sends the events of one delivery. Of one that cannot be decoded that is an event.
func (m *mover) event(ctx context.Context, r record) error {
	p, known := providers[r.hook.Provider]
	raw, err := r.body(m.raw)
	if err != nil || !known {
		m.log.Error("accepted delivery cannot be read and is lost", "hook", r.hook.ID, "provider", r.hook.Provider, "err", err)
		return nil
	}
	m.raw = raw
	d := delivery{header: r.header, hook: r.hook}
	if err = d.decode(p, raw); err != nil {
		m.log.Warn("delivery cannot be decoded", "hook", r.hook.ID, "provider", r.hook.Provider, "err", err)
		d.found = found{facts: []fact{{rejected: &event.DeliveryRejected{Reason: clip(err.Error(), maxText)}}}}
		if d.body == nil {
			d.body = raw
		}
	}
	if len(d.facts) == 0 {
		m.log.Debug("delivery ignored", "hook", r.hook.ID, "provider", r.hook.Provider, "reason", d.ignored)
	}
	return d.events(p, len(raw), r.received, m.space[:], func(_, subject string, encoded []byte) error {
		sent, err := m.creator.Begin(subject, encoded)
		if err != nil {
			return err
		}
		m.pending = append(m.pending, sent)
		return m.settle(ctx, moveAhead)
	})
}

// settle waits until at most so many events are not acknowledged. It returns the error of the first that
// is not stored, and has waited for the others then, too.
func (m *mover) settle(ctx context.Context, ahead int) error {
	var first error
	for len(m.pending) > ahead {
		_, err := m.pending[0].Wait(ctx)
		m.pending = m.pending[:copy(m.pending, m.pending[1:])]
		if err != nil && !errors.Is(err, bus.ErrConflict) && first == nil {
			first, ahead = err, 0
		}
	}
	return first
}
