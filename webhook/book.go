package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// A Book is the hooks of a store, kept in memory: looking one up costs no round trip, and a sealed
// secret is opened once, when it is first used. A change of the store is in the book within
// milliseconds. Its fields are set before Run and not changed after; Run must be called once.
type Book struct {
	Store    *store.Bucket[event.Hook]
	Identity secret.Identity // opens the secrets
	Log      *slog.Logger

	once  sync.Once
	ready chan struct{} // closed when the book has been read for the first time
	hooks sync.Map      // ID to *page
}

// A page is a hook of the book.
type page struct {
	revision uint64
	stored   event.Hook
	open     func() (Hook, error)
	// last is when the hook was last used, in nanoseconds since 1970, as far as it is not stored.
	last atomic.Int64
}

// How often the time of the last delivery is stored, and how long a broken watch waits.
const (
	noteEvery  = time.Minute
	watchAgain = time.Second
)

func (b *Book) init() { b.once.Do(func() { b.ready = make(chan struct{}) }) }

// Hook returns a hook, as Handler.Hooks wants it. Until the book has been read it waits, as long as ctx
// allows.
func (b *Book) Hook(ctx context.Context, id string) (Hook, error) {
	b.init()
	select {
	case <-b.ready:
	case <-ctx.Done():
		return Hook{}, fmt.Errorf("hooks are not read yet: %w", ctx.Err())
	}
	p, ok := b.page(id)
	if !ok {
		return Hook{}, fmt.Errorf("hook %q: %w", id, ErrNoHook)
	}
	return p.open()
}

// Used notes that an authenticated delivery has come by a hook.
func (b *Book) Used(id string, at time.Time) {
	if p, ok := b.page(id); ok {
		p.last.Store(at.UnixNano())
	}
}

func (b *Book) page(id string) (*page, bool) {
	v, ok := b.hooks.Load(id)
	if !ok {
		return nil, false
	}
	return v.(*page), true
}

// Run keeps the book until ctx is done, and returns nil then. While the store cannot be reached, the
// book stays as it was.
func (b *Book) Run(ctx context.Context) error {
	b.init()
	noting := make(chan struct{})
	go func() {
		defer close(noting)
		b.note(ctx)
	}()
	defer func() { <-noting }()
	for {
		if err := b.read(ctx); err != nil {
			b.Log.Warn("hooks cannot be watched, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchAgain):
		}
	}
}

// read follows the store. What it did not name by the end of its present state is gone.
func (b *Book) read(ctx context.Context) error {
	seen, initial := map[string]bool{}, true
	return b.Store.Watch(ctx, ">", func(e *store.Entry[event.Hook]) bool {
		switch {
		case e == nil:
			b.hooks.Range(func(id, _ any) bool {
				if !seen[id.(string)] {
					b.hooks.Delete(id)
				}
				return true
			})
			if initial, seen = false, nil; !closed(b.ready) {
				close(b.ready)
			}
		case e.Gone:
			b.hooks.Delete(e.Key)
		default:
			if initial {
				seen[e.Key] = true
			}
			b.write(e)
		}
		return true
	})
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// write puts a hook into the book. Secrets that have not changed stay open.
func (b *Book) write(e *store.Entry[event.Hook]) {
	h := e.Value
	h.ID = e.Key
	next := &page{revision: e.Revision, stored: h}
	next.open = sync.OnceValues(func() (Hook, error) { return b.opened(h) })
	if old, ok := b.page(e.Key); ok {
		next.last.Store(old.last.Load())
		if same(old.stored, h) {
			next.open = old.open
		}
	}
	b.hooks.Store(e.Key, next)
}

// same reports whether two states of a hook are the same to who delivers by it.
func same(a, b event.Hook) bool {
	return a.Provider == b.Provider && a.Disabled == b.Disabled && a.Registry == b.Registry &&
		string(a.Secret) == string(b.Secret) && string(a.Previous) == string(b.Previous)
}

func (b *Book) opened(h event.Hook) (Hook, error) {
	out := Hook{ID: h.ID, Provider: h.Provider, Enabled: !h.Disabled, Registry: h.Registry}
	for _, s := range []struct {
		sealed []byte
		open   *Secret
	}{{h.Secret, &out.Secret}, {h.Previous, &out.Previous}} {
		if len(s.sealed) == 0 {
			continue
		}
		if err := b.Identity.Open(s.sealed, (*string)(s.open)); err != nil {
			return Hook{}, fmt.Errorf("hook %s: its secret cannot be opened, rotate it: %w", h.ID, err)
		}
	}
	return out, nil
}

// note stores when hooks were last used, each at most once a minute, and a last time at the end.
func (b *Book) note(ctx context.Context) {
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			b.noteAll(ctx)
			return
		case <-tick.C:
			b.noteAll(ctx)
		}
	}
}

func (b *Book) noteAll(ctx context.Context) {
	b.hooks.Range(func(id, v any) bool {
		p := v.(*page)
		last := time.Unix(0, p.last.Load()).UTC()
		if p.last.Load() == 0 || !last.After(p.stored.LastDelivery) {
			return true
		}
		h := p.stored
		h.LastDelivery = last
		// A conflict means that the hook has just been changed: the next round has the new state.
		if _, err := b.Store.Update(ctx, id.(string), h, p.revision); err != nil && !errors.Is(err, store.ErrConflict) {
			b.Log.Warn("time of the last delivery is not stored", "hook", id, "err", err)
		}
		return ctx.Err() == nil
	})
}
