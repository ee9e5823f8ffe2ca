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
	garbage    = 12 << 20 // bytes that are let pile up
	maxPercent = 50       // of what is in use, at most
	minPercent = 10       // and at least
)

const (
	trimEvery  = 5 * time.Second // how often it is looked whether the process is at rest
	restAllocs = 4 << 20         // bytes allocated between two looks by a process that is
	trimAllocs = 16 << 20        // bytes allocated since memory was given back that make it worthwhile again
	restLong   = time.Minute     // after which everything is given back that may be
)

// trimMemory keeps garbage within bounds, and gives memory that is not used back to the system, until ctx is
// done.
func trimMemory(ctx context.Context) {
	boundGarbage(ctx, 0)
	giveBack(ctx)
}

// giveBack gives memory that is not used back to the system whenever the process has come to rest, until ctx
// is done. What a start or a burst of work has needed would be kept for long otherwise. If it rests for longer,
// the event store has let go of its caches, and the program's own pages may go.
func giveBack(ctx context.Context) {
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	var before, trimmed uint64 // bytes allocated at the last look, and when memory was given back
	var rested time.Duration
	all := false // was given back since the process rests
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := read("/gc/heap/allocs:bytes")
		if now-before >= restAllocs {
			rested, all = 0, false
		} else {
			rested += trimEvery
			long := rested >= restLong && !all
			if long || trimmed == 0 || now-trimmed > trimAllocs {
				debug.FreeOSMemory() // what pools hold outlives the first collection
				debug.FreeOSMemory()
				now = read("/gc/heap/allocs:bytes")
				trimmed = now
			}
			if long {
				dropProgram()
				all = true
			}
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
