package worker

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
)

// DefaultMaxLog is how many bytes of output are kept of an attempt if nothing else is said.
const DefaultMaxLog = 512 << 20

const (
	maxChunk  = 256 << 10 // bytes of output in one log message, about
	maxQueued = 8 << 20   // bytes of output waiting to be sent, beyond which a step is slowed down
	// progressDelay is how long what the build daemon tells of its progress waits for more: a small build
	// has dozens of such entries, each of which would be a message of its own.
	progressDelay = 20 * time.Millisecond
)

// logs is the log of one attempt: it masks secrets, cuts the output into messages and sends them in
// order. Output goes out at once, and progress soon; while a message is on its way, what follows is collected.
type logs struct {
	bus     *bus.Bus
	run     string
	attempt int
	values  []string         // to mask
	whole   *secret.Redactor // masks texts that come in one piece
	index   map[string]int
	max     int64 // bytes of output kept

	mu     sync.Mutex
	room   *sync.Cond // signalled when queued output was sent
	steps  map[string]*stepLog
	order  []string // steps with something to send
	queued int
	kept   int64 // bytes of output so far
	last   uint64
	closed bool
	later  *time.Timer // wakes the sender, for progress; set while it runs

	wake chan struct{}
	done chan struct{}
}

// A stepLog is the log of one step on its way.
type stepLog struct {
	entries  []event.LogEntry
	masks    map[string]*secret.Redactor  // by stream and vertex
	full     bool                         // nothing more is kept, and that is said
	open     [event.StreamStderr + 1]bool // by stream: what containers have written does not end with a line's end
	watchers []*watcher
}

// A watcher looks for words in a step's output, also where they are spread over two chunks.
type watcher struct {
	words [][]byte
	tails map[string][]byte // the end of each stream so far
	found bool
}

func newLogs(b *bus.Bus, r run.Run, values []string, max int64) *logs {
	l := &logs{bus: b, run: r.ID, attempt: r.Attempt, values: values, max: cmp.Or(max, DefaultMaxLog), whole: secret.NewRedactor(values), steps: map[string]*stepLog{},
		index: map[string]int{"": -1}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	l.room = sync.NewCond(&l.mu)
	go l.send()
	return l
}

// say logs kiln's own words about a step, or about the run when step is empty.
func (l *logs) say(step, format string, args ...any) {
	l.add(step, []event.LogEntry{{Time: time.Now().UTC(), Stream: event.StreamKiln, Data: []byte(fmt.Sprintf(format, args...) + "\n")}})
}

// add queues entries of a step. It blocks while too much output waits to be sent.
func (l *logs) add(step string, entries []event.LogEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.queued > maxQueued && !l.closed {
		l.room.Wait()
	}
	if l.closed {
		return
	}
	s := l.step(step)
	for _, e := range entries {
		l.queue(step, s, e)
	}
}

// hide has these values masked, too, from now on.
func (l *logs) hide(values ...string) {
	l.mu.Lock()
	ids := slices.Collect(maps.Keys(l.steps))
	l.mu.Unlock()
	for _, id := range ids {
		l.flush(id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.values = slices.Concat(l.values, values)
	l.whole = secret.NewRedactor(l.values)
	for _, s := range l.steps {
		clear(s.masks)
	}
}

func (l *logs) step(id string) *stepLog {
	s := l.steps[id]
	if s == nil {
		s = &stepLog{masks: map[string]*secret.Redactor{}}
		l.steps[id] = s
		if _, ok := l.index[id]; !ok {
			l.index[id] = len(l.index) - 1
		}
	}
	return s
}

// queue masks an entry and appends it, output that is larger than a message in pieces. The caller holds
// the lock.
func (l *logs) queue(id string, s *stepLog, e event.LogEntry) {
	for len(e.Data) > maxChunk {
		piece := e
		piece.Data, e.Data = e.Data[:maxChunk], e.Data[maxChunk:]
		l.queue(id, s, piece)
	}
	switch {
	case e.Status != nil:
		st := *e.Status
		st.ID, st.Name = l.whole.String(st.ID), l.whole.String(st.Name)
		e.Status = &st
	case e.Vertex != nil:
		v := *e.Vertex
		v.Name, v.Error = l.whole.String(v.Name), l.whole.String(v.Error)
		e.Vertex = &v
	case e.Data != nil:
		key := fmt.Sprint(e.Stream, e.VertexID)
		if s.masks[key] == nil {
			s.masks[key] = secret.NewRedactor(l.values)
		}
		for _, w := range s.watchers {
			w.see(key, e.Data)
		}
		e.Data = bytes.Clone(s.masks[key].Write(e.Data))
		if e.Data = l.limit(s, e); len(e.Data) == 0 {
			return
		}
	}
	l.append(id, s, e)
}

func (l *logs) append(id string, s *stepLog, e event.LogEntry) {
	if len(s.entries) == 0 {
		l.order = append(l.order, id)
	}
	s.entries = append(s.entries, e)
	l.queued += weight(e)
	if e.VertexID == "" && e.Stream != event.StreamKiln && len(e.Data) > 0 {
		s.open[e.Stream] = e.Data[len(e.Data)-1] != '\n'
	}
	switch {
	case e.Data != nil, e.End:
		l.rouse()
	case l.later == nil:
		l.later = time.AfterFunc(progressDelay, func() {
			l.mu.Lock()
			l.later = nil
			l.mu.Unlock()
			l.rouse()
		})
	}
}

// rouse has what is queued sent.
func (l *logs) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// limit cuts what steps say when the run has said too much, with a mark in each step that loses some. What
// kiln says is always kept. The caller holds the lock.
func (l *logs) limit(s *stepLog, e event.LogEntry) []byte {
	if e.Stream == event.StreamKiln {
		return e.Data
	}
	room := max(l.max-l.kept, 0)
	if int64(len(e.Data)) <= room {
		l.kept += int64(len(e.Data))
		return e.Data
	}
	l.kept = l.max
	data := e.Data[:room]
	if !s.full {
		s.full = true
		data = append(data, fmt.Sprintf("\n[kiln: the log of this run ends here, at %d MiB (kiln serve --max-log); the run goes on]\n", l.max>>20)...)
	}
	return data
}

// watch reports whether one of the words occurs in the step's output from now on; without words, that
// is always so.
func (l *logs) watch(step string, words []string) (found func() bool) {
	if len(words) == 0 {
		return func() bool { return true }
	}
	w := &watcher{tails: map[string][]byte{}}
	for _, word := range words {
		w.words = append(w.words, []byte(word))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.step(step)
	s.watchers = []*watcher{w}
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return w.found
	}
}

func (w *watcher) see(stream string, data []byte) {
	longest := 0
	text := append(w.tails[stream], data...)
	for _, word := range w.words {
		w.found = w.found || bytes.Contains(text, word)
		longest = max(longest, len(word))
	}
	w.tails[stream] = bytes.Clone(text[max(0, len(text)-longest):])
}

// flush sends what masking has held back of a step.
func (l *logs) flush(step string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.steps[step]
	if s == nil {
		return
	}
	for key, r := range s.masks {
		rest := r.Flush()
		if len(rest) == 0 {
			continue
		}
		var e event.LogEntry
		if _, err := fmt.Sscan(key[:1], &e.Stream); err != nil {
			continue
		}
		e.Time, e.VertexID, e.Data = time.Now().UTC(), key[1:], bytes.Clone(rest)
		if e.Data = l.limit(s, e); len(e.Data) > 0 {
			l.append(step, s, e)
		}
	}
}

// end flushes a step whose output has ended, and says so if a line of it has no end.
func (l *logs) end(step string) {
	l.flush(step)
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.steps[step]; s != nil && slices.Contains(s.open[:], true) {
		clear(s.open[:])
		l.append(step, s, event.LogEntry{Time: time.Now().UTC(), End: true})
	}
}

// send publishes what is queued, in order, until the log is closed and all of it is stored.
func (l *logs) send() {
	defer close(l.done)
	s := logSender{bus: l.bus, run: l.run}
	for more := true; more; {
		var chunk event.LogChunk
		var index int
		chunk, index, more = l.next()
		switch {
		case len(chunk.Entries) > 0:
			s.publish(index, chunk)
			l.reached(s.last)
		case more:
			<-l.wake
		}
	}
	s.end(l.attempt)
	l.reached(s.last)
}

// reached notes the sequence of the last message that was stored.
func (l *logs) reached(last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = last
}

// next takes the entries for one message, and says which step's they are. More is false when nothing
// will come any more.
func (l *logs) next() (chunk event.LogChunk, index int, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.order) == 0 {
		return chunk, 0, !l.closed
	}
	id := l.order[0]
	s, size, n := l.steps[id], 0, 0
	for n < len(s.entries) && (n == 0 || size+weight(s.entries[n]) <= maxChunk) && n < 1024 {
		size += weight(s.entries[n])
		n++
	}
	chunk = event.LogChunk{Attempt: l.attempt, Step: id, Entries: s.entries[:n:n]}
	s.entries = s.entries[n:]
	l.order = l.order[1:]
	if len(s.entries) > 0 {
		l.order = append(l.order, id)
	} else {
		s.entries = nil
	}
	l.queued -= size
	l.room.Broadcast()
	return chunk, l.index[id], true
}

// weight is about how many bytes an entry takes in a message.
func weight(e event.LogEntry) int {
	n := 64 + len(e.Data)
	if e.Vertex != nil {
		n += len(e.Vertex.Name) + len(e.Vertex.Error) + 80*(1+len(e.Vertex.Inputs))
	}
	if e.Status != nil {
		n += len(e.Status.ID) + len(e.Status.Name) + 160
	}
	return n
}

// close sends what is left and returns the stream sequence of the last message.
func (l *logs) close(ctx context.Context) uint64 {
	l.mu.Lock()
	ids := make([]string, 0, len(l.steps))
	for id := range l.steps {
		ids = append(ids, id)
	}
	l.mu.Unlock()
	for _, id := range ids {
		l.flush(id)
	}
	l.mu.Lock()
	l.closed = true
	l.room.Broadcast()
	l.mu.Unlock()
	l.rouse()
	select {
	case <-l.done:
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
