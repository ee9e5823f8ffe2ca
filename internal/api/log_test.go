package api_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/run"
)

// runID is a run of the far future, so not past its retention.
const runID = "rz00000ttest"

// say stores a message of the run's log and returns its sequence.
func (s *site) say(t *testing.T, text string) uint64 {
	t.Helper()
	seq, err := s.bus.Publish(t.Context(), event.LogSubject(runID, 0), "", event.LogChunk{Attempt: 1, Step: "a",
		Entries: []event.LogEntry{{Stream: event.StreamStdout, Data: []byte(text)}}})
	check(t, err)
	return seq
}

// A sse is one server-sent event.
type sse struct{ name, id, data string }

// A follower reads a stream of server-sent events.
type follower struct{ lines *bufio.Scanner }

func (s *site) follow(t *testing.T, query string, header ...string) *follower {
	t.Helper()
	resp := s.send(t, s.admin, "GET", apiclient.LogPath(runID)+query, nil, header...)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("log = %d, %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	return &follower{bufio.NewScanner(resp.Body)}
}

// next returns the next event; false at the end of the stream.
func (f *follower) next() (e sse, ok bool) {
	for f.lines.Scan() {
		switch field, value, _ := strings.Cut(f.lines.Text(), ": "); field {
		case "":
			return e, true
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			e.data = value
		}
	}
	return e, false
}

// String shortens an event: log:SEQ:text, run:STATE or end.
func (e sse) String() string {
	switch e.name {
	case apiclient.StreamLog:
		var c event.LogChunk
		if err := json.Unmarshal([]byte(e.data), &c); err != nil || len(c.Entries) != 1 {
			return "bad log " + e.data
		}
		return fmt.Sprintf("log:%s:%s", e.id, c.Entries[0].Data)
	case apiclient.StreamRun:
		var r run.Run
		if err := json.Unmarshal([]byte(e.data), &r); err != nil || r.ID != runID || r.Spec.Secrets != nil {
			return "bad run " + e.data
		}
		return "run:" + string(r.State)
	}
	return e.name
}

// rest reads the stream to its end.
func (f *follower) rest() string {
	var all []string
	for e, ok := f.next(); ok; e, ok = f.next() {
		all = append(all, e.String())
	}
	return strings.Join(all, " ")
}

func TestReplayOfAnEndedRun(t *testing.T) {
	t.Parallel()
	s := start(t)
	a, b := s.say(t, "one"), s.say(t, "two")
	s.put(t, run.Run{ID: runID, State: run.Failed, LogEnd: b, Spec: run.Spec{Secrets: []byte("sealed")}})
	want := fmt.Sprintf("run:Failed log:%d:one log:%d:two run:Failed end", a, b)
	for _, query := range []string{"", "?follow=1"} {
		if got := s.follow(t, query).rest(); got != want {
			t.Errorf("log%s = %s, want %s", query, got, want)
		}
	}
	resumed := fmt.Sprintf("run:Failed log:%d:two run:Failed end", b)
	if got := s.follow(t, "", "Last-Event-ID", strconv.FormatUint(a, 10)).rest(); got != resumed {
		t.Errorf("resumed log = %s, want %s", got, resumed)
	}
	if got := s.follow(t, "?follow=1", "Last-Event-ID", strconv.FormatUint(b, 10)).rest(); got != "run:Failed run:Failed end" {
		t.Errorf("log resumed at its end = %s", got)
	}
}

func TestLogOfARunUnderWayWithoutFollowing(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := s.say(t, "one")
	s.put(t, run.Run{ID: runID, State: run.Running})
	if got, want := s.follow(t, "").rest(), fmt.Sprintf("run:Running log:%d:one run:Running end", a); got != want {
		t.Errorf("log = %s, want %s", got, want)
	}
}

// until reads events until one is as wanted; every one before must be the state of a run.
func (f *follower) until(t *testing.T, want string) {
	t.Helper()
	for e, ok := f.next(); ; e, ok = f.next() {
		if !ok {
			t.Fatalf("the stream ended before %s", want)
		}
		if e.String() == want {
			return
		}
		if e.name != apiclient.StreamRun {
			t.Fatalf("%s comes before %s", e, want)
		}
	}
}

// TestFollowOfARunThatEnds has the record say that the run has ended before its log is complete.
func TestFollowOfARunThatEnds(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := s.say(t, "one")
	s.put(t, run.Run{ID: runID, State: run.Queued})
	f := s.follow(t, "?follow=1")
	f.until(t, fmt.Sprintf("log:%d:one", a))
	s.put(t, run.Run{ID: runID, State: run.Running})
	f.until(t, "run:Running")
	b := s.say(t, "two")
	f.until(t, fmt.Sprintf("log:%d:two", b))
	resumed := s.follow(t, "?follow=1", "Last-Event-ID", strconv.FormatUint(a, 10))
	resumed.until(t, fmt.Sprintf("log:%d:two", b))
	s.put(t, run.Run{ID: runID, State: run.Succeeded, LogEnd: b + 1})
	c := s.say(t, "three")
	want := fmt.Sprintf("log:%d:three run:Succeeded end", c)
	for name, f := range map[string]*follower{"followed": f, "resumed": resumed} {
		got := f.rest()
		if strings.ReplaceAll(got, "run:Running ", "") != want {
			t.Errorf("%s log = %s, want %s", name, got, want)
		}
	}
}

func TestFollowerMayComeBeforeTheRecord(t *testing.T) {
	t.Parallel()
	s := start(t)
	stored := make(chan error, 1)
	go func() {
		_, err := s.store.Runs.Put(t.Context(), runID, run.Run{ID: runID, State: run.Canceled})
		stored <- err
	}()
	if got := s.follow(t, "?follow=1").rest(); got != "run:Canceled run:Canceled end" {
		t.Errorf("log = %s", got)
	}
	check(t, <-stored)
}

func TestBadLastEventID(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.put(t, run.Run{ID: runID, State: run.Running})
	if resp := s.send(t, s.admin, "GET", apiclient.LogPath(runID), nil, "Last-Event-ID", "x"); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("log = %d", resp.StatusCode)
	}
}
