package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
)

const (
	eventWait    = 20 * time.Second // how long a list of events waits for the first one
	maxEvents    = 1000             // of a list
	defaultCount = 50
)

// listEvents answers with the last events or, after a place in the stream, with those that follow.
func (s *Server) listEvents(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	filter := event.SubjectEvents
	if t := q.Get("type"); t != "" {
		if strings.ContainsAny(t, "*> \t") || len(t) > 64 {
			return invalid("type %q: want one such as git.pushed or run.finished", t)
		}
		filter = "kiln.event." + t + ".>"
	}
	limit := defaultCount
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxEvents {
			return invalid("limit %q: want a number from 1 to %d", v, maxEvents)
		}
		limit = n
	}
	var after uint64
	if v := q.Get("after"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return invalid("after %q: want the number of an event", v)
		}
		after = n
	}
	list, err := s.events(r, filter, after, limit, q.Get("wait") == "1")
	if err != nil {
		return err
	}
	answer := apiclient.Events{Events: list, Last: after}
	if n := len(list); n > 0 {
		answer.Last = list[n-1].Seq
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// backwards calls read with places in the stream of events, from near its end to its beginning, until that
// has read enough: most of a long stream is not looked at for its last events. After a place it reads once.
func (s *Server) backwards(ctx context.Context, after uint64, read func(from uint64) (enough bool, err error)) error {
	if after > 0 {
		_, err := read(after)
		return err
	}
	stream, err := s.Bus.JetStream().Stream(ctx, bus.StreamEvents)
	if err != nil {
		return err
	}
	at := stream.CachedInfo().State
	for back := uint64(4 * maxEvents); ; back *= 8 {
		from := uint64(0)
		if at.LastSeq > at.FirstSeq+back {
			from = at.LastSeq - back
		}
		if enough, err := read(from); err != nil || enough || from == 0 {
			return err
		}
	}
}

// events returns the last events of a filter that there are for who asks or, if it waits, the first after a place.
// Without a place it begins to wait at the end.
func (s *Server) events(r *http.Request, filter string, after uint64, limit int, wait bool) ([]apiclient.EventRecord, error) {
	ctx, p, list := r.Context(), principal(r), []apiclient.EventRecord{}
	take := func(seq uint64, data []byte) {
		var ev event.Event
		if json.Unmarshal(data, &ev) == nil && seesEvent(p, ev) {
			list = append(list, apiclient.EventRecord{Seq: seq, Event: withoutBody(ev)})
		}
	}
	read := func(from uint64) error {
		list = list[:0]
		return s.Bus.Tail(ctx, bus.StreamEvents, filter, from, false, func(seq uint64, data []byte) bool {
			take(seq, data)
			if wait && after > 0 {
				return len(list) < limit
			}
			if len(list) > 2*limit {
				list = append(list[:0], list[len(list)-limit:]...)
			}
			return true
		})
	}
	err := s.backwards(ctx, after, func(from uint64) (enough bool, err error) {
		err = read(from)
		return len(list) >= limit, err
	})
	if err != nil || len(list) > 0 || !wait {
		return list[max(0, len(list)-limit):], err
	}
	waiting, cancel := context.WithTimeout(ctx, eventWait)
	defer cancel()
	err = s.Bus.Tail(waiting, bus.StreamEvents, filter, after, true, func(seq uint64, data []byte) bool {
		take(seq, data)
		return len(list) == 0
	})
	return list, err
}
