package watch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/store"
)

// Provider is the provider of the events that polling makes.
const Provider = "poll"

// A record is the stored state of an image, with its revision.
type record struct {
	event.TrackedImage
	revision uint64
}

// key is where an image's state is stored.
func key(n graph.Name) string { return event.Hash(string(n)) }

// load reads the image's stored state, if it is needed and not known. The image is locked.
func (w *Watcher) load(ctx context.Context, name graph.Name, im *image) {
	if im.state != nil || !w.isTracked(im) {
		return
	}
	v, revision, err := w.Store.Images.Get(ctx, key(name))
	switch {
	case err == nil:
		im.state = &record{v, revision}
	case errors.Is(err, store.ErrNotFound):
		v = event.TrackedImage{Name: string(name)}
		if im.last.err == nil && im.last.digest != "" { // somebody was told so before the image was tracked
			v.Digest, v.ETag, v.Seen = im.last.digest, im.last.etag, im.last.asked.UTC()
		}
		im.state = &record{TrackedImage: v}
	case ctx.Err() == nil:
		w.Log.Warn("state of an image cannot be read", "ref", name, "err", err)
	}
}

func (w *Watcher) isTracked(im *image) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return im.tracked
}

// observe tells of a tracked image that has moved, stores what was seen and sets when it is polled next.
// The image is locked. What cannot be told or stored now is seen again by the next poll.
func (w *Watcher) observe(ctx context.Context, name graph.Name, im *image, a answer) {
	next := w.plan(im, a)
	if im.state == nil || !w.isTracked(im) {
		return
	}
	for {
		err := w.store(ctx, name, im, a, next)
		switch {
		case err == nil:
			return
		case errors.Is(err, store.ErrConflict): // somebody else has written it
			im.state = nil
			if w.load(ctx, name, im); im.state != nil {
				continue
			}
		}
		if ctx.Err() == nil {
			w.Log.Warn("state of an image not stored", "ref", name, "err", err)
		}
		im.state = nil
		return
	}
}

func (w *Watcher) store(ctx context.Context, name graph.Name, im *image, a answer, next time.Time) error {
	v, now := im.state.TrackedImage, a.asked.UTC()
	v.Next = next.UTC()
	if a.err != nil {
		v.Error = clip(a.err.Error())
	} else {
		if v.Digest != "" && v.Digest != a.digest {
			if err := w.tell(ctx, name, im.state.TrackedImage, a); err != nil {
				return err
			}
			w.Log.Info("image has moved", "ref", name, "digest", a.digest, "before", v.Digest)
		}
		if v.Digest != a.digest {
			v.Seen, v.By, v.ByTask = now, "", ""
		}
		v.Digest, v.ETag, v.Error = a.digest, a.etag, ""
	}
	var revision uint64
	var err error
	if im.state.revision == 0 {
		revision, err = w.Store.Images.Create(ctx, key(name), v)
	} else {
		revision, err = w.Store.Images.Update(ctx, key(name), v, im.state.revision)
	}
	if err != nil {
		return err
	}
	im.state = &record{v, revision}
	w.mu.Lock()
	defer w.mu.Unlock()
	im.stored = true
	return nil
}

// tell publishes that an image has moved. An image may move to and fro: when the earlier digest was seen
// first tells one such move from another.
func (w *Watcher) tell(ctx context.Context, name graph.Name, before event.TrackedImage, a answer) error {
	p := split(name)
	id := event.Hash(fmt.Sprintf("%s|%s|%s|%d", name, before.Digest, a.digest, before.Seen.UnixNano()))
	ev, err := event.New(id, "/poll/"+p.host, event.TypeRegistryPushed, a.asked.UTC(), event.RegistryPushed{
		Provider: Provider, Registry: p.host, Repository: p.repository, Tag: p.tag, Digest: a.digest, MediaType: a.mediaType,
		Delivery: event.Delivery{Provider: Provider, ID: id, Received: a.asked.UTC()},
	})
	if err != nil {
		return err
	}
	ev.Subject = string(name)
	_, err = w.Bus.Create(ctx, event.DeliverySubject(event.TypeRegistryPushed, id), ev, 0)
	if errors.Is(err, bus.ErrConflict) {
		return nil // told before, and then the state could not be stored
	}
	return err
}

// maxDelay is how long an image that cannot be resolved waits at most, unless Every is longer.
const maxDelay = 6 * time.Hour

// plan sets when an image is polled next.
func (w *Watcher) plan(im *image, a answer) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	delay := w.Every
	switch {
	case a.err == nil:
		im.failed = 0
	case !im.polling: // somebody who asks again and again does not keep the polls away
		return im.next
	default:
		delay = min(w.Every<<min(im.failed, 10), max(maxDelay, w.Every))
		im.failed++
	}
	im.next = time.Now().Add(jitter(delay))
	return im.next
}

// jitter returns d less or more by up to a tenth, so that images drift apart.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

// clip bounds a message that is stored.
func clip(s string) string {
	const most = 500
	if len(s) <= most {
		return s
	}
	n := most
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n] + "..."
}
