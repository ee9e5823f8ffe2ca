package watch

import (
	"context"
	"time"

	"kiln/internal/graph"
)

// An image is what is known of a foreign image. Who holds its lock asks the registry and stores what it
// answered; the fields of the second group are guarded by the Watcher's mutex.
type image struct {
	lock  chan struct{} // of capacity 1
	last  answer
	state *record // as it is stored, nil if not known

	refs    int // who hold the lock or wait for it
	tracked bool
	polling bool
	stored  bool      // there is a state of it in the store
	idle    bool      // was stored and not tracked at the last sweep
	next    time.Time // when it is polled
	failed  int       // requests in a row
}

// An answer is what a registry has said about an image.
type answer struct {
	asked     time.Time // before the request
	digest    string
	mediaType string
	etag      string
	err       error
}

// ask returns an answer to a question that was asked at since or later, asking it if need be. The error
// says why it could not be asked.
func (w *Watcher) ask(ctx context.Context, name graph.Name, since time.Time) (answer, error) {
	im := w.hold(name)
	defer w.release(im)
	select {
	case im.lock <- struct{}{}:
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	}
	defer func() { <-im.lock }()
	if !im.last.asked.IsZero() && !im.last.asked.Before(since) {
		return im.last, nil
	}
	w.load(ctx, name, im)
	a, err := w.request(ctx, name, im)
	if err != nil {
		return answer{}, err
	}
	im.last = a
	w.observe(ctx, name, im, a)
	return a, nil
}

func (w *Watcher) hold(name graph.Name) *image {
	w.mu.Lock()
	defer w.mu.Unlock()
	im := w.imageOf(name)
	im.refs++
	return im
}

func (w *Watcher) release(im *image) {
	w.mu.Lock()
	defer w.mu.Unlock()
	im.refs--
}

// minIdle is how many images or hosts are remembered at least.
const minIdle = 1024

// imageOf returns the image with a name. The Watcher is locked.
func (w *Watcher) imageOf(n graph.Name) *image {
	if im, ok := w.images[n]; ok {
		return im
	}
	if len(w.images) >= max(w.maxImages, minIdle) {
		for n, im := range w.images {
			if !im.tracked && !im.stored && !im.polling && im.refs == 0 {
				delete(w.images, n)
			}
		}
		w.maxImages = 2 * len(w.images)
	}
	im := &image{lock: make(chan struct{}, 1)}
	w.images[n] = im
	return im
}
