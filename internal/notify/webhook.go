package notify

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"kiln/internal/event"
)

const (
	keptAnswer = 1 << 10 // bytes of what a target answers
	helmConfig = "application/vnd.cncf.helm.config.v1+json"
)

// actionOf returns what a webhook calls an event of an image, and false if it is not told of it. A tag that is
// taken off deletes nothing.
func actionOf(w *event.Webhook, typ string, image event.Image) (action string, wanted bool) {
	action, chart := event.ActionPush, event.ActionChartPush
	if typ == event.TypeImageDeleted {
		action, chart = event.ActionDelete, event.ActionChartDelete
	}
	if action == event.ActionDelete && image.Tag != "" || !inScope(w.Scope, image) {
		return "", false
	}
	if image.ArtifactType == helmConfig && slices.Contains(w.Actions, chart) {
		return chart, true
	}
	return action, slices.Contains(w.Actions, action)
}

// inScope reports whether a scope is about an image. A scope without a tag is about the tag latest. What has no
// tag, such as a manifest that is deleted, is in the scope of all tags.
func inScope(scope string, image event.Image) bool {
	if scope == "" {
		return true
	}
	repository, tag, ok := strings.Cut(scope, ":")
	if !ok {
		tag = "latest"
	}
	return fits(repository, image.Repository) && fits(tag, image.Tag)
}

func fits(pattern, name string) bool {
	if prefix, open := strings.CutSuffix(pattern, "*"); open {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

// A payload is what webhooks are sent, as ACR's are.
type payload struct {
	ID        string          `json:"id"`
	Timestamp time.Time       `json:"timestamp"`
	Action    string          `json:"action"`
	Target    *payloadTarget  `json:"target,omitempty"`
	Request   *payloadRequest `json:"request,omitempty"`
}

type payloadTarget struct {
	MediaType  string `json:"mediaType,omitempty"`
	Size       int64  `json:"size,omitempty"`
	Digest     string `json:"digest"`
	Length     int64  `json:"length,omitempty"`
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
	Name       string `json:"name,omitempty"`    // of a chart
	Version    string `json:"version,omitempty"` // of a chart
}

type payloadRequest struct {
	ID        string `json:"id"`
	Host      string `json:"host"`
	Method    string `json:"method"`
	UserAgent string `json:"useragent"`
}

// payloadOf tells of an event in the words of a webhook.
func payloadOf(w *event.Webhook, e event.Event) (p payload, image event.Image, err error) {
	p = payload{ID: uuid(e.ID), Timestamp: e.Time, Action: event.ActionPing}
	if e.Type == event.TypeTest {
		return p, image, nil
	}
	if err := json.Unmarshal(e.Data, &image); err != nil {
		return p, image, fmt.Errorf("%w: event %s: %w", errFinal, e.ID, err)
	}
	// What a webhook wants may have changed since the event was queued for it: then it is called what it is.
	p.Action, _ = actionOf(w, e.Type, image)
	t := &payloadTarget{MediaType: image.MediaType, Digest: image.Digest, Repository: image.Repository}
	p.Request = &payloadRequest{ID: uuid("request|" + e.ID), Host: image.Registry, Method: http.MethodPut}
	if image.Run != "" {
		p.Request.UserAgent = "kiln run " + image.Run
	}
	p.Target = t
	if e.Type == event.TypeImageDeleted {
		p.Action = cmp.Or(p.Action, event.ActionDelete)
		p.Request.Method = http.MethodDelete
		return p, image, nil
	}
	p.Action = cmp.Or(p.Action, event.ActionPush)
	t.Size, t.Length, t.Tag = image.Size, image.Size, image.Tag
	if p.Action == event.ActionChartPush {
		t.MediaType, t.Name, t.Version = helmConfig, path.Base(image.Repository), strings.ReplaceAll(image.Tag, "_", "+")
	}
	return p, image, nil
}

// uuid is an ID in the form that receivers of ACR's webhooks expect.
func uuid(id string) string {
	h := event.Hash(id)
	return fmt.Sprintf("%s-%s-5%s-a%s-%s", h[:8], h[8:12], h[13:16], h[17:20], h[20:32])
}

// postAction tells a webhook of an event, and keeps what came of it.
func (n *Notifier) postAction(ctx context.Context, t event.Target, e event.Event, attempt int) error {
	p, image, err := payloadOf(t.Webhook, e)
	if err != nil {
		return err
	}
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	header := http.Header{}
	if len(t.Webhook.Headers) > 0 {
		var more map[string]string
		if err := n.Unseal(t.Webhook.Headers, &more); err != nil {
			return fmt.Errorf("%w: the headers of the webhook cannot be opened; was the server's identity.key replaced? Set them again", errFinal)
		}
		for k, v := range more {
			header.Set(k, v)
		}
	}
	header.Set("Content-Type", "application/json; charset=utf-8")
	sent := event.Sent{Event: e.ID, Action: p.Action, At: time.Now().UTC(), Attempt: uint64(attempt), Request: body}
	switch {
	case image.Tag != "":
		sent.Image = image.Repository + ":" + image.Tag
	case image.Digest != "":
		sent.Image = image.Repository + "@" + image.Digest
	}
	got, err := n.request(ctx, t, e.ID, header, body)
	sent.Status, sent.Response, sent.Took = got.status, got.text, time.Since(sent.At)
	if err != nil {
		sent.Error = err.Error()
	}
	if _, perr := n.Bus.Publish(context.WithoutCancel(ctx), event.DeliveredSubject(t.ID), "", sent); perr != nil {
		n.Log.Warn("what was sent to a webhook is not kept", "target", t.ID, "event", e.ID, "err", perr)
	}
	return err
}
