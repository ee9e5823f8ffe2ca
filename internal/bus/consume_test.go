package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
)

// receive returns what comes next.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing came within a minute")
		panic("unreachable")
	}
}

// stored returns the numbers of the notes that a subject filter matches.
func stored(t *testing.T, b *bus.Bus, stream, filter string) []int {
	t.Helper()
	return tail(t, b, stream, filter, 0)
}

func tail(t *testing.T, b *bus.Bus, stream, filter string, after uint64) []int {
	t.Helper()
	var got []int
	err := b.Tail(t.Context(), stream, filter, after, false, func(_ uint64, data []byte) bool {
		got = append(got, decode(t, data))
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func decode(t *testing.T, data []byte) int {
	t.Helper()
	var n note
	if err := json.Unmarshal(data, &n); err != nil {
		t.Error(err)
	}
	return n.N
}

// fill publishes the notes 1 to n and returns their sequences.
func fill(t *testing.T, b *bus.Bus, subject string, from, to int) []uint64 {
	t.Helper()
	var seqs []uint64
	for n := from; n <= to; n++ {
		seq, err := b.Publish(t.Context(), subject, fmt.Sprint(subject, n), note{n})
		if err != nil {
			t.Fatal(err)
		}
		seqs = append(seqs, seq)
	}
	return seqs
}

// consume runs a consumer until the returned function is called, which waits for its end.
func consume(t *testing.T, b *bus.Bus, c bus.Consumer, handle func(bus.Message)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Consume(ctx, c, handle) }()
	stop = func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
		done <- nil // for the next stop
	}
	t.Cleanup(stop)
	return stop
}

func TestFailedHandlerGetsTheMessageAgain(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	fill(t, b, "kiln.report.ra", 1, 2)
	got := make(chan int, 8)
	tries := 0
	stop := consume(t, b, bus.Consumer{Stream: bus.StreamReports, Name: "test", Filter: "kiln.report.*"}, func(m bus.Message) {
		var n note
		err := m.Decode(&n)
		if n.N == 1 {
			if tries++; tries == 1 {
				err = errors.New("the disk is full")
			}
		}
		m.Settle(err)
		got <- n.N
	})
	order := []int{receive(t, got), receive(t, got), receive(t, got)}
	if !slices.Equal(order, []int{1, 2, 1}) {
		t.Errorf("deliveries %v, want [1 2 1]: the others do not wait for it", order)
	}
	stop()
	if n := unsettled(t, b); n != 0 {
		t.Errorf("%d messages unsettled", n)
	}
}

func TestPoisonIsEndedAndTheNextMessageComes(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	if _, err := b.Publish(t.Context(), "kiln.report.ra", "", "no note"); err != nil {
		t.Fatal(err)
	}
	fill(t, b, "kiln.report.ra", 2, 2)
	got := make(chan int, 8)
	stop := consume(t, b, bus.Consumer{Stream: bus.StreamReports, Name: "test", Filter: "kiln.report.*"}, func(m bus.Message) {
		var n note
		err := m.Decode(&n)
		if (n.N == 0) != errors.Is(err, bus.ErrPoison) {
			t.Errorf("note %d of %s: Decode: %v", n.N, m.Subject(), err)
		}
		m.Settle(err)
		got <- n.N
	})
	if a, b := receive(t, got), receive(t, got); a != 0 || b != 2 {
		t.Errorf("deliveries %d %d, want 0 2", a, b)
	}
	stop()
	if n := unsettled(t, b); n != 0 {
		t.Errorf("%d messages unsettled: the poison would come again", n)
	}
}

// unsettled waits until the acknowledgements that were sent have been taken, and counts what the
// consumer "test" still expects to be settled.
func unsettled(t *testing.T, b *bus.Bus) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	cons, err := b.JetStream().Consumer(ctx, bus.StreamReports, "test")
	if err != nil {
		t.Fatal(err)
	}
	for {
		info, err := cons.Info(ctx)
		if err != nil {
			return cons.CachedInfo().NumAckPending
		}
		if info.NumAckPending == 0 {
			return 0
		}
	}
}

func TestConsumerGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := start(t, dir, false)
	c := bus.Consumer{Stream: bus.StreamReports, Name: "test", Filter: "kiln.report.*"}
	got := make(chan int, 8)
	handle := func(m bus.Message) {
		var n note
		m.Settle(m.Decode(&n))
		got <- n.N
	}
	fill(t, first.bus, "kiln.report.ra", 1, 2)
	stop := consume(t, first.bus, c, handle)
	if a, b := receive(t, got), receive(t, got); a != 1 || b != 2 {
		t.Fatalf("deliveries %d %d, want 1 2", a, b)
	}
	stop()
	if n := unsettled(t, first.bus); n != 0 {
		t.Fatalf("%d messages unsettled", n)
	}
	fill(t, first.bus, "kiln.report.ra", 3, 3)
	first.stop()

	consume(t, start(t, dir, false).bus, c, handle)
	if n := receive(t, got); n != 3 {
		t.Errorf("delivery after the restart: %d, want 3", n)
	}
}

func TestTailReadsWhatIsThereAndReturns(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	if got := tail(t, b, bus.StreamLogs, "kiln.log.ra.*", 0); len(got) != 0 {
		t.Errorf("empty stream: %v", got)
	}
	seqs := fill(t, b, "kiln.log.ra.0", 1, 600)
	fill(t, b, "kiln.log.rb.0", 1, 3)
	if got := tail(t, b, bus.StreamLogs, "kiln.log.ra.*", 0); len(got) != 600 || !slices.IsSorted(got) {
		t.Errorf("all: %d messages, want 600 in order", len(got))
	}
	if got := tail(t, b, bus.StreamLogs, "kiln.log.ra.*", seqs[597]); !slices.Equal(got, []int{599, 600}) {
		t.Errorf("after the 598th: %v, want [599 600]", got)
	}
	for _, after := range []uint64{seqs[599], 100_000} {
		if got := tail(t, b, bus.StreamLogs, "kiln.log.ra.*", after); len(got) != 0 {
			t.Errorf("after %d: %v, want nothing", after, got)
		}
	}
	var got []int
	err := b.Tail(t.Context(), bus.StreamLogs, "kiln.log.ra.*", 0, false, func(_ uint64, data []byte) bool {
		got = append(got, decode(t, data))
		return len(got) < 2
	})
	if err != nil || !slices.Equal(got, []int{1, 2}) {
		t.Errorf("stopped by its handler: %v, %v", got, err)
	}
}

func TestTailFollowsFromASequence(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	seqs := fill(t, b, "kiln.log.ra.0", 1, 3)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type delivery struct {
		seq uint64
		n   int
	}
	got, done := make(chan delivery, 8), make(chan error, 1)
	go func() {
		done <- b.Tail(ctx, bus.StreamLogs, "kiln.log.ra.*", seqs[1], true, func(seq uint64, data []byte) bool {
			got <- delivery{seq, decode(t, data)}
			return true
		})
	}()
	if d := receive(t, got); d != (delivery{seqs[2], 3}) {
		t.Errorf("first delivery %v, want 3 with sequence %d", d, seqs[2])
	}
	next := fill(t, b, "kiln.log.ra.1", 4, 4)
	if d := receive(t, got); d != (delivery{next[0], 4}) {
		t.Errorf("new message: %v, want 4 with sequence %d", d, next[0])
	}
	cancel()
	if err := receive(t, done); err != nil {
		t.Errorf("end of its context: %v", err)
	}
}

func TestOneAtATimeNeverStalls(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	creator, err := b.Creator()
	if err != nil {
		t.Fatal(err)
	}
	defer creator.Close()
	sent := make([]bus.Pending, 2000)
	for i := range sent {
		if sent[i], err = creator.Begin(fmt.Sprint("kiln.report.r", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range sent {
		if _, err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan struct{}, len(sent))
	consume(t, b, bus.Consumer{Stream: bus.StreamReports, Name: "test", Filter: "kiln.report.*", Pending: 1}, func(m bus.Message) {
		m.Settle(nil)
		got <- struct{}{}
	})
	for range sent {
		receive(t, got)
	}
}

// What is read may be removed at the same time: the reader ends all the same.
func TestTailEndsWhenWhatItReadsIsRemoved(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	subject := event.LogSubject("r1", 0)
	for n := range 600 { // more than are asked for at a time
		if _, err := b.Publish(t.Context(), subject, "", n); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	read := 0
	err := b.Tail(ctx, bus.StreamLogs, subject, 0, false, func(uint64, []byte) bool {
		if read++; read == 1 {
			if err := b.Purge(ctx, bus.StreamLogs, subject); err != nil {
				t.Error(err)
			}
		}
		return true
	})
	if err != nil || ctx.Err() != nil {
		t.Errorf("after %d messages: %v, %v", read, err, ctx.Err())
	}
}
