package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A server shares its host with builds, so it lets less garbage pile up than Go does by default: a share of
// what is in use, and of much that is in use a smaller one, as a burst of work is short and may cost some
// processor time.
const (
	garbage    = 16 << 20 // bytes that are let pile up
	maxPercent = 50       // of what is in use, at most
	minPercent = 15       // and at least
)

const (
	trimEvery  = 5 * time.Second // how often it is looked whether the process is at rest
	restAllocs = 4 << 20         // bytes allocated between two looks by a process that is
	trimAllocs = 16 << 20        // bytes allocated since memory was given back that make it worthwhile again
	trimAgain  = 3 * time.Minute // after which it is given back once more: the event store's caches are gone then
)

// trimMemory keeps garbage within bounds, and gives memory that is not used back to the system, until ctx is
// done.
func trimMemory(ctx context.Context) {
	boundGarbage(ctx, 0)
	giveBack(ctx)
}

// giveBack gives memory that is not used back to the system whenever the process has come to rest, until ctx
// is done. What a start or a burst of work has needed would be kept for long otherwise.
func giveBack(ctx context.Context) {
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	var before, trimmed uint64
	var again time.Time // zero if it was
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := read("/gc/heap/allocs:bytes")
		worthwhile := trimmed == 0 || now-trimmed > trimAllocs
		if now-before < restAllocs && (worthwhile || !again.IsZero() && time.Now().After(again)) {
			if again = (time.Time{}); worthwhile {
				again = time.Now().Add(trimAgain)
			}
			debug.FreeOSMemory() // what pools hold outlives the first collection
			debug.FreeOSMemory()
			dropProgram()
			now = read("/gc/heap/allocs:bytes")
			trimmed = now
		}
		before = now
	}
}

// boundGarbage sets how much garbage may be there before it is collected, now and after each collection
// until ctx is done. The percentage that holds now is given.
func boundGarbage(ctx context.Context, percent int) {
	if ctx.Err() != nil {
		return
	}
	live := max(read("/gc/heap/live:bytes"), 1)
	if want := min(max(int(100*garbage/live), minPercent), maxPercent); want != percent {
		percent = want
		debug.SetGCPercent(percent)
	}
	runtime.AddCleanup(&struct{ self *int }{}, func(percent int) { boundGarbage(ctx, percent) }, percent)
}

// read reads a figure of the runtime.
func read(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
