package watch

import (
	"context"
	"sync"
	"time"

	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/store"
)

// Bounds of polling.
const (
	pollsPerHost = 4         // at once
	sweepEvery   = time.Hour // state of images that nobody has tracked for so long is removed
)

// Run polls the tracked images until ctx is done. It returns nil then, and an error only if it could not
// start.
func (w *Watcher) Run(ctx context.Context) error {
	w.init()
	if err := w.recall(ctx); err != nil {
		return err
	}
	if w.Transport == nil {
		defer w.client.CloseIdleConnections()
	}
	var polls sync.WaitGroup
	defer polls.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		due, next := w.due(time.Now())
		for _, name := range due {
			polls.Go(func() { w.poll(ctx, name) })
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-timer.C:
		case <-sweep.C:
			w.sweep(ctx)
		}
	}
}

// recall takes over when images were to be polled next, so that a restart asks nothing at once.
func (w *Watcher) recall(ctx context.Context) error {
	return w.Store.Images.Watch(ctx, ">", func(e *store.Entry[event.TrackedImage]) bool {
		if e == nil {
			return false
		}
		name := graph.Name(e.Value.Name)
		if e.Gone || key(name) != e.Key || !w.pollable(name) {
			return true
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		im := w.imageOf(name)
		im.stored = true
		if im.next.IsZero() && e.Value.Next.Before(time.Now().Add(2*w.Every)) {
			im.next = e.Value.Next
		}
		return true
	})
}

// due returns the images to poll now, and when to look again at the latest.
func (w *Watcher) due(now time.Time) (due []graph.Name, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next = now.Add(sweepEvery)
	for name, im := range w.images {
		if !im.tracked || im.polling {
			continue
		}
		h := w.hostOf(split(name).host)
		at := im.next
		if h.until.After(at) {
			at = h.until
		}
		if h.pause.After(at) {
			at = h.pause
		}
		switch {
		case at.After(now):
			if at.Before(next) {
				next = at
			}
		case h.polling < pollsPerHost: // otherwise the end of one of its polls wakes us
			h.polling++
			im.polling = true
			due = append(due, name)
		}
	}
	return due, next
}

// poll asks for an image and stores what the registry answers.
func (w *Watcher) poll(ctx context.Context, name graph.Name) {
	// The error is that ctx is done, or that the registry is busy: due knows until when.
	_, _ = w.ask(ctx, name, time.Now())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.imageOf(name).polling = false
	w.hostOf(split(name).host).polling--
	w.poke()
}

// sweep removes the stored state of images that were tracked neither at the last sweep nor are now.
func (w *Watcher) sweep(ctx context.Context) {
	for _, name := range w.untracked() {
		im := w.hold(name)
		select {
		case im.lock <- struct{}{}:
			if !w.isTracked(im) {
				w.drop(ctx, name, im)
			}
			<-im.lock
		case <-ctx.Done():
		}
		w.release(im)
	}
}

func (w *Watcher) untracked() (gone []graph.Name) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, im := range w.images {
		if im.idle && im.stored && !im.tracked {
			gone = append(gone, name)
		}
		im.idle = im.stored && !im.tracked
	}
	return gone
}

// drop removes the stored state of an image. The image is locked.
func (w *Watcher) drop(ctx context.Context, name graph.Name, im *image) {
	if err := w.Store.Images.Delete(ctx, key(name)); err != nil {
		w.Log.Warn("state of an image not removed", "ref", name, "err", err)
		return
	}
	im.state = nil
	w.mu.Lock()
	defer w.mu.Unlock()
	im.stored = false
}
