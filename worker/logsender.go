package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
)

const (
	maxOnWay = 8 << 20 // bytes of the log sent and not acknowledged, beyond which nothing more is
	// storeWithin is how long acknowledgements are waited for when so much is on its way.
	storeWithin = 30 * time.Second
)

// A logSender stores messages of one run's log in order, several on their way at a time, and counts what
// could not be stored. It is used by one goroutine.
type logSender struct {
	bus    *bus.Bus
	run    string
	onWay  []sentMessage // not acknowledged, as far as is known; the oldest first
	bytes  int           // of them
	last   uint64        // sequence of the last that was stored
	lost   int           // bytes that were not
	lostBy error         // why not the last of these
}

type sentMessage struct {
	ack  bus.Ack
	size int
}

// publish sends a message of the step with an index, and waits for older ones if too many bytes are on their way.
func (s *logSender) publish(index int, chunk event.LogChunk) {
	for len(s.onWay) > 0 && s.settle(nil) { // what has been acknowledged need not be kept
	}
	size := 0
	for _, e := range chunk.Entries {
		size += weight(e)
	}
	ack, err := s.bus.PublishAsync(event.LogSubject(s.run, index), "", chunk)
	if err != nil {
		s.miss(size, err)
		return
	}
	s.onWay, s.bytes = append(s.onWay, sentMessage{ack, size}), s.bytes+size
	if s.bytes > maxOnWay {
		late, stop := context.WithTimeout(context.Background(), storeWithin)
		defer stop()
		s.wait(maxOnWay, late)
	}
}

// end waits until everything is stored, and says in the log of the run if something is missing.
func (s *logSender) end(attempt int) {
	late, stop := context.WithTimeout(context.Background(), closeTimeout/2)
	defer stop()
	s.wait(0, late)
	if s.lost == 0 {
		return
	}
	s.publish(-1, event.LogChunk{Attempt: attempt, Entries: []event.LogEntry{{Time: time.Now().UTC(), Stream: event.StreamKiln,
		Data: fmt.Appendf(nil, "%d bytes of the log are missing: they could not be stored: %v\n", s.lost, s.lostBy)}}})
	s.wait(0, late)
}

// wait waits until at most so many bytes are on their way. What is not acknowledged when late ends is taken for lost.
func (s *logSender) wait(limit int, late context.Context) {
	for s.bytes > limit {
		s.settle(late.Done())
	}
}

// settle notes what became of the oldest message, and reports whether that is known. It waits for that until late
// is closed, and then takes the message for lost. Without late it does not wait.
func (s *logSender) settle(late <-chan struct{}) bool {
	m := s.onWay[0]
	var now <-chan struct{}
	if late == nil {
		now = closed
	}
	select {
	case ok := <-m.ack.Ok():
		s.last = ok.Sequence
	case err := <-m.ack.Err():
		s.miss(m.size, err)
	case <-late:
		s.miss(m.size, errors.New("not acknowledged in time"))
	case <-now:
		return false
	}
	s.onWay, s.bytes = s.onWay[1:], s.bytes-m.size
	return true
}

// miss notes that a message was not stored.
func (s *logSender) miss(size int, err error) { s.lost, s.lostBy = s.lost+size, err }

// closed is closed.
var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()
