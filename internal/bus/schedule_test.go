package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
)

func TestScheduledMessageIsPublishedOnceAndGoesWhenItIsOld(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	s := bus.Schedule{Subject: event.ScheduleSubject("t", "x"), Target: event.AlarmSubject("t", "x"), At: time.Now(), Keep: time.Second, Message: note{1}}
	if err := b.Schedule(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var got []int
	err := b.Tail(ctx, bus.StreamTimers, event.AlarmFilter, 0, true, func(_ uint64, data []byte) bool {
		got = append(got, decode(t, data))
		return false
	})
	if err != nil || len(got) != 1 || got[0] != 1 {
		t.Fatalf("published %v, %v, want 1", got, err)
	}
	if kept := stored(t, b, bus.StreamTimers, event.ScheduleFilter); len(kept) != 0 {
		t.Errorf("schedules %v remain", kept)
	}
	for err = nil; err == nil; { // until it is gone
		var n note
		if _, err = b.Last(ctx, bus.StreamTimers, s.Target, &n); err != nil && !errors.Is(err, bus.ErrNone) {
			t.Fatal(err)
		}
	}
}

func TestPurgeRemovesOneSubject(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	fill(t, b, "kiln.report.ra", 1, 3)
	fill(t, b, "kiln.report.rb", 4, 5)
	for range 2 {
		if err := b.Purge(t.Context(), bus.StreamReports, "kiln.report.ra"); err != nil {
			t.Fatal(err)
		}
	}
	if left := stored(t, b, bus.StreamReports, "kiln.report.*"); len(left) != 2 {
		t.Errorf("%v left, want 4 and 5", left)
	}
}
