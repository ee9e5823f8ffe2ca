package api

import (
	"cmp"
	"encoding/json"
	"net/http"
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

// listAudit lists the last records of the audit log that a request selects, the newest last.
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
	list := []event.Audit{}
	err := s.Bus.Since(r.Context(), bus.StreamAudit, event.SubjectAudit, since, func(_ uint64, data []byte) bool {
		var batch event.Audits
		if json.Unmarshal(data, &batch) != nil {
			return true // of another version
		}
		for _, a := range batch.Records {
			named := who == "" || who == cmp.Or(a.Who, "-") || "token "+who == a.Who || who == a.Token
			if named && !a.Time.Before(since) && strings.Contains(strings.ToLower(a.Method+" "+a.What), what) {
				list = append(list, a)
			}
		}
		if len(list) > 2*limit {
			list = append(list[:0], list[len(list)-limit:]...)
		}
		return true
	})
	return answer(w, apiclient.Audit{Records: list[max(0, len(list)-limit):]}, err)
}
