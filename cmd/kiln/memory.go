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
)

// trimMemory keeps garbage within bounds, and gives memory that is not used back to the system whenever the
// process has come to rest, until ctx is done. What a start or a burst of work has needed would be kept for
// long otherwise.
func trimMemory(ctx context.Context) {
	boundGarbage(ctx, 0)
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	var before, trimmed uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := read("/gc/heap/allocs:bytes")
		if now-before < restAllocs && now-trimmed > trimAllocs {
			debug.FreeOSMemory() // what pools hold outlives the first collection
			debug.FreeOSMemory()
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
