// Package render draws the progress of a followed run: what a person watches while it is executed.
//
// A Display takes the events of a run's log stream in the order they arrive and may be given the
// whole stream of a finished run as well. It is used from one goroutine and never fails: a writer
// that refuses is the writer's loss. Text from a run is shown without control characters, colours
// excepted, so a log cannot take over a terminal.
package render

import (
	"strconv"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
)

// A Display shows one run.
type Display interface {
	// Chunk shows a piece of the log.
	Chunk(event.LogChunk)
	// Run shows what has changed since the last call. Repetitions are harmless.
	Run(run.Run)
	// Note shows a sentence of the program's own.
	Note(string)
	// Close shows what is still held back. Nothing may be called after it.
	Close()
}

// Discard is a Display that shows nothing.
type Discard struct{}

// Chunk does nothing.
func (Discard) Chunk(event.LogChunk) {}

// Run does nothing.
func (Discard) Run(run.Run) {}

// Note does nothing.
func (Discard) Note(string) {}

// Close does nothing.
func (Discard) Close() {}

// Took formats the time between two moments as a person reads it: 40ms, 0.8s, 75.3s, 12m05s; empty if it is not over.
func Took(from, to time.Time) string {
	if from.IsZero() || to.IsZero() {
		return ""
	}
	d := max(0, to.Sub(from))
	switch {
	case d < 100*time.Millisecond:
		return strconv.FormatInt(d.Milliseconds(), 10) + "ms"
	case d < 100*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
	}
	s := int64(d.Seconds())
	if s < 3600 {
		return strconv.FormatInt(s/60, 10) + "m" + two(s%60) + "s"
	}
	return strconv.FormatInt(s/3600, 10) + "h" + two(s/60%60) + "m"
}

func two(n int64) string {
	if n < 10 {
		return "0" + strconv.FormatInt(n, 10)
	}
	return strconv.FormatInt(n, 10)
}
