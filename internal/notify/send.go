package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/store"
)

// A refusal is an answer that is not a 2xx.
type refusal struct {
	status int
	again  time.Duration // the target's wish; zero for none
}

func (r *refusal) Error() string {
	return fmt.Sprintf("answered %d %s", r.status, http.StatusText(r.status))
}

// errFinal marks what no repetition can change.
var errFinal = errors.New("not to be repeated")

// handle sends one notification and settles it.
func (n *Notifier) handle(ctx context.Context, m bus.Message) {
	var w event.Notification
	if err := m.Decode(&w); err != nil {
		m.Settle(err)
		return
	}
	attempt, err := m.Attempt()
	if err != nil {
		m.Settle(err)
		return
	}
	if err = n.fetch(ctx, &w); err == nil {
		err = n.send(ctx, w, attempt)
	}
	switch {
	case err == nil:
		m.Settle(nil)
	case ctx.Err() != nil:
		m.Later(0)
	case errors.Is(err, errFinal) || time.Since(w.Since) > n.GiveUp:
		m.Settle(n.giveUp(ctx, w, attempt, err))
	default:
		wait := n.Backoff(attempt)
		var r *refusal
		if errors.As(err, &r) {
			wait = max(wait, r.again)
		}
		n.Log.Warn("notification not delivered, it will be tried again", "target", w.Target, "event", eventOf(w), "tries", attempt, "err", err)
		m.Later(wait)
	}
}

// fetch reads the event of a notification.
func (n *Notifier) fetch(ctx context.Context, w *event.Notification) error {
	if w.Event != nil || w.Seq == 0 {
		return nil
	}
	var e event.Event
	err := n.Bus.At(ctx, bus.StreamEvents, w.Seq, &e)
	if errors.Is(err, bus.ErrNone) {
		return fmt.Errorf("%w: event %d is not kept any more", errFinal, w.Seq)
	}
	if err == nil {
		_, err = withoutSecrets(&e)
	}
	if err == nil {
		err = n.link(&e)
	}
	if err == nil {
		w.Event = &e
	}
	return err
}

// link adds where people can look at the run that an event is about.
func (n *Notifier) link(e *event.Event) error {
	if n.RunURL == nil {
		return nil
	}
	data := map[string]json.RawMessage{}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		return fmt.Errorf("%w: event %s: %w", errFinal, e.ID, err)
	}
	id, changed := "", struct {
		ID string `json:"id"`
	}{}
	if json.Unmarshal(data["run"], &id) != nil && json.Unmarshal(data["run"], &changed) == nil {
		id = changed.ID
	}
	if id == "" {
		return nil
	}
	var err error
	if data["runURL"], err = json.Marshal(n.RunURL(id)); err == nil {
		e.Data, err = json.Marshal(data)
	}
	return err
}

// backoff grows from 5 s to an hour, give or take a fifth.
func backoff(attempt int) time.Duration {
	wait := min(5*time.Second<<min(attempt-1, 10), time.Hour)
	return time.Duration(float64(wait) * (0.8 + 0.4*rand.Float64()))
}

// eventOf is the ID of the event that a notification tells of, for the log.
func eventOf(w event.Notification) string {
	if w.Event == nil {
		return ""
	}
	return w.Event.ID
}

// giveUp keeps a notification that could not be delivered where it can be seen.
func (n *Notifier) giveUp(ctx context.Context, w event.Notification, attempts int, cause error) error {
	n.Log.Error("notification given up", "target", w.Target, "event", eventOf(w), "tries", attempts, "err", cause)
	if w.Event == nil {
		return nil
	}
	_, err := n.Store.Undelivered.Put(ctx, w.Target+"."+event.Hash(w.Event.ID),
		event.Undelivered{Notification: w, Attempts: attempts, Error: cause.Error(), At: time.Now().UTC()})
	if err != nil {
		n.Log.Error("notification that was given up is not kept", "target", w.Target, "event", w.Event.ID, "err", err)
	}
	return nil
}

// send makes one attempt.
func (n *Notifier) send(ctx context.Context, w event.Notification, attempt int) error {
	n.mu.Lock()
	t, ok := n.targets[w.Target]
	n.mu.Unlock()
	switch {
	case w.Event == nil:
		return fmt.Errorf("%w: it is about no event", errFinal)
	case !ok:
		return nil // removed; its queue will be too
	case t.Disabled:
		return fmt.Errorf("%w: the target is disabled: %s", errFinal, t.Reason)
	}
	err := n.post(ctx, t, *w.Event, attempt)
	var r *refusal
	if errors.As(err, &r) && r.status == http.StatusGone {
		return errors.Join(errFinal, err, n.disable(ctx, t.ID, "it answered 410 Gone"))
	}
	return err
}

// Test sends a target an event of its own, once, and returns what came of it.
func (n *Notifier) Test(ctx context.Context, t event.Target) error {
	n.init()
	now := time.Now().UTC()
	e, err := event.New(event.Hash(t.ID+now.String()), "/notifications/"+t.ID, event.TypeTest, now, map[string]string{"target": t.Name})
	if err != nil {
		return err
	}
	return n.post(ctx, t, e, 1)
}

// disable ends the use of a target that wants no more.
func (n *Notifier) disable(ctx context.Context, id, reason string) error {
	for {
		t, revision, err := n.Store.Targets.Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		t.Disabled, t.Reason = true, reason
		if _, err = n.Store.Targets.Update(ctx, id, t, revision); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

// post sends an event to a target. Of a webhook it is kept what was sent and answered.
func (n *Notifier) post(ctx context.Context, t event.Target, e event.Event, attempt int) error {
	if t.Webhook != nil {
		return n.postAction(ctx, t, e, attempt)
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = n.request(ctx, t, e.ID, http.Header{"Content-Type": {"application/cloudevents+json; charset=utf-8"}}, body)
	return err
}

// An answer is the beginning of what a target has answered. The zero value is none.
type answer struct {
	status int
	text   string
}

// request makes a request to a target.
func (n *Notifier) request(ctx context.Context, t event.Target, id string, header http.Header, body []byte) (answer, error) {
	var address string
	if err := n.Unseal(t.Address, &address); err != nil {
		return answer{}, fmt.Errorf("%w: the target's address cannot be opened; was the server's identity.key replaced? Add the target again", errFinal)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("%w: the target's URL cannot be used", errFinal)
	}
	req.Header = header
	req.Header.Set("User-Agent", "kiln")
	if t.Secret != "" {
		secret, err := n.Secret(ctx, t.Secret)
		if err != nil {
			return answer{}, fmt.Errorf("secret %s: %w", t.Secret, err)
		}
		sign(req.Header, secret, id, time.Now(), body)
	}
	resp, err := n.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) { // it repeats the address, which may hold a token
			err = ue.Err
		}
		return answer{}, err
	}
	defer resp.Body.Close()
	begin, _ := io.ReadAll(io.LimitReader(resp.Body, keptAnswer))
	got := answer{resp.StatusCode, strings.ToValidUTF8(string(begin), "?")}
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
	if resp.StatusCode/100 == 2 {
		return got, nil
	}
	r := &refusal{status: resp.StatusCode}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		r.again = time.Duration(min(s, 3600)) * time.Second
	}
	return got, r
}

// sign adds the headers of Standard Webhooks. A secret that begins with whsec_ is the base64 form of the
// key; any other is the key itself.
func sign(h http.Header, secret, id string, at time.Time, body []byte) {
	key := []byte(secret)
	if coded, ok := strings.CutPrefix(secret, "whsec_"); ok {
		if k, err := base64.StdEncoding.DecodeString(coded); err == nil && len(k) > 0 {
			key = k
		}
	}
	stamp := strconv.FormatInt(at.Unix(), 10)
	m := hmac.New(sha256.New, key)
	m.Write([]byte(id + "." + stamp + "."))
	m.Write(body)
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", stamp)
	h.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
}
