package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
)

func TestApprovalIsRecordedOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	const repository = "https://git.test/o/r.git"
	r := s.put(t, run.Run{ID: "r0000000test", State: run.Queued, NeedsApproval: true, Spec: run.Spec{Restricted: true},
		Cause: run.Cause{Kind: run.CausePull, Repository: repository, Author: "github:jane", AuthorID: "github:id:1"}})
	s.put(t, run.Run{ID: "r0000000push", State: run.Queued})
	s.put(t, run.Run{ID: "r0000000done", State: run.Canceled, NeedsApproval: true})
	for id, want := range map[string]string{"r0000000push": "needs no approval", "r0000000done": "has ended already: Canceled"} {
		if e := s.refused(t, http.StatusConflict, "POST", apiclient.ApprovePath(id), ""); e.Code != apiclient.CodeConflict || !strings.Contains(e.Message, want) {
			t.Errorf("approval of %s = %+v", id, e)
		}
	}
	for range 2 { // the second before the first is in the record
		s.ask(t, http.StatusAccepted, nil, "POST", apiclient.ApprovePath(r.ID), "")
	}
	n := 0
	check(t, s.bus.Tail(t.Context(), bus.StreamEvents, event.ApproveSubject(r.ID), 0, false, func(_ uint64, data []byte) bool {
		var ev event.Event
		var got event.RunApproved
		check(t, json.Unmarshal(data, &ev))
		check(t, json.Unmarshal(ev.Data, &got))
		if n++; ev.Type != event.TypeRunApproved || ev.Subject != r.ID || got.Run != r.ID || got.By != "admin" {
			t.Errorf("event %s of %+v", ev.Type, got)
		}
		return true
	}))
	if n != 1 {
		t.Errorf("the approval is recorded %d times", n)
	}
	if by, _, err := s.store.Trusted.Get(t.Context(), event.TrustKey(repository, "github:id:1")); err != nil || by != "admin" {
		t.Errorf("the author is trusted by %q, %v", by, err)
	}
	if _, _, err := s.store.Trusted.Get(t.Context(), event.TrustKey(repository, "github:jane")); err == nil {
		t.Error("a nickname is trusted, where the account is known")
	}
	r.ApprovedBy = "admin"
	s.put(t, r)
	if e := s.refused(t, http.StatusConflict, "POST", apiclient.ApprovePath(r.ID), ""); !strings.Contains(e.Message, "approved by admin already") {
		t.Errorf("a second approval = %+v", e)
	}
}

func TestReplayIsAskedForByNumber(t *testing.T) {
	t.Parallel()
	s := start(t)
	ev, err := event.New("e1", "/test", event.TypeRunQueued, time.Now().UTC(), map[string]string{})
	check(t, err)
	_, err = s.bus.Publish(t.Context(), event.RunSubject(event.TypeRunQueued, "ra"), "e1", ev)
	check(t, err)
	for _, dry := range []bool{true, false} {
		query := ""
		if dry {
			query = "?dryRun=1"
		}
		var got apiclient.Reconciled
		s.ask(t, http.StatusOK, &got, "POST", apiclient.PathEvents+"/1/replay"+query, "")
		if got.Looked != 1 || got.DryRun != dry {
			t.Errorf("replayed %+v", got)
		}
	}
	for number, want := range map[string]int{"0": 422, "-1": 422, "one": 422, "18446744073709551616": 422, "99": http.StatusNotFound} {
		if e := s.refused(t, want, "POST", apiclient.PathEvents+"/"+number+"/replay", ""); !strings.Contains(e.Message, number) {
			t.Errorf("replay of %s = %+v", number, e)
		}
	}
}
