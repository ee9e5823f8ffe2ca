package api

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/audit"
	"kiln/internal/auth"
	"kiln/internal/bus"
	"kiln/internal/event"
)

// A caller is who has sent a request, and what it turns out to be about.
type caller struct {
	auth.Principal
	about string
}

// about says what a request is about whose path does not tell.
func about(r *http.Request, what string) {
	if c, ok := r.Context().Value(callerKey{}).(*caller); ok {
		c.about = what
	}
}

// record notes in the audit log what a request that was to change something has come to, or that it was denied.
func (s *Server) record(r *http.Request, rt Route, c *caller, status int, code string) {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead || rt.Pattern == apiclient.PathContexts // which asks what is missing
	if reads && status != http.StatusUnauthorized && status != http.StatusForbidden {
		return
	}
	what := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	if c.about != "" {
		what += " " + c.about
	}
	if dryRun(r) {
		what += " (dry run)"
	}
	a := audit.Of(r, what)
	a.Who, a.Role, a.Token, a.Status, a.Code = c.Name, string(c.Role), c.TokenID(), status, code
	s.Audit.Record(a)
}

const (
	maxAudit     = 1000 // records of a list
	defaultAudit = 50
)

// listAudit lists the last records of the audit log that a request selects, the newest last, or those after a place.
func (s *Server) listAudit(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	limit, since := defaultAudit, time.Now().Add(-24*time.Hour)
	if v := q.Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxAudit {
			return invalid("limit %q: want a number from 1 to %d", v, maxAudit)
		}
		limit = n
	}
	if v := q.Get("since"); v != "" {
		var err error
		if since, err = time.Parse(time.RFC3339, v); err != nil {
			return invalid("since %q: want a time such as 2026-01-02T15:04:05Z", v)
		}
	}
	who, what := q.Get("who"), strings.ToLower(q.Get("what"))
	is := func(a event.Audit) bool {
		named := who == "" || who == cmp.Or(a.Who, "-") || "token "+who == a.Who || who == a.Token
		return named && strings.Contains(strings.ToLower(a.Method+" "+a.What), what)
	}
	if !q.Has("after") {
		list, last, err := s.auditSince(r.Context(), since, limit, is)
		return answer(w, apiclient.Audit{Records: list, Last: last}, err)
	}
	after, err := strconv.ParseUint(q.Get("after"), 10, 64)
	if err != nil {
		return invalid("after %q: want a number that an answer has as its last", q.Get("after"))
	}
	list, last, err := s.auditAfter(r.Context(), after, limit, q.Get("wait") == "1", is)
	return answer(w, apiclient.Audit{Records: list, Last: last}, err)
}

// audits returns the records of a message that are selected.
func audits(data []byte, is func(event.Audit) bool) (list []event.Audit) {
	var batch event.Audits
	if json.Unmarshal(data, &batch) != nil {
		return nil // of another version
	}
	return slices.DeleteFunc(batch.Records, func(a event.Audit) bool { return !is(a) })
}

// auditSince returns the last records since a time, and how far the log was read.
func (s *Server) auditSince(ctx context.Context, since time.Time, limit int, is func(event.Audit) bool) (list []event.Audit, last uint64, err error) {
	list = []event.Audit{}
	if last, err = s.Bus.LastSequence(ctx, bus.StreamAudit, event.SubjectAudit); err != nil {
		return nil, 0, err
	}
	err = s.Bus.Since(ctx, bus.StreamAudit, event.SubjectAudit, since, func(seq uint64, data []byte) bool {
		last = max(last, seq)
		list = append(list, audits(data, func(a event.Audit) bool { return !a.Time.Before(since) && is(a) })...)
		if len(list) > 2*limit {
			list = append(list[:0], list[len(list)-limit:]...)
		}
		return true
	})
	return list[max(0, len(list)-limit):], last, err
}

// auditAfter returns the first records after a place, or if it waits the next ones, and how far the log was read.
func (s *Server) auditAfter(ctx context.Context, after uint64, limit int, wait bool, is func(event.Audit) bool) (list []event.Audit, last uint64, err error) {
	list, last = []event.Audit{}, after
	take := func(seq uint64, data []byte) { last, list = seq, append(list, audits(data, is)...) }
	err = s.Bus.Tail(ctx, bus.StreamAudit, event.SubjectAudit, after, false, func(seq uint64, data []byte) bool {
		take(seq, data)
		return len(list) < limit
	})
	if err != nil || len(list) > 0 || !wait {
		return list, last, err
	}
	waiting, cancel := context.WithTimeout(ctx, eventWait)
	defer cancel()
	err = s.Bus.Tail(waiting, bus.StreamAudit, event.SubjectAudit, last, true, func(seq uint64, data []byte) bool {
		take(seq, data)
		return len(list) == 0
	})
	return list, last, err
}
