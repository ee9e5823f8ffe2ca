package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
)

// An Intake stores deliveries that come in a flood: several in one message of the stream INTAKE, as they
// came, from which Run makes events when the flood pauses. Several processes may have one.
type Intake struct {
	bus         *bus.Bus
	creator     *bus.Creator
	log         *slog.Logger
	unsubscribe func()

	inHand atomic.Int32  // authenticated deliveries that are not answered yet
	rush   atomic.Int64  // when there were last more than floodAbove, in nanoseconds since start
	start  time.Time     // of this process: its clock does not jump
	stored atomic.Uint64 // the last sequence in INTAKE that this process has stored
	moved  atomic.Uint64 // the last one that is known to be in EVENTS

	mu      sync.Mutex
	open    *batch        // that deliveries are added to; nil if there is none
	last    chan struct{} // done of the last batch; nil if there was none
	held    int           // bytes of batches that are not stored yet
	changed chan struct{} // closed when moved changes
	buffers sync.Pool     // *[]byte, of batches and records
}

// A batch is what becomes one message.
type batch struct {
	buf  []byte
	n    int
	done chan struct{} // closed when err is set
	err  error
}

// Bounds of batches.
const (
	floodAbove = 2 // deliveries in hand
	batchCount = 256
	batchBytes = 1 << 20
	intakeHeld = 64 << 20 // bytes of batches that wait for JetStream
)

// NewIntake returns an Intake on a bus; the caller closes it. Creator is to be closed after it.
func NewIntake(ctx context.Context, b *bus.Bus, creator *bus.Creator, log *slog.Logger) (*Intake, error) {
	in := &Intake{bus: b, creator: creator, log: log, start: time.Now(), changed: make(chan struct{})}
	st, err := b.JetStream().Stream(ctx, bus.StreamIntake)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", bus.StreamIntake, err)
	}
	if s := st.CachedInfo().State; s.Msgs > 0 {
		in.stored.Store(s.LastSeq) // by a process before
	}
	in.unsubscribe, err = b.Subscribe(event.MovedSubject, func(data []byte) {
		var seq uint64
		if json.Unmarshal(data, &seq) == nil {
			in.advance(seq)
		}
	})
	return in, err
}

// Close ends the Intake. Run has returned, and no delivery is under way.
func (in *Intake) Close() error { in.unsubscribe(); return nil }

// enter notes that an authenticated delivery is in hand, until leave.
func (in *Intake) enter() {
	if in.inHand.Add(1) > floodAbove {
		in.rush.Store(int64(time.Since(in.start)))
	}
}

func (in *Intake) leave() { in.inHand.Add(-1) }

// flooded reports whether a delivery is to be taken in with others: there are many, or some that were
// accepted before are not events yet, and it must not overtake them.
func (in *Intake) flooded() bool {
	return in.inHand.Load() > floodAbove || in.stored.Load() > in.moved.Load()
}

// settled returns when all that this process has stored so far are events.
func (in *Intake) settled(ctx context.Context) error {
	for goal := in.stored.Load(); ; {
		in.mu.Lock()
		changed := in.changed
		in.mu.Unlock()
		if in.moved.Load() >= goal {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("deliveries that came before are not events yet: %w", ctx.Err())
		}
	}
}

// advance notes that the messages of INTAKE up to a sequence are events.
func (in *Intake) advance(seq uint64) {
	if raise(&in.moved, seq) {
		in.mu.Lock()
		defer in.mu.Unlock()
		close(in.changed)
		in.changed = make(chan struct{})
	}
}

// raise sets v to n unless it is that much, and reports whether it did.
func raise(v *atomic.Uint64, n uint64) bool {
	for {
		old := v.Load()
		if old >= n {
			return false
		}
		if v.CompareAndSwap(old, n) {
			return true
		}
	}
}

// errIntakeBusy says that JetStream does not keep up.
var errIntakeBusy = errors.New("too many deliveries wait to be stored")

// take stores a delivery together with those that come at the same time, and returns when it is stored.
func (in *Intake) take(hook Hook, received time.Time, h http.Header, raw []byte) error {
	record := appendRecord(in.buffer(), hook, received, h, raw)
	defer in.recycle(record)
	return in.add(record)
}

// add adds a record to the batch that is open, and returns when that is stored. Who adds the first stores
// all that have come until the batch before is stored.
func (in *Intake) add(record []byte) error {
	in.mu.Lock()
	if in.held+len(record) > intakeHeld {
		in.mu.Unlock()
		return errIntakeBusy
	}
	in.held += len(record)
	b, before := in.open, in.last
	first := b == nil
	if first {
		b = &batch{buf: append(in.buffer(), batchFormat), done: make(chan struct{})}
		in.open, in.last = b, b.done
	}
	b.buf = append(b.buf, record...)
	if b.n++; b.n == batchCount || len(b.buf) >= batchBytes {
		in.open = nil
	}
	in.mu.Unlock()
	if first {
		in.store(b, before)
	}
	<-b.done
	return b.err
}

// store stores a batch after the one before, if there was one.
func (in *Intake) store(b *batch, before chan struct{}) {
	if before != nil {
		<-before
	}
	// As long as others get to run and add theirs, there is nothing to be gained from being early.
	for n := 0; in.grown(b, &n); {
		runtime.Gosched()
	}
	ctx, cancel := context.WithTimeout(context.Background(), publishTimeout)
	defer cancel()
	var seq uint64
	if seq, b.err = in.creator.Append(ctx, event.SubjectIntake, b.buf); b.err == nil {
		raise(&in.stored, seq)
	}
	in.mu.Lock()
	in.held -= len(b.buf) - 1
	in.mu.Unlock()
	close(b.done)
	in.recycle(b.buf)
}

// grown reports whether a batch that is open has more than n records, and sets n to that. If not, it closes
// the batch.
func (in *Intake) grown(b *batch, n *int) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.open != b {
		return false
	}
	if b.n == *n {
		in.open = nil
		return false
	}
	*n = b.n
	return true
}

func (in *Intake) buffer() []byte {
	if b, ok := in.buffers.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, keptBuffer)
}

func (in *Intake) recycle(b []byte) {
	if cap(b) <= 2*batchBytes {
		in.buffers.Put(&b)
	}
}
