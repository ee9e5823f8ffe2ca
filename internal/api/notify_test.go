package api_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
)

// givenUp stores a notification that was given up, as the notifier does.
func (s *site) givenUp(t *testing.T, id, target string) {
	t.Helper()
	ev, err := event.New("e-"+id, "/test", event.TypeImagePushed, time.Now().UTC(), event.Image{Repository: "app"})
	check(t, err)
	_, err = s.store.Undelivered.Create(t.Context(), id, event.Undelivered{Notification: event.Notification{Target: target, Event: &ev},
		Attempts: 3, Error: "answered 500", At: time.Now().UTC()})
	check(t, err)
}

func TestFailedNotificationsAreListedAndSentAgain(t *testing.T) {
	t.Parallel()
	s := start(t)
	for id, disabled := range map[string]bool{"t1": false, "t2": true} {
		_, err := s.store.Targets.Create(t.Context(), id, event.Target{ID: id, Name: "name-" + id, Disabled: disabled})
		check(t, err)
	}
	s.givenUp(t, "n1", "t1")
	s.givenUp(t, "n2", "t1")
	s.givenUp(t, "n3", "t1")
	s.givenUp(t, "n4", "t2")
	s.givenUp(t, "n5", "gone")
	failed := func(want int) (all []apiclient.FailedNotification) {
		t.Helper()
		var list apiclient.FailedNotifications
		s.ask(t, http.StatusOK, &list, "GET", apiclient.PathTargets+"/failed", "")
		if len(list.Failed) != want {
			t.Fatalf("given up: %+v, want %d", list.Failed, want)
		}
		return list.Failed
	}
	first := failed(5)[0]
	if first.ID != "n1" || first.Target != "name-t1" || first.Type != event.TypeImagePushed || first.Event != "e-n1" || first.Attempts != 3 || first.Error != "answered 500" {
		t.Errorf("given up: %+v", first)
	}
	s.refused(t, http.StatusNotFound, "POST", apiclient.PathTargets+"/retry", `{"ids":["n1","unknown"]}`) // and n1 stays
	for _, c := range []struct {
		body string
		n    int
	}{{`{"ids":["n2","n2"]}`, 1}, {"{}", 2}, {"{}", 0}} {
		var got apiclient.Retried
		s.ask(t, http.StatusOK, &got, "POST", apiclient.PathTargets+"/retry", c.body)
		if got.Retried != c.n {
			t.Errorf("retry of %s: %d are sent again, want %d", c.body, got.Retried, c.n)
		}
	}
	failed(2) // of the targets that take nothing
	for body, want := range map[string]string{`{"ids":["n2"]}`: `no notification "n2" was given up`, `{"ids":["n4"]}`: "target name-t2 is disabled", `{"ids":["n5"]}`: "has been removed"} {
		status := http.StatusConflict
		if strings.Contains(want, "no notification") {
			status = http.StatusNotFound
		}
		if e := s.refused(t, status, "POST", apiclient.PathTargets+"/retry", body); !strings.Contains(e.Message, want) {
			t.Errorf("retry of %s: %+v, want %q", body, e, want)
		}
	}
	var last event.Notification
	_, err := s.bus.Last(t.Context(), bus.StreamNotify, event.NotifySubject("t1"), &last)
	check(t, err)
	queue, err := s.bus.JetStream().Stream(t.Context(), bus.StreamNotify)
	check(t, err)
	if n := queue.CachedInfo().State.Msgs; n != 3 || last.Target != "t1" || last.Event == nil || last.Event.ID == "e-n2" || time.Since(last.Since) > time.Hour {
		t.Errorf("%d are queued, the last is %+v; want 3", n, last)
	}
}
