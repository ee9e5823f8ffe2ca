// Package notify tells others what has happened: it sends events to the targets that somebody named, and
// sets the status of commits at git forges.
//
// # What it promises
//
//   - Every event of event.NotifiedTypes is queued for every target that wants it before it is let go, so
//     a crash loses none. Sending is at least once and in no certain order; the ID stays the same when it
//     is repeated.
//   - What cannot be sent is tried again after growing delays, for a day. Then it is given up and kept
//     for 30 days, to be seen and retried.
//   - Targets do not wait for each other. Each has a queue of at most 10,000 notifications; what comes
//     when that is full is dropped, and logged.
//   - A notification is a CloudEvent in structured JSON, signed as Standard Webhooks says. Of a target's
//     address no more than scheme and host is in a log or an error. No address
//     but a public one is spoken to, unless Config.Allow says so; no redirect is followed.
//   - A target that is a webhook of the registry is sent what ACR's webhooks are sent, of the images in its scope.
//     The last 100 requests to each are kept for 30 days with their answers.
//   - Forges do not wait for each other either: each host has its own queue, as long as that of a target, and
//     at most 4 requests under way. One that fails is tried again alone, after 5 seconds to 5 minutes.
//   - The status of a commit is computed from its run when it is sent, so an old one never replaces a
//     newer one for good. A status that the forge refuses for ever is given up at once, and logged.
package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/forge"
	"kiln/internal/netguard"
	"kiln/internal/store"
)

// A Notifier is the component. Its fields are set before Run and not changed after; Bus, Store, Secret
// and Log are required.
type Notifier struct {
	Bus   *bus.Bus
	Store *store.Store
	// Secret returns the value of a named secret; an error that wraps secret.ErrUnknown or store.ErrNotFound
	// if there is none.
	Secret func(ctx context.Context, name string) (string, error)
	// Unseal opens what was sealed for the server, such as the addresses of targets.
	Unseal func(sealed []byte, v any) error
	// Guard decides which addresses notifications may go to, and ForgeGuard which forges may be at.
	Guard, ForgeGuard netguard.Guard
	// Forges tells by a repository's host what forge it is, where neither a hook nor the host does.
	Forges map[string]string
	// RunURL returns where people can look at a run; nil means nowhere.
	RunURL func(id string) string
	Log    *slog.Logger
	// Backoff returns how long to wait after the nth attempt; nil means from 5 s to an hour, with jitter.
	Backoff func(n int) time.Duration
	// GiveUp is how long attempts are made; zero means a day.
	GiveUp time.Duration

	once  sync.Once
	http  *http.Client
	forge *http.Client
	read  chan struct{} // closed when the targets have been read

	mu      sync.Mutex
	targets map[string]event.Target
	hooks   map[string]event.Hook         // those that tell what forge a repository is at
	queues  map[string]context.CancelFunc // by ID of the target
}

// Bounds.
const (
	parallel    = 4  // sent at once to one target
	pending     = 64 // delivered and not settled, per target
	sendTimeout = 10 * time.Second
	ackWait     = 5 * time.Minute // well above pending/parallel*sendTimeout
)

func (n *Notifier) init() {
	n.once.Do(func() {
		n.http, n.forge = n.Guard.Client(sendTimeout), n.ForgeGuard.Client(sendTimeout)
		n.read, n.targets, n.queues = make(chan struct{}), map[string]event.Target{}, map[string]context.CancelFunc{}
		n.hooks = map[string]event.Hook{}
		if n.Backoff == nil {
			n.Backoff = backoff
		}
		if n.GiveUp == 0 {
			n.GiveUp = 24 * time.Hour
		}
	})
}

// Run notifies until ctx is done, and returns nil then.
func (n *Notifier) Run(ctx context.Context) error {
	n.init()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	defer all.Wait()
	start := func(id string) { n.start(ctx, &all, id) }
	all.Go(func() { n.sendStatuses(ctx) })
	all.Go(func() {
		follow(ctx, n.Log, &n.Store.Hooks, func(e *store.Entry[event.Hook]) { n.hook(e) })
	})
	all.Go(func() {
		follow(ctx, n.Log, &n.Store.Targets, func(e *store.Entry[event.Target]) { n.target(ctx, e, start) })
	})
	select {
	case <-n.read:
	case <-ctx.Done():
		return nil
	}
	err := n.Bus.Consume(ctx, bus.Consumer{Stream: bus.StreamEvents, Name: "notify", Filters: event.NotifiedFilters},
		func(m bus.Message) { m.Settle(n.distribute(ctx, m)) })
	cancel(err)
	return err
}

// follow hands every state of a bucket's records to keep, as Bucket.Watch does, until ctx is done.
func follow[T any](ctx context.Context, log *slog.Logger, from *store.Bucket[T], keep func(*store.Entry[T])) {
	for ctx.Err() == nil {
		err := from.Watch(ctx, ">", func(e *store.Entry[T]) bool { keep(e); return true })
		if err != nil {
			log.Warn("records cannot be watched, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// target keeps a target as it is stored.
func (n *Notifier) target(ctx context.Context, e *store.Entry[event.Target], start func(id string)) {
	switch {
	case e == nil && !closed(n.read):
		close(n.read)
	case e == nil:
	case e.Gone:
		n.remove(ctx, e.Key)
	default:
		n.mu.Lock()
		n.targets[e.Key] = e.Value
		n.mu.Unlock()
		start(e.Key)
	}
}

// hook keeps what a hook tells about where a repository is.
func (n *Notifier) hook(e *store.Entry[event.Hook]) {
	if e == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if delete(n.hooks, e.Key); !e.Gone && e.Value.URL != "" && forge.Known(e.Value.Provider) {
		n.hooks[e.Key] = e.Value
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// start starts to empty the queue of a target, unless that is under way.
func (n *Notifier) start(ctx context.Context, all *sync.WaitGroup, id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.queues[id]; ok || ctx.Err() != nil {
		return
	}
	queue, stop := context.WithCancel(ctx)
	n.queues[id] = stop
	all.Go(func() {
		defer stop()
		n.empty(queue, id)
	})
}

// remove forgets a target and drops what waits for it.
func (n *Notifier) remove(ctx context.Context, id string) {
	n.mu.Lock()
	stop := n.queues[id]
	delete(n.queues, id)
	delete(n.targets, id)
	n.mu.Unlock()
	if stop != nil {
		stop()
	}
	if err := n.Bus.Drop(ctx, queueOf(id)); err != nil && ctx.Err() == nil {
		n.Log.Warn("queue of a removed target stays", "target", id, "err", err)
	}
	if err := n.Bus.Purge(ctx, bus.StreamDelivered, event.DeliveredSubject(id)); err != nil && ctx.Err() == nil {
		n.Log.Warn("what was sent to a removed target stays", "target", id, "err", err)
	}
}

func queueOf(id string) bus.Consumer {
	return bus.Consumer{Stream: bus.StreamNotify, Name: "notify-" + id, Filter: event.NotifySubject(id), AckWait: ackWait, Pending: pending}
}

// empty sends what is in the queue of a target until ctx is done, some at a time.
func (n *Notifier) empty(ctx context.Context, id string) {
	slots := make(chan struct{}, parallel)
	var sending sync.WaitGroup
	defer sending.Wait()
	for ctx.Err() == nil {
		err := n.Bus.Consume(ctx, queueOf(id), func(m bus.Message) {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				m.Later(0)
				return
			}
			sending.Go(func() {
				defer func() { <-slots }()
				n.handle(ctx, m)
			})
		})
		if err != nil {
			n.Log.Warn("queue of notifications cannot be read, trying again", "target", id, "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// distribute puts an event into the queues of those who are to learn of it.
func (n *Notifier) distribute(ctx context.Context, m bus.Message) error {
	var e event.Event
	if err := m.Decode(&e); err != nil {
		return err
	}
	if !slices.Contains(event.NotifiedTypes, e.Type) {
		return nil
	}
	seq, err := m.Sequence()
	if err != nil {
		return err
	}
	changed, err := withoutSecrets(&e)
	if err != nil {
		return fmt.Errorf("%w: %w", bus.ErrPoison, err)
	}
	n.mu.Lock()
	var wanted []event.Target
	for _, t := range n.targets {
		if !t.Disabled && slices.Contains(t.Events, e.Type) {
			wanted = append(wanted, t)
		}
	}
	n.mu.Unlock()
	for _, t := range wanted {
		if concerns, err := n.concerns(ctx, t, e, changed); err != nil {
			return err
		} else if !concerns {
			continue
		}
		if err := n.queue(ctx, event.NotifySubject(t.ID), event.Notification{Target: t.ID, Seq: seq}, e.ID); err != nil {
			return err
		}
	}
	if changed != nil {
		return n.queueStatus(ctx, changed.Run, e)
	}
	return nil
}

// withoutSecrets takes the sealed secrets out of the event of a run, which it returns decoded.
func withoutSecrets(e *event.Event) (*event.RunChanged, error) {
	if !strings.HasPrefix(e.Type, "run.") {
		return nil, nil
	}
	var changed event.RunChanged
	if err := json.Unmarshal(e.Data, &changed); err != nil {
		return nil, fmt.Errorf("event %s: %w", e.ID, err)
	}
	if len(changed.Run.Spec.Secrets) == 0 {
		return &changed, nil
	}
	changed.Run.Spec.Secrets = nil
	data, err := json.Marshal(changed)
	e.Data = data
	return &changed, err
}

// concerns reports whether a target that wants events of this type wants this one.
func (n *Notifier) concerns(ctx context.Context, t event.Target, e event.Event, changed *event.RunChanged) (bool, error) {
	if t.Webhook != nil {
		var image event.Image
		if err := json.Unmarshal(e.Data, &image); err != nil {
			return false, fmt.Errorf("%w: event %s: %w", bus.ErrPoison, e.ID, err)
		}
		_, wanted := actionOf(t.Webhook, e.Type, image)
		return wanted, nil
	}
	if t.Task == "" {
		return true, nil
	}
	if changed != nil {
		return strings.EqualFold(changed.Run.Task, t.Task), nil
	}
	var image event.Image
	if err := json.Unmarshal(e.Data, &image); err != nil {
		return false, fmt.Errorf("%w: event %s: %w", bus.ErrPoison, e.ID, err)
	}
	if image.Run == "" {
		return false, nil
	}
	r, _, err := n.Store.Runs.Get(ctx, image.Run)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return strings.EqualFold(r.Task, t.Task), err
}

// queue puts a notification into a queue; one that is full drops it.
func (n *Notifier) queue(ctx context.Context, subject string, w event.Notification, id string) error {
	w.Since = time.Now().UTC()
	_, err := n.Bus.Publish(ctx, subject, event.Hash(subject+"|"+id), w)
	if errors.Is(err, bus.ErrFull) {
		n.Log.Error("notification dropped, too many wait for the target", "target", w.Target, "host", w.Host, "event", id, "err", err)
		return nil
	}
	return err
}
