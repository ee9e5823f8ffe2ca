package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/auth"
	"kiln/internal/event"
	"kiln/internal/store"
)

// A tokenBook is the records of tokens, in memory as long as their store can be followed: to look one up then
// takes no round trip. It is safe for concurrent use.
type tokenBook struct {
	stored *store.Bucket[event.Token]
	log    *slog.Logger

	mu     sync.RWMutex
	tokens map[string]event.Token // by key
	gone   map[string]string      // IDs of tokens that were deleted before the store told that they were made

	uses *tokenUses
}

const (
	bookAgain = time.Second // how often it is tried to follow the store
	maxGone   = 1000
)

func newTokenBook(s *store.Store, log *slog.Logger) *tokenBook {
	return &tokenBook{stored: &s.Tokens, log: log, tokens: map[string]event.Token{}, gone: map[string]string{},
		uses: &tokenUses{stored: &s.TokenUse, log: log, last: map[string]event.TokenUse{}}}
}

// get implements auth.Keys.Stored. A token that was just made is not in the book yet, but in the store.
func (b *tokenBook) get(ctx context.Context, key string) (event.Token, error) {
	b.mu.RLock()
	t, ok := b.tokens[key]
	b.mu.RUnlock()
	if ok {
		return t, nil
	}
	t, _, err := b.stored.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		err = auth.ErrToken
	}
	return t, err
}

// forget removes a token that was deleted from the store, which may not have told so yet.
func (b *tokenBook) forget(key, id string) {
	b.uses.forget(key, id)
	b.mu.Lock()
	defer b.mu.Unlock()
	if t, ok := b.tokens[key]; ok {
		if t.ID == id {
			delete(b.tokens, key)
		}
		return
	}
	// The store may not even have told that it was made, or have told all already.
	if len(b.gone) >= maxGone {
		clear(b.gone)
	}
	b.gone[key] = id
}

// attach has keys know the tokens, and the book when they are used.
func (b *tokenBook) attach(keys *auth.Keys) { keys.Stored, keys.Used = b.get, b.uses.note }

// run follows the store, and stores when tokens are used, until ctx ends.
func (b *tokenBook) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.follow(ctx) })
	g.Go(func() error { return b.uses.run(ctx) })
	return g.Wait()
}

func (b *tokenBook) follow(ctx context.Context) error {
	again := time.NewTicker(bookAgain)
	defer again.Stop()
	for {
		err := b.stored.Watch(ctx, ">", func(e *store.Entry[event.Token]) bool { b.note(e); return true })
		b.close()
		if err != nil {
			b.log.Warn("tokens cannot be followed, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
	}
}

// note puts what the store tells into the book.
func (b *tokenBook) note(e *store.Entry[event.Token]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case e == nil:
	case e.Gone:
		delete(b.tokens, e.Key)
		delete(b.gone, e.Key)
	case b.gone[e.Key] == e.Value.ID: // told before its end
	default:
		b.tokens[e.Key] = e.Value
	}
}

// close empties the book: what is not followed may have changed.
func (b *tokenBook) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.tokens)
	clear(b.gone)
}
