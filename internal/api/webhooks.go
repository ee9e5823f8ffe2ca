package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// Bounds of webhooks.
const (
	maxHeaders = 32
	maxHeader  = 8 << 10 // bytes of all of them
)

// A webhook is a target of notifications that is told of images in words of its own.
func (s *Server) createWebhook(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.SetWebhook
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	about(r, req.Name)
	if req.Name == "" || req.URI == nil || len(req.Actions) == 0 {
		return invalid("a webhook needs a name, a URI and actions")
	}
	t := event.Target{ID: newHookID(), Name: req.Name, Created: time.Now().UTC(), Webhook: &event.Webhook{}}
	if err := s.setWebhook(&t, req); err != nil {
		return err
	}
	if err := s.storeTarget(r.Context(), &t); err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, publicWebhook(t))
	return nil
}

// setWebhook changes what a request says.
func (s *Server) setWebhook(t *event.Target, req apiclient.SetWebhook) error {
	hook := *t.Webhook
	if req.Actions != nil {
		hook.Actions = slices.Compact(slices.Sorted(slices.Values(req.Actions)))
		for _, a := range hook.Actions {
			if !slices.Contains(event.WebhookActions, a) {
				return invalid("action %q: want one of %s", a, strings.Join(event.WebhookActions, ", "))
			}
		}
		t.Events = nil
		for _, a := range hook.Actions {
			typ := event.TypeImagePushed
			if a == event.ActionDelete || a == event.ActionChartDelete {
				typ = event.TypeImageDeleted
			}
			if !slices.Contains(t.Events, typ) {
				t.Events = append(t.Events, typ)
			}
		}
	}
	if req.Scope != nil {
		if hook.Scope = *req.Scope; !webhookScope.MatchString(hook.Scope) {
			return invalid("scope %q: want REPOSITORY:TAG, such as team/app:*, REPOSITORY for its tag latest, or nothing for all", clipped(hook.Scope))
		}
	}
	if req.Headers != nil {
		if err := s.setHeaders(&hook, req.Headers); err != nil {
			return err
		}
	}
	if req.URI != nil {
		t.URL = *req.URI
	}
	if req.Secret != nil {
		t.Secret = *req.Secret
	}
	if req.Enabled != nil {
		if t.Disabled, t.Reason = !*req.Enabled, ""; t.Disabled {
			t.Reason = "it was disabled"
		}
	}
	t.Webhook = &hook
	return nil
}

var (
	webhookScope = regexp.MustCompile(`^$|^[a-z0-9._/-]{0,255}\*?(:[A-Za-z0-9._-]{0,128}\*?)?$`)
	headerName   = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
)

func clipped(text string) string { return text[:min(len(text), 300)] }

// setHeaders seals the headers of requests. Those that say what the request is are not for others to set.
func (s *Server) setHeaders(hook *event.Webhook, headers map[string]string) (err error) {
	hook.Headers, hook.HeaderNames = nil, nil
	size := 0
	for name, value := range headers {
		size += len(name) + len(value)
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !headerName.MatchString(name) || strings.ContainsAny(value, "\r\n\x00"):
			return invalid("header %q: want NAME=VALUE, the name of letters, digits and dashes, the value in one line", clipped(name))
		case slices.Contains([]string{"Host", "Content-Length", "Content-Type", "Transfer-Encoding", "Connection"}, canonical) || strings.HasPrefix(canonical, "Webhook-"):
			return invalid("header %q cannot be set", name)
		}
		hook.HeaderNames = append(hook.HeaderNames, canonical)
	}
	if len(headers) > maxHeaders || size > maxHeader {
		return invalid("at most %d headers of %d bytes together", maxHeaders, maxHeader)
	}
	slices.Sort(hook.HeaderNames)
	if len(headers) > 0 {
		hook.Headers, err = secret.Seal(s.Recipient, headers)
	}
	return err
}

// findWebhook returns the webhook that the path names by its name or ID, and its revision.
func (s *Server) findWebhook(r *http.Request) (event.Target, uint64, error) {
	wanted := r.PathValue("webhook")
	all, err := s.webhooks(r.Context())
	if err != nil {
		return event.Target{}, 0, err
	}
	t, found := targetNamed(all, wanted)
	if !found {
		return t, 0, &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: "no webhook " + strconv.Quote(wanted), Remedy: "list the webhooks with `kiln webhook list`"}
	}
	return s.Store.Targets.Get(r.Context(), t.ID)
}

// webhooks returns all webhooks, by name.
func (s *Server) webhooks(ctx context.Context) ([]event.Target, error) {
	all, err := s.targets(ctx)
	return slices.DeleteFunc(all, func(t event.Target) bool { return t.Webhook == nil }), err
}

func (s *Server) listWebhooks(w http.ResponseWriter, r *http.Request) error {
	all, err := s.webhooks(r.Context())
	if err != nil {
		return err
	}
	list := apiclient.Webhooks{Webhooks: make([]apiclient.Webhook, len(all))}
	for i, t := range all {
		list.Webhooks[i] = publicWebhook(t)
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) showWebhook(w http.ResponseWriter, r *http.Request) error {
	return s.withWebhook(w, r, func(event.Target) error { return nil })
}

// withWebhook does something with the webhook that the path names, and answers with what it was.
func (s *Server) withWebhook(w http.ResponseWriter, r *http.Request, do func(event.Target) error) error {
	t, _, err := s.findWebhook(r)
	if err != nil {
		return err
	}
	if err := do(t); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, publicWebhook(t))
	return nil
}

func (s *Server) updateWebhook(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.SetWebhook
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	t, revision, err := s.findWebhook(r)
	if err != nil {
		return err
	}
	if req.Name != "" && req.Name != t.Name {
		return invalid("the name of a webhook stays")
	}
	if err := s.setWebhook(&t, req); err != nil {
		return err
	}
	if err := s.checkTarget(r.Context(), &t); err != nil {
		return err
	}
	if req.URI != nil {
		if err := s.sealAddress(&t); err != nil {
			return err
		}
	}
	if _, err := s.Store.Targets.Update(r.Context(), t.ID, t, revision); errors.Is(err, store.ErrConflict) {
		return conflict("webhook %s was changed by somebody else just now; try again", t.Name)
	} else if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, publicWebhook(t))
	return nil
}

func (s *Server) deleteWebhook(w http.ResponseWriter, r *http.Request) error {
	return s.withWebhook(w, r, func(t event.Target) error { return s.Store.Targets.Delete(r.Context(), t.ID) })
}

func (s *Server) pingWebhook(w http.ResponseWriter, r *http.Request) error {
	return s.withWebhook(w, r, func(t event.Target) error {
		if err := s.TestTarget(r.Context(), t); err != nil {
			return &apiclient.Error{Status: http.StatusBadGateway, Code: apiclient.CodeTarget, Message: "webhook " + t.Name + ": " + err.Error()}
		}
		return nil
	})
}

func (s *Server) webhookEvents(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.findWebhook(r)
	if err != nil {
		return err
	}
	list := apiclient.WebhookEvents{Events: []apiclient.WebhookEvent{}}
	err = s.Bus.Tail(r.Context(), bus.StreamDelivered, event.DeliveredSubject(t.ID), 0, false, func(_ uint64, data []byte) bool {
		var sent event.Sent
		if json.Unmarshal(data, &sent) == nil {
			list.Events = append(list.Events, apiclient.WebhookEvent(sent))
		}
		return len(list.Events) < 2*apiclient.MaxWebhookEvents // more come only while it is read
	})
	if err != nil {
		return err
	}
	slices.Reverse(list.Events)
	list.Events = list.Events[:min(len(list.Events), apiclient.MaxWebhookEvents)]
	writeJSON(w, http.StatusOK, list)
	return nil
}

// publicWebhook is a webhook as it may be shown.
func publicWebhook(t event.Target) apiclient.Webhook {
	return apiclient.Webhook{ID: t.ID, Name: t.Name, URI: shownURL(t.URL), Actions: t.Webhook.Actions, Scope: t.Webhook.Scope,
		Headers: t.Webhook.HeaderNames, Secret: t.Secret, Enabled: !t.Disabled, Reason: t.Reason, Created: t.Created}
}
