package api

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// Bounds of notifications.
const (
	maxTargets = 1000
	maxURL     = 2048
)

func (s *Server) addTarget(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.AddTarget
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	about(r, req.Name)
	t := event.Target{ID: newHookID(), Name: req.Name, URL: req.URL, Events: slices.Compact(slices.Sorted(slices.Values(req.Events))),
		Task: req.Task, Secret: req.Secret, Created: time.Now().UTC()}
	if err := s.storeTarget(r.Context(), &t); err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, publicTarget(t))
	return nil
}

// storeTarget checks a new target and stores it, its address sealed.
func (s *Server) storeTarget(ctx context.Context, t *event.Target) error {
	if err := s.validateTarget(ctx, t); err != nil {
		return err
	}
	if err := s.sealAddress(t); err != nil {
		return err
	}
	_, err := s.Store.Targets.Create(ctx, t.ID, *t)
	return err
}

// sealAddress hides the address of a target.
func (s *Server) sealAddress(t *event.Target) (err error) {
	t.Address, err = secret.Seal(s.Recipient, t.URL)
	t.URL = shownURL(t.URL)
	return err
}

// checkTarget checks what may be changed of a target.
func (s *Server) checkTarget(ctx context.Context, t *event.Target) error {
	u, err := url.Parse(t.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || len(t.URL) > maxURL {
		return invalid("url: want http://HOST/PATH or https://HOST/PATH, at most %d bytes", maxURL)
	}
	if u.User != nil {
		return invalid("url: must not hold a password; notifications are signed with --secret instead")
	}
	if len(t.Events) == 0 {
		return invalid("events: want one or more of %s", strings.Join(event.NotifiedTypes, ", "))
	}
	for _, e := range t.Events {
		if !slices.Contains(event.NotifiedTypes, e) {
			return invalid("event %q: want one of %s", e, strings.Join(event.NotifiedTypes, ", "))
		}
	}
	if t.Secret != "" {
		if _, _, err := s.Store.Secrets.Get(ctx, event.Hash(t.Secret)); err != nil {
			return err
		}
	}
	return nil
}

// validateTarget checks a new target, and names it if it has no name.
func (s *Server) validateTarget(ctx context.Context, t *event.Target) error {
	if err := s.checkTarget(ctx, t); err != nil {
		return err
	}
	all, err := s.targets(ctx)
	if err != nil {
		return err
	}
	if len(all) >= maxTargets {
		return conflict("there are %d targets already, and no more can be", len(all))
	}
	if u, err := url.Parse(t.URL); err == nil && t.Name == "" {
		t.Name = u.Hostname() + "-" + t.ID[:6]
	}
	if !hookName.MatchString(t.Name) {
		return invalid("name %q: want at most 63 letters, digits, dots, dashes and underscores", t.Name)
	}
	if slices.ContainsFunc(all, func(o event.Target) bool { return strings.EqualFold(o.Name, t.Name) }) {
		return conflict("there is a target %q already", t.Name)
	}
	return nil
}

// targets returns all targets, by name.
func (s *Server) targets(ctx context.Context) ([]event.Target, error) {
	var all []event.Target
	err := s.Store.Targets.List(ctx, func(e store.Entry[event.Target]) bool {
		all = append(all, e.Value)
		return true
	})
	slices.SortFunc(all, func(a, b event.Target) int { return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID) })
	return all, err
}

// plainTargets returns those of all that are no webhooks.
func (s *Server) plainTargets(ctx context.Context) ([]event.Target, error) {
	all, err := s.targets(ctx)
	return slices.DeleteFunc(all, func(t event.Target) bool { return t.Webhook != nil }), err
}

// targetNamed returns the target with an ID or name, false if there is none.
func targetNamed(all []event.Target, wanted string) (event.Target, bool) {
	i := slices.IndexFunc(all, func(t event.Target) bool { return t.ID == wanted || strings.EqualFold(t.Name, wanted) })
	if i < 0 {
		return event.Target{}, false
	}
	return all[i], true
}

// findTarget returns the target that the path names by its ID or name.
func (s *Server) findTarget(r *http.Request) (event.Target, error) {
	wanted := r.PathValue("target")
	all, err := s.plainTargets(r.Context())
	t, found := targetNamed(all, wanted)
	if err == nil && !found {
		err = &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: "no target " + strconv.Quote(wanted), Remedy: "list the targets with `kiln notify list`"}
	}
	return t, err
}

func (s *Server) listTargets(w http.ResponseWriter, r *http.Request) error {
	all, err := s.plainTargets(r.Context())
	if err != nil {
		return err
	}
	failed := map[string]int{}
	err = s.Store.Undelivered.List(r.Context(), func(e store.Entry[event.Undelivered]) bool {
		failed[e.Value.Notification.Target]++
		return true
	})
	if err != nil {
		return err
	}
	list := apiclient.Targets{Targets: make([]apiclient.Target, len(all))}
	for i, t := range all {
		list.Targets[i] = publicTarget(t)
		list.Targets[i].Failed = failed[t.ID]
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (s *Server) showTarget(w http.ResponseWriter, r *http.Request) error {
	t, err := s.findTarget(r)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, publicTarget(t))
	return nil
}

func (s *Server) removeTarget(w http.ResponseWriter, r *http.Request) error {
	t, err := s.findTarget(r)
	if err != nil {
		return err
	}
	if err := s.Store.Targets.Delete(r.Context(), t.ID); err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, publicTarget(t))
	return nil
}

func (s *Server) testTarget(w http.ResponseWriter, r *http.Request) error {
	t, err := s.findTarget(r)
	if err != nil {
		return err
	}
	if err := s.TestTarget(r.Context(), t); err != nil {
		return &apiclient.Error{Status: http.StatusBadGateway, Code: apiclient.CodeTarget, Message: "target " + t.Name + ": " + err.Error()}
	}
	writeJSON(w, http.StatusOK, publicTarget(t))
	return nil
}

func (s *Server) listFailed(w http.ResponseWriter, r *http.Request) error {
	all, err := s.targets(r.Context())
	if err != nil {
		return err
	}
	names := map[string]string{}
	for _, t := range all {
		names[t.ID] = t.Name
	}
	list := apiclient.FailedNotifications{Failed: []apiclient.FailedNotification{}}
	err = s.Store.Undelivered.List(r.Context(), func(e store.Entry[event.Undelivered]) bool {
		u := e.Value
		f := apiclient.FailedNotification{ID: e.Key, Target: names[u.Notification.Target], Attempts: u.Attempts, Error: u.Error, At: u.At}
		if f.Target == "" {
			f.Target = u.Notification.Target
		}
		if ev := u.Notification.Event; ev != nil {
			f.Type, f.Subject, f.Event = ev.Type, ev.Subject, ev.ID
		}
		list.Failed = append(list.Failed, f)
		return true
	})
	if err != nil {
		return err
	}
	slices.SortFunc(list.Failed, func(a, b apiclient.FailedNotification) int { return a.At.Compare(b.At) })
	writeJSON(w, http.StatusOK, list)
	return nil
}

// retryFailed puts notifications back into the queues of their targets, then forgets that they failed: all that
// are named, or none, or all whose targets take any.
func (s *Server) retryFailed(w http.ResponseWriter, r *http.Request) error {
	var req apiclient.RetryFailed
	if err := decodeBody(r, &req); err != nil {
		return err
	}
	all, err := s.targets(r.Context())
	if err != nil {
		return err
	}
	wanted := map[string]bool{} // whether it was found
	for _, id := range req.IDs {
		wanted[id] = false
	}
	var failed []store.Entry[event.Undelivered]
	var stuck error
	err = s.Store.Undelivered.List(r.Context(), func(e store.Entry[event.Undelivered]) bool {
		_, named := wanted[e.Key]
		if !named && len(wanted) > 0 {
			return true
		}
		wrong := wrongTarget(e, all)
		switch {
		case wrong == nil:
			failed = append(failed, e)
		case named:
			stuck = wrong
		}
		if named {
			wanted[e.Key] = true
		}
		return true
	})
	if err == nil {
		err = stuck
	}
	for _, id := range req.IDs {
		if err == nil && !wanted[id] {
			err = &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
				Message: "no notification " + strconv.Quote(id) + " was given up; none is sent again", Remedy: "list them with `kiln notify failed`"}
		}
	}
	if err != nil {
		return err
	}
	for _, e := range failed {
		n := e.Value.Notification
		n.Since = time.Now().UTC()
		if _, err := s.Bus.Publish(r.Context(), event.NotifySubject(n.Target), e.Key+"."+strconv.FormatUint(e.Revision, 10), n); err != nil {
			return err
		}
		if err := s.Store.Undelivered.Delete(r.Context(), e.Key); err != nil {
			return err
		}
	}
	writeJSON(w, http.StatusOK, apiclient.Retried{Retried: len(failed)})
	return nil
}

// wrongTarget says why a notification that was given up cannot be sent again, if that is so.
func wrongTarget(e store.Entry[event.Undelivered], all []event.Target) error {
	i := slices.IndexFunc(all, func(t event.Target) bool { return t.ID == e.Value.Notification.Target })
	switch {
	case i < 0:
		return conflict("notification %q: its target has been removed", e.Key)
	case all[i].Disabled:
		return conflict("notification %q: target %s is disabled: %s", e.Key, all[i].Name, all[i].Reason)
	}
	return nil
}

// publicTarget is a target as it may be shown.
func publicTarget(t event.Target) apiclient.Target {
	return apiclient.Target{ID: t.ID, Name: t.Name, URL: shownURL(t.URL), Events: t.Events, Task: t.Task, Secret: t.Secret,
		Disabled: t.Disabled, Reason: t.Reason, Created: t.Created}
}

// shownURL is scheme and host of an address: path and query of many are as good as a password.
func shownURL(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
}
