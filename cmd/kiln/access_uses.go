package main

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"kiln/internal/event"
	"kiln/internal/store"
)

// A tokenUses knows when tokens were used last. That is stored beside the tokens, at most once a minute for
// each, and nobody waits for it: the record of a token is never changed by its use, and what is left of a token that
// was deleted tells of no other, and goes after a year. It is safe for concurrent use.
type tokenUses struct {
	stored *store.Bucket[event.TokenUse]
	log    *slog.Logger

	mu   sync.Mutex
	last map[string]event.TokenUse // that are not stored yet, by the token's key
}

const (
	useEvery  = time.Minute
	useWithin = 5 * time.Second // how long all of it may take, also at the end
	maxUses   = 10_000          // tokens of a minute
)

// note implements auth.Keys.Used.
func (u *tokenUses) note(key, id string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, known := u.last[key]; known || len(u.last) < maxUses {
		u.last[key] = event.TokenUse{ID: id, Time: now.UTC().Truncate(time.Second)}
	}
}

// forget drops what is not stored yet of a token that was deleted.
func (u *tokenUses) forget(key, id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last[key].ID == id {
		delete(u.last, key)
	}
}

// run stores uses until ctx ends, and then what is left.
func (u *tokenUses) run(ctx context.Context) error {
	t := time.NewTicker(useEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			u.store(ctx)
		case <-ctx.Done():
			u.store(context.WithoutCancel(ctx))
			return nil
		}
	}
}

// store stores what is noted. What cannot be stored is lost: the next use will tell.
func (u *tokenUses) store(ctx context.Context) {
	u.mu.Lock()
	uses := maps.Clone(u.last)
	clear(u.last)
	u.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, useWithin)
	defer cancel()
	for key, use := range uses {
		if _, err := u.stored.Put(ctx, key, use); err != nil {
			u.log.Warn("last use of tokens not stored", "err", err)
			return
		}
	}
}
