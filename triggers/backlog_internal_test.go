package triggers

import (
	"context"
	"errors"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
)

func TestTracksWaitForTheScheduler(t *testing.T) {
	t.Parallel()
	s, subject := natstest.Start(t), event.DecisionSubject("uid", "branch:main")
	var b backlog
	var last uint64
	store := func(ctx context.Context) error {
		err := b.admit(ctx, s, subject, last)
		if err == nil {
			last, err = s.Replace(t.Context(), subject, last, event.Decision{TaskUID: "uid"})
		}
		return err
	}
	for range maxAhead {
		if err := store(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 4*aheadEvery)
	defer cancel()
	if err := store(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one decision too many: %v", err)
	}
	if err := b.admit(t.Context(), s, "other", 0); err != nil {
		t.Errorf("another track: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done, read := make(chan error, 1), make(chan struct{}, 1000)
	go func() {
		done <- s.Consume(ctx, bus.Consumer{Stream: bus.StreamDecisions, Name: schedulerName, Filter: event.SubjectDecisions},
			func(m bus.Message) { m.Settle(nil); read <- struct{}{} })
	}()
	const all = 100 // more than the stream keeps
	for range all - maxAhead {
		if err := store(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	late := time.After(time.Minute)
	for n := range all {
		select {
		case <-read:
		case <-late:
			t.Fatalf("the scheduler has read %d of %d decisions", n, all)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
