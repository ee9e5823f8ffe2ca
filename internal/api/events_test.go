package api_test

import (
	"fmt"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
)

func TestLastEventsOfALongStream(t *testing.T) {
	t.Parallel()
	s := startHooks(t)
	const n = 4300 // more than are read at first
	acks := make([]bus.Ack, n)
	for i := range n {
		typ := event.TypeRunQueued
		if i < 3 {
			typ = event.TypeGitPushed
		}
		ev, err := event.New(fmt.Sprint(i), "/test", typ, time.Now().UTC(), map[string]int{"n": i})
		check(t, err)
		acks[i], err = s.bus.PublishAsync(event.RunSubject(typ, fmt.Sprint("r", i)), ev.ID, ev)
		check(t, err)
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		query        apiclient.EventsQuery
		count        int
		first, final uint64
	}{
		{apiclient.EventsQuery{Limit: 5}, 5, n - 4, n},
		{apiclient.EventsQuery{Limit: 1000}, 1000, n - 999, n},
		{apiclient.EventsQuery{Limit: 2, Type: event.TypeGitPushed}, 2, 2, 3}, // at the beginning of the stream
		{apiclient.EventsQuery{Limit: 5, Type: event.TypeGitPushed}, 3, 1, 3},
		{apiclient.EventsQuery{Limit: 5, After: n - 2}, 2, n - 1, n},
	} {
		got, err := s.Events(t.Context(), c.query)
		check(t, err)
		if l := got.Events; len(l) != c.count || l[0].Seq != c.first || l[len(l)-1].Seq != c.final {
			t.Errorf("%+v: %d events, last %d; want %d from %d to %d", c.query, len(l), got.Last, c.count, c.first, c.final)
		}
	}
}
