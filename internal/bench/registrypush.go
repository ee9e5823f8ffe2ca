package main

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

const (
	smallMust = 0.2
	tenMust   = 0.4
	largeMust = 1 / 1.3
	loadMust  = 60 // MB above what it has when idle

	largeRounds = 5
	largeLayer  = 500_000_000
)

// registryPush measures the push of an image with one layer of 1 KB, and push and pull of one with ten layers of
// 1 MB. The sides take turns.
func registryPush(ctx context.Context, l *lab) ([]result, error) {
	_, all, err := l.startDepositories(ctx)
	if err != nil {
		return nil, err
	}
	small, _, err := l.transfer(ctx, all, l.n*4, 1, 1024)
	if err != nil {
		return nil, err
	}
	push, pull, err := l.transfer(ctx, all, l.n, 10, 1_000_000)
	if err != nil {
		return nil, err
	}
	results := compare("small push", all, small, smallMust)
	results = append(results, compare("push of 10 x 1 MB", all, push, tenMust)...)
	return append(results, compare("pull of 10 x 1 MB", all, pull, 0)...), nil
}

// registryLarge measures push and pull of an image with one layer of 500 MB, and the memory that kiln takes for it.
func registryLarge(ctx context.Context, l *lab) ([]result, error) {
	k, all, err := l.startDepositories(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.quiet(ctx); err != nil {
		return nil, err
	}
	idle, _, err := k.memory()
	if err != nil {
		return nil, err
	}
	if err := k.forgetPeak(); err != nil {
		return nil, err
	}
	push, pull, err := l.transfer(ctx, all, min(l.n, largeRounds), 1, largeLayer)
	if err != nil {
		return nil, err
	}
	_, peak, err := k.memory()
	if err != nil {
		return nil, err
	}
	results := compare("push of 500 MB", all, push, largeMust)
	results = append(results, compare("pull of 500 MB", all, pull, largeMust)...)
	for i := range results {
		r := &results[i]
		r.Note = fmt.Sprintf("MB/s: kiln %.0f, %s %.0f", largeLayer/1e3/r.Kiln.P50, r.PeerName, largeLayer/1e3/r.Peer.P50)
	}
	return append(results, result{What: "RSS of the server under that load, over idle", Unit: "MB", Value: peak - idle, Must: loadMust,
		Note: fmt.Sprintf("idle %.0f, at most %.0f MB; everything else of the server is in it", idle, peak)}), nil
}

// transfer has images of so many layers of that size pushed and pulled, after a warm-up.
func (l *lab) transfer(ctx context.Context, all []*depository, rounds, layers int, size int64) (pushes, pulls [][]time.Duration, err error) {
	pushes, pulls = make([][]time.Duration, len(all)), make([][]time.Duration, len(all))
	for round := range warmUp + rounds {
		for i := range all {
			i = (round + i) % len(all)
			a, err := newArtwork("bench/app", layers, size)
			if err != nil {
				return nil, nil, err
			}
			syscall.Sync() // or who syncs pays for what others have written without that
			push, err := all[i].push(ctx, a)
			if err != nil {
				return nil, nil, err
			}
			if err := all[i].check(ctx, a); err != nil {
				return nil, nil, err
			}
			pull, err := all[i].pull(ctx, a)
			if err != nil {
				return nil, nil, err
			}
			if round >= warmUp {
				pushes[i], pulls[i] = append(pushes[i], push), append(pulls[i], pull)
			}
		}
	}
	return pushes, pulls, nil
}

// compare compares the medians of the first side with those of the others. The bound is for docker-registry: the
// other one syncs nothing and keeps manifests in memory.
func compare(what string, all []*depository, times [][]time.Duration, must float64) (results []result) {
	a := summarize(times[0])
	for i, peer := range all[1:] {
		b := summarize(times[i+1])
		r := result{What: what + " / " + peer.name, Unit: "x", Value: a.P50 / b.P50, Kiln: &a, Peer: &b, PeerName: peer.name}
		if i == 0 {
			r.Must = must
		}
		results = append(results, r)
	}
	return results
}
