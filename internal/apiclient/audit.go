package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"kiln/internal/event"
)

// PathAudit is where the record of who has changed what is: GET ?since=&who=&what=&limit= -> Audit.
const PathAudit = "/api/v1/audit"

// Audit is a part of the record of who has changed what, the newest last.
type Audit struct {
	Records []event.Audit `json:"records"`
}

// An AuditQuery selects records.
type AuditQuery struct {
	Since time.Time // zero means a day ago
	Who   string    // name of a principal or token, or the ID of a token; "-" is nobody in particular
	What  string    // a part of method and resource
	Limit int       // at most this many, the newest; 0 means the server's default
}

// Audit lists records.
func (c *Client) Audit(ctx context.Context, q AuditQuery) (Audit, error) {
	v := url.Values{}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339))
	}
	for name, value := range map[string]string{"who": q.Who, "what": q.What} {
		if value != "" {
			v.Set(name, value)
		}
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return ask[Audit](ctx, c, http.MethodGet, PathAudit+"?"+v.Encode(), nil)
}
