package bus_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/natstest"
)

// ask asks until a process answers, for it may not have begun to.
func ask(t *testing.T, b *bus.Bus, q int) (int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		a, err := bus.Ask[int](ctx, b, "test.double", q)
		if !errors.Is(err, bus.ErrNobody) || ctx.Err() != nil {
			return a, err
		}
	}
}

func TestQuestionsAreAnswered(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	if _, err := bus.Ask[int](t.Context(), b, "test.double", 1); !errors.Is(err, bus.ErrNobody) {
		t.Errorf("without a process that answers: %v, want %v", err, bus.ErrNobody)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- bus.Answer(ctx, b, "test.double", func(_ context.Context, q int) (int, error) {
			if q < 0 {
				return 0, errors.New("negative")
			}
			return 2 * q, nil
		})
	}()
	if a, err := ask(t, b, 21); err != nil || a != 42 {
		t.Errorf("answer %d, %v", a, err)
	}
	if _, err := ask(t, b, -1); err == nil || err.Error() != "negative" {
		t.Errorf("error %v, want that of the other side", err)
	}
	if _, err := bus.Ask[int](t.Context(), b, "test.double", "no number"); err == nil || !strings.Contains(err.Error(), "cannot unmarshal") {
		t.Errorf("a question of another kind: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestLastSequence(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	if n, err := b.LastSequence(t.Context(), bus.StreamEvents, "kiln.event.>"); err != nil || n != 0 {
		t.Errorf("of no message: %d, %v", n, err)
	}
	want, err := b.Publish(t.Context(), "kiln.event.x.y", "1", 1)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := b.LastSequence(t.Context(), bus.StreamEvents, "kiln.event.>"); err != nil || n != want {
		t.Errorf("%d, %v, want %d", n, err, want)
	}
}
