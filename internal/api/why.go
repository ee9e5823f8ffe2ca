package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/triggers/decide"
)

// maxUpstream is how many runs back an explanation goes: a base built on a base built on a base.
const maxUpstream = 10

func (s *Server) why(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	why, err := s.explain(r, found, map[string]bool{})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, why)
	return nil
}

// whyImage explains the run that published an image.
func (s *Server) whyImage(w http.ResponseWriter, r *http.Request) error {
	ref := r.URL.Query().Get("image")
	if ref == "" {
		return invalid("image is missing: want ?image=REPOSITORY:TAG or REPOSITORY@DIGEST")
	}
	id, err := s.Publisher(r.Context(), ref)
	if err != nil {
		return err
	}
	found, _, err := s.Store.Runs.Get(r.Context(), id)
	if err == nil && !seesRun(principal(r), found) {
		return s.noRun(id)
	}
	if errors.Is(err, store.ErrNotFound) {
		return &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: fmt.Sprintf("%s was published by run %s, whose record is not kept any more", ref, id)}
	}
	if err != nil {
		return err
	}
	why, err := s.explain(r, found, map[string]bool{})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, why)
	return nil
}

// explain follows a run back to its decision, event and the runs that published what had moved. What is not
// stored any more, or not for who asks to see, is left out.
func (s *Server) explain(req *http.Request, r run.Run, seen map[string]bool) (apiclient.Why, error) {
	ctx := req.Context()
	why := apiclient.Why{Run: public(r)}
	seen[r.ID] = true
	d, err := s.decisionOf(ctx, r)
	if err != nil {
		return why, err
	}
	if d != nil {
		why.Decision = &d.Made
	}
	if r.Cause.Seq == 0 {
		return why, nil
	}
	rec, err := s.eventAt(ctx, r.Cause.Seq)
	if err != nil || rec == nil {
		return why, err
	}
	why.Event = rec
	var image event.Image
	if rec.Event.Type != event.TypeImagePushed || json.Unmarshal(rec.Event.Data, &image) != nil || image.Run == "" ||
		seen[image.Run] || len(seen) >= maxUpstream {
		return why, nil
	}
	base, _, err := s.Store.Runs.Get(ctx, image.Run)
	if errors.Is(err, store.ErrNotFound) || err == nil && !seesRun(principal(req), base) {
		return why, nil
	}
	if err != nil {
		return why, err
	}
	up, err := s.explain(req, base, seen)
	why.Upstream = append(why.Upstream, up)
	return why, err
}

// decisionOf returns the decision that made a run due, nil if it is not stored any more.
func (s *Server) decisionOf(ctx context.Context, r run.Run) (*event.Decision, error) {
	subject := event.DecisionSubject(event.QuickTask, r.Cause.Request)
	if r.TaskUID != "" {
		subject = event.DecisionSubject(r.TaskUID, r.Cause.Track)
	}
	var found *event.Decision
	err := s.decisions(ctx, subject, func(d event.Decision) bool {
		if d.Made.Run == r.ID && d.Run != nil {
			found = &d
		}
		return found == nil
	})
	return found, err
}

// decisions hands over the stored decisions of a subject filter, oldest first, until handle returns false.
func (s *Server) decisions(ctx context.Context, filter string, handle func(event.Decision) bool) error {
	var failed error
	err := s.Bus.Tail(ctx, bus.StreamDecisions, filter, 0, false, func(_ uint64, data []byte) bool {
		var d event.Decision
		if failed = json.Unmarshal(data, &d); failed != nil {
			return false
		}
		return handle(d)
	})
	return errors.Join(err, failed)
}

// maxDecisions bounds a list of decisions; the newest are kept.
const maxDecisions = 1000

func (s *Server) listDecisions(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.task(r)
	if err != nil {
		return err
	}
	var since time.Time
	if v := r.URL.Query().Get("since"); v != "" {
		if since, err = time.Parse(time.RFC3339, v); err != nil {
			return invalid("since %q: want a time such as 2026-01-02T15:04:05Z", v)
		}
	}
	list := []decide.Decision{}
	err = s.decisions(r.Context(), event.DecisionFilter(t.UID), func(d event.Decision) bool {
		if d.Made.Kind != "" && !d.Made.Time.Before(since) {
			list = append(list, d.Made)
		}
		return true
	})
	if err != nil {
		return err
	}
	slices.SortStableFunc(list, func(a, b decide.Decision) int { return a.Time.Compare(b.Time) })
	writeJSON(w, http.StatusOK, apiclient.Decisions{Decisions: list[max(0, len(list)-maxDecisions):]})
	return nil
}

// eventAt returns a stored event, nil if there is none any more.
func (s *Server) eventAt(ctx context.Context, seq uint64) (*apiclient.EventRecord, error) {
	var ev event.Event
	err := s.Bus.At(ctx, bus.StreamEvents, seq, &ev)
	if errors.Is(err, bus.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &apiclient.EventRecord{Seq: seq, Event: withoutBody(ev)}, nil
}

// withoutBody leaves out of an event what only a replay needs, and what is sealed.
func withoutBody(ev event.Event) event.Event {
	var data map[string]json.RawMessage
	if json.Unmarshal(ev.Data, &data) != nil {
		return ev
	}
	drop(data, "delivery", "body")
	drop(data, "spec", "secrets")
	if cut, err := json.Marshal(data); err == nil {
		ev.Data = cut
	}
	return ev
}

// drop removes a property of an object within data.
func drop(data map[string]json.RawMessage, object, property string) {
	var inner map[string]json.RawMessage
	if data[object] == nil || json.Unmarshal(data[object], &inner) != nil {
		return
	}
	delete(inner, property)
	if cut, err := json.Marshal(inner); err == nil {
		data[object] = cut
	}
}

func (s *Server) approve(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	switch {
	case !found.NeedsApproval:
		return conflict("run %s needs no approval", found.ID)
	case found.ApprovedBy != "":
		return conflict("run %s was approved by %s already", found.ID, found.ApprovedBy)
	case found.State.Final():
		return conflict("run %s has ended already: %s", found.ID, found.State)
	}
	by := principal(r).Name
	if a := cmp.Or(found.Cause.AuthorID, found.Cause.Author); a != "" && !principal(r).Limited() {
		// From now on the author is trusted in this repository, by all its tasks.
		if _, err := s.Store.Trusted.Put(r.Context(), event.TrustKey(found.Cause.Repository, a), by); err != nil {
			return err
		}
	}
	ev, err := event.New(event.ApproveSubject(found.ID), "/api/v1/runs/"+found.ID+"/approve", event.TypeRunApproved, time.Now().UTC(),
		event.RunApproved{Run: found.ID, By: by})
	if err != nil {
		return err
	}
	ev.Subject = found.ID
	if _, err := s.Bus.Create(r.Context(), event.ApproveSubject(found.ID), ev, 0); err != nil && !errors.Is(err, bus.ErrConflict) {
		return err
	}
	writeJSON(w, http.StatusAccepted, public(found))
	return nil
}

func conflict(format string, args ...any) *apiclient.Error {
	return &apiclient.Error{Status: http.StatusConflict, Code: apiclient.CodeConflict, Message: fmt.Sprintf(format, args...)}
}

func (s *Server) reconcile(w http.ResponseWriter, r *http.Request) error {
	found, err := s.Reconcile(r.Context(), r.URL.Query().Get("dryRun") == "1")
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, found)
	return nil
}

func (s *Server) replayEvent(w http.ResponseWriter, r *http.Request) error {
	seq, err := strconv.ParseUint(r.PathValue("seq"), 10, 64)
	if err != nil || seq == 0 {
		return invalid("event %q: want its number, as `kiln events` shows it", r.PathValue("seq"))
	}
	rec, err := s.eventAt(r.Context(), seq)
	if err != nil {
		return err
	}
	if rec == nil {
		return &apiclient.Error{Status: http.StatusNotFound, Code: apiclient.CodeNotFound,
			Message: fmt.Sprintf("there is no event %d, or it is not kept any more", seq), Remedy: "list them with `kiln events`"}
	}
	found, err := s.Replay(r.Context(), seq, r.URL.Query().Get("dryRun") == "1")
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, found)
	return nil
}
