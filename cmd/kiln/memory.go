package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	gcPercent  = 50              // garbage that is let pile up, of what is in use: a server shares its host with builds
	trimEvery  = 5 * time.Second // how often it is looked whether the process is at rest
	restAllocs = 4 << 20         // bytes allocated between two looks by a process that is
	trimAllocs = 16 << 20        // bytes allocated since memory was given back that make it worthwhile again
)

// trimMemory gives memory that is not used back to the system whenever the process has come to rest, until
// ctx is done. What a start or a burst of work has needed would be kept for long otherwise.
func trimMemory(ctx context.Context) {
	debug.SetGCPercent(gcPercent)
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	var before, trimmed uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := allocated()
		if now-before < restAllocs && now-trimmed > trimAllocs {
			debug.FreeOSMemory() // what pools hold outlives the first collection
			debug.FreeOSMemory()
			now = allocated()
			trimmed = now
		}
		before = now
	}
}

// allocated returns how many bytes the process has allocated so far.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
