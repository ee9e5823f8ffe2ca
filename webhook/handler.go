package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kiln/internal/bus"
)

// Prefix is the path below which hooks are served: Prefix, provider, slash, hook ID.
const Prefix = "/hooks/"

// ErrNoHook is what Handler.Hooks returns when there is no hook with that ID.
var ErrNoHook = errors.New("no such hook")

// A Secret authenticates the deliveries of a hook. It is not shown when it is printed.
type Secret string

func (Secret) String() string { return "***" }

// GoString keeps the secret out of %#v.
func (Secret) GoString() string { return "***" }

// LogValue keeps the secret out of logs.
func (Secret) LogValue() slog.Value { return slog.StringValue("***") }

// A Hook is one address that a forge or registry delivers to.
type Hook struct {
	ID       string
	Provider string // a name of Providers
	Secret   Secret
	Previous Secret // also accepted, while senders are moved to Secret; empty for none
	Enabled  bool   // what an authenticated sender delivers is dropped otherwise
	// Registry is how images name the registry that delivers: host[:port]. It replaces what the
	// registry calls itself, and is needed where that says nothing.
	Registry string
}

// A Handler serves POST /hooks/{provider}/{hook ID}. Its fields are set before it is used and not
// changed after; all but Intake, Used, Log and Now are required.
type Handler struct {
	// Hooks returns the hook with that ID, or an error that wraps ErrNoHook.
	Hooks func(ctx context.Context, id string) (Hook, error)
	// Publish stores an encoded event as the first message of subject. It returns nil when the message
	// is stored, or was already there; an error that wraps bus.ErrFull when there is no room.
	Publish func(ctx context.Context, subject string, encoded []byte) error
	// Intake, if not nil, takes deliveries in while there are many at once.
	Intake *Intake
	// Used, if not nil, is told of each authenticated delivery.
	Used func(id string, at time.Time)
	Log  *slog.Logger     // nil drops what would be logged
	Now  func() time.Time // nil is time.Now

	held   atomic.Int64 // bytes of bodies in hand
	bodies sync.Pool    // *bytes.Buffer
	packs  sync.Pool    // *[packSpace]byte
}

// Publisher returns a Publish that stores events on a bus.
func Publisher(c *bus.Creator) func(ctx context.Context, subject string, encoded []byte) error {
	return func(ctx context.Context, subject string, encoded []byte) error {
		err := c.Create(ctx, subject, encoded)
		if errors.Is(err, bus.ErrConflict) {
			return nil
		}
		return err
	}
}

// How long things may take, and when a sender should come again.
const (
	publishTimeout = 10 * time.Second
	retryFull      = 60 * time.Second
	retrySoon      = 5 * time.Second
)

// ServeHTTP answers one delivery, as the package's doc says.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answerError(w, http.StatusMethodNotAllowed, "deliveries are made by POST")
		return
	}
	buf := h.buffer()
	defer h.release(buf)
	if err := h.read(w, r, buf); err != nil {
		h.refuseBody(w, err)
		return
	}
	name, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, Prefix), "/")
	hook, p, err := h.authenticate(r, name, id, buf.Bytes())
	switch {
	case errors.Is(err, errDenied):
		h.log().Warn("delivery refused", "provider", clip(name, maxName), "hook", clip(id, maxName), "remote", r.RemoteAddr)
		answerError(w, http.StatusNotFound, "no such hook, or its secret does not match")
	case err != nil:
		h.log().Error("hook cannot be looked up", "hook", id, "err", err)
		unavailable(w, retrySoon, "hooks cannot be looked up now")
	case !hook.Enabled:
		answer(w, http.StatusOK, reply{Ignored: "the hook is disabled"})
	default:
		h.accept(w, r, p, hook, buf.Bytes())
	}
}

// accept takes an authenticated delivery in, alone or with others, and answers.
func (h *Handler) accept(w http.ResponseWriter, r *http.Request, p provider, hook Hook, raw []byte) {
	now := h.now()
	if h.Used != nil {
		h.Used(hook.ID, now)
	}
	if h.Intake != nil {
		h.Intake.enter()
		defer h.Intake.leave()
		if h.Intake.flooded() && shareable(r.Header, hook, raw) {
			h.share(w, r, hook, raw, now)
			return
		}
	}
	h.direct(w, r, p, hook, raw, now)
}

// share has an authenticated delivery stored as it came, together with others, and answers.
func (h *Handler) share(w http.ResponseWriter, r *http.Request, hook Hook, raw []byte, now time.Time) {
	if err := h.Intake.take(hook, now, r.Header, raw); err != nil {
		h.refuse(w, hook, err)
		return
	}
	send(w, http.StatusAccepted, accepted)
}

// accepted is the answer to a delivery that is stored and yet to be decoded.
var accepted = []byte("{\"accepted\":true}\n")

// direct decodes an authenticated delivery, has its events stored and answers.
func (h *Handler) direct(w http.ResponseWriter, r *http.Request, p provider, hook Hook, raw []byte, now time.Time) {
	d := delivery{header: r.Header, hook: hook}
	err := d.decode(p, raw)
	switch {
	case errors.Is(err, errNoRegistry):
		h.log().Warn("delivery cannot be mapped", "hook", hook.ID, "provider", hook.Provider, "err", err)
		answerError(w, http.StatusUnprocessableEntity, err.Error())
		return
	case err != nil:
		h.log().Warn("delivery cannot be decoded", "hook", hook.ID, "provider", hook.Provider, "err", err)
		answerError(w, http.StatusBadRequest, err.Error())
		return
	case d.ping:
		answer(w, http.StatusOK, reply{Pong: true})
		return
	case len(d.facts) == 0:
		h.log().Debug("delivery ignored", "hook", hook.ID, "provider", hook.Provider, "reason", d.ignored)
		answer(w, http.StatusOK, reply{Ignored: d.ignored})
		return
	}
	ids, err := h.publish(r.Context(), d, p, len(raw), now)
	if err != nil {
		h.refuse(w, hook, err)
		return
	}
	answer(w, http.StatusAccepted, reply{Events: ids})
}

// refuse answers a delivery that cannot be stored now.
func (h *Handler) refuse(w http.ResponseWriter, hook Hook, err error) {
	if errors.Is(err, bus.ErrFull) {
		h.log().Error("event store is full, the delivery is refused", "hook", hook.ID, "provider", hook.Provider, "err", err)
		unavailable(w, retryFull, "the event store is full")
		return
	}
	h.log().Error("event not stored, the delivery is refused", "hook", hook.ID, "provider", hook.Provider, "err", err)
	unavailable(w, retrySoon, "events cannot be stored now")
}

// publish stores the events of a delivery, which overtakes none that was accepted before, and returns
// their IDs.
func (h *Handler) publish(ctx context.Context, d delivery, p provider, size int, now time.Time) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if h.Intake != nil {
		if err := h.Intake.settled(ctx); err != nil {
			return nil, err
		}
	}
	space, ok := h.packs.Get().(*[packSpace]byte)
	if !ok {
		space = new([packSpace]byte)
	}
	defer h.packs.Put(space)
	ids := make([]string, 0, len(d.facts))
	err := d.events(p, size, now, space[:], func(id, subject string, encoded []byte) error {
		ids = append(ids, id)
		return h.Publish(ctx, subject, encoded)
	})
	return ids, err
}

func (h *Handler) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

func (h *Handler) now() time.Time {
	if h.Now == nil {
		return time.Now()
	}
	return h.Now()
}

// A reply is what an authenticated sender is told. Forges show it to the hook's owner.
type reply struct {
	Events  []string `json:"events,omitempty"`
	Ignored string   `json:"ignored,omitempty"`
	Pong    bool     `json:"pong,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func answer(w http.ResponseWriter, status int, v reply) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // strings and booleans
	send(w, status, b.Bytes())
}

func send(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a sender that is gone has what it needs: it will come again
}

var jsonType = []string{"application/json"}

func answerError(w http.ResponseWriter, status int, text string) {
	answer(w, status, reply{Error: text})
}

func unavailable(w http.ResponseWriter, after time.Duration, text string) {
	w.Header().Set("Retry-After", strconv.Itoa(int(after/time.Second)))
	answerError(w, http.StatusServiceUnavailable, text)
}
