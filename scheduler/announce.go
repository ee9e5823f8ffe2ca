package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
)

const (
	// runSubject is where the records of runs are stored, each by its ID.
	runSubject = "$KV." + store.BucketRuns + "."
	// streamRuns is the stream of the records.
	streamRuns = "KV_" + store.BucketRuns
	// announceFor is how old a change may be to be told of: what is older was told by a predecessor, or is
	// of no interest any more.
	announceFor = 7 * 24 * time.Hour
)

// announce publishes the events of runs that are queued, started and finished. It follows the stored
// records, so it tells of nothing that is not stored, and delays nothing; where it stops it goes on. The
// last state of a record stays until it was read: no end of a run is lost. An earlier one that has been
// overwritten meanwhile is not told of.
func (s *Scheduler) announce(ctx context.Context) error {
	pending := make(chan announcement, maxEffects)
	s.running.Go(func() {
		for a := range pending {
			a.settle(ctx)
		}
	})
	defer close(pending)
	return s.Bus.Consume(ctx, bus.Consumer{Stream: streamRuns, Name: "announcer", Filter: runSubject + ">"}, func(m bus.Message) {
		a := announcement{message: m}
		var r run.Run
		if m.Decode(&r) == nil && r.ID != "" { // a record that was removed has no content
			s.yield(ctx, r)
			a.ack, a.err = s.tell(r, time.Now())
		}
		pending <- a
	})
}

// yieldFor is how long what nobody waits for is left for later, after a run's state was stored: whoever
// waits for that state comes first.
const yieldFor = 30 * time.Millisecond

// yield returns when a change that makes an event is yieldFor old.
func (s *Scheduler) yield(ctx context.Context, r run.Run) {
	if typ, at := change(r); typ != "" {
		pause(ctx, min(yieldFor, yieldFor-time.Since(at)))
	}
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// An announcement is a message of the stream of records whose event is being published, if it has one.
type announcement struct {
	message bus.Message
	ack     bus.Ack
	err     error
}

// settle waits until the event is stored. That it was stored before is as good.
func (a announcement) settle(ctx context.Context) {
	if a.ack != nil {
		timeout := time.NewTimer(storeTimeout)
		defer timeout.Stop()
		select {
		case <-a.ack.Ok():
		case err := <-a.ack.Err():
			if err = bus.MapError(err); !errors.Is(err, bus.ErrConflict) {
				a.err = fmt.Errorf("event of a run: %w", err)
			}
		case <-timeout.C:
			a.err = fmt.Errorf("event of a run: not acknowledged within %s", storeTimeout)
		case <-ctx.Done():
			return // it is delivered again
		}
	}
	a.message.Settle(a.err)
}

// tell publishes the event that a state of a run makes, if it makes one.
func (s *Scheduler) tell(r run.Run, now time.Time) (bus.Ack, error) {
	typ, at := change(r)
	if typ == "" || now.Sub(at) > announceFor {
		return nil, nil
	}
	ev, err := event.New(typ+"."+r.ID, "/runs/"+r.ID, typ, at, event.RunChanged{Run: told(r)})
	if err != nil {
		return nil, err
	}
	ev.Subject = r.ID
	return s.Bus.ReplaceAsync(event.RunSubject(typ, r.ID), 0, ev)
}

// change returns which event a state makes, and when that was.
func change(r run.Run) (typ string, at time.Time) {
	switch {
	case r.State.Final():
		return event.TypeRunFinished, r.Finished
	case r.State == run.Started && r.Attempt == 1 && len(r.Attempts) == 1:
		return event.TypeRunStarted, r.Attempts[0].Assigned
	case r.State == run.Queued && r.Attempt == 0 && r.TaskUID != "":
		return event.TypeRunQueued, r.Created
	}
	return "", time.Time{}
}

// told is what an event says of a run: no secrets, no texts and no results of single steps.
func told(r run.Run) run.Run {
	r.Spec.Secrets = nil
	if r.Spec.TaskFile != nil {
		t := *r.Spec.TaskFile
		t.Content, t.Values = nil, nil
		r.Spec.TaskFile = &t
	}
	steps := make([]run.Step, len(r.Steps))
	for i, st := range r.Steps {
		st.Output, st.Built = nil, nil
		steps[i] = st
	}
	r.Steps = steps
	return r
}
