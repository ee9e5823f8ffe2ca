// Package watch knows which digests images have now, and tells when one moves.
//
// Images of the co-located registry are resolved in process; whoever pushes there is heard of without
// being watched. Images of other registries are asked for with HEAD: when somebody wants to know, and, if
// they are tracked, from time to time. A tracked image that is found to have another digest than the one
// that was seen last, by whatever way, is told of by an event of type registry.pushed, once: the event is
// created under an identity made of what was seen before and now, and only then the new digest is stored.
// That an image has the digest that it had, or is seen for the first time, is no event.
//
// A registry is asked by few requests at a time, one per image, and not at all before the time that it
// has asked to wait until.
package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/graph"
	"kiln/internal/store"
)

// ErrNotFound is returned for an image that its registry does not have.
var ErrNotFound = errors.New("no such image")

// A BusyError says that a registry wants no requests for a while.
type BusyError struct {
	Host  string
	Until time.Time
}

// Error names the registry and when it can be asked again.
func (e *BusyError) Error() string {
	return fmt.Sprintf("registry %s has asked to wait until %s", e.Host, e.Until.UTC().Format(time.RFC3339))
}

// DefaultEvery is how often a tracked image is polled unless the Watcher says otherwise.
const DefaultEvery = 10 * time.Minute

// shared is how long an answer is given to others who do not insist on a fresh one.
const shared = 5 * time.Second

// Local is the co-located registry.
type Local interface {
	// Digest returns the digest of a tag or digest in a repository.
	Digest(ctx context.Context, repository, reference string) (string, error)
}

// A Watcher resolves and polls images. Its fields are set before it is used and not changed after. It is
// safe for concurrent use.
type Watcher struct {
	Store    *store.Store
	Bus      *bus.Bus
	Local    Local
	Registry string        // canonical host of the co-located registry
	Every    time.Duration // between two polls of an image; 0 means DefaultEvery
	// Login returns how to sign in to a registry, as canonical names write its host: empty for not at
	// all, a password without a user for an identity token. Nil means not at all.
	Login func(ctx context.Context, host string) (user, password string, err error)
	// Allow refuses hosts (host:port, as connected to) that requests must not go to, those for tokens
	// and redirects included. Nil means that all are allowed.
	Allow func(host string) error
	// Dial connects to registries and to what they refer to, in place of a plain dialer and of the proxies
	// that the environment names.
	Dial      func(ctx context.Context, network, address string) (net.Conn, error)
	Transport http.RoundTripper // nil means one of the Watcher's own, which uses Dial
	Log       *slog.Logger

	once   sync.Once
	client *guard
	wake   chan struct{} // something has changed that Run waits for

	mu        sync.Mutex
	images    map[graph.Name]*image
	hosts     map[string]*host
	maxImages int // that are remembered before idle ones are looked for
	maxHosts  int
}

func (w *Watcher) init() {
	w.once.Do(func() {
		w.wake = make(chan struct{}, 1)
		w.images, w.hosts = map[graph.Name]*image{}, map[string]*host{}
		w.client = &guard{inner: w.Transport, allow: w.Allow}
		if w.Transport == nil {
			w.client = &guard{inner: newTransport(w.Dial), allow: w.Allow}
		}
		if w.Every <= 0 {
			w.Every = DefaultEvery
		}
	})
}

// Resolve returns the digest that an image has now. For a foreign image the answer may be some seconds
// old, unless it is to be fresh: then the registry is asked after the call. Of several calls for one image
// at a time one asks, and all have the answer. The error wraps ErrNotFound if there is no such image
// in another registry, and is a *BusyError if the registry cannot be asked now; that of the co-located
// registry is as Local returns it.
func (w *Watcher) Resolve(ctx context.Context, name graph.Name, fresh bool) (digest string, err error) {
	w.init()
	if d := name.Digest(); d != "" {
		return d, nil
	}
	p := split(name)
	if p.host == w.Registry {
		if w.Local == nil {
			return "", fmt.Errorf("%s: there is no registry here", name)
		}
		digest, err := w.Local.Digest(ctx, p.repository, p.tag)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		return digest, nil
	}
	since := time.Now()
	if !fresh {
		since = since.Add(-shared)
	}
	a, err := w.ask(ctx, name, since)
	if err = cmp.Or(err, a.err); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return a.digest, nil
}

// Track sets which foreign images are polled: all that any task follows. Images of the co-located
// registry, those that are pinned and the tags under which registries keep signatures and other referrers
// are left out.
func (w *Watcher) Track(names []graph.Name) {
	w.init()
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted := map[graph.Name]bool{}
	for _, n := range names {
		wanted[n] = w.pollable(n)
	}
	for n, im := range w.images {
		im.tracked = im.tracked && wanted[n]
	}
	for n, ok := range wanted {
		if !ok {
			continue
		}
		if im := w.imageOf(n); !im.tracked {
			im.tracked = true
			if !im.stored {
				im.next = time.Time{} // so that it is known from when on it has not moved
			}
		}
	}
	w.poke()
}

// fallbackTag matches the tags under which registries keep what refers to an image.
var fallbackTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\..+)?$`)

func (w *Watcher) pollable(n graph.Name) bool {
	p := split(n)
	return p.host != w.Registry && n.Digest() == "" && p.tag != "" && !fallbackTag.MatchString(p.tag)
}

// poke has Run look again.
func (w *Watcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// parts are those of a canonical name.
type parts struct{ host, repository, tag string }

func split(n graph.Name) parts {
	full := n.Repository()
	host, repository, _ := strings.Cut(full, "/")
	tag, _, _ := strings.Cut(string(n)[len(full):], "@")
	return parts{host, repository, strings.TrimPrefix(tag, ":")}
}
