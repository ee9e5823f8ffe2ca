package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"kiln/internal/event"
)

// PathAudit is where the record of who has changed what is: GET ?since=&who=&what=&limit=&after=&wait=1 -> Audit.
const PathAudit = "/api/v1/audit"

// Audit is a part of the record of who has changed what, the newest last.
type Audit struct {
	Records []event.Audit `json:"records"`
	Last    uint64        `json:"last"` // how far the record was read: After of a query for what follows
}

// An AuditQuery selects records.
type AuditQuery struct {
	Since time.Time // zero means a day ago
	Who   string    // name of a principal or token, or the ID of a token; "-" is nobody in particular
	What  string    // a part of method and resource
	Limit int       // at most this many, the newest; 0 means the server's default
	// After selects what was recorded later than that place, the oldest first, and Since nothing then. More than Limit may
	// be listed, since what was stored together is. With Wait the answer comes when there is something, or after a while.
	After *uint64
	Wait  bool
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
	if q.After != nil {
		v.Set("after", strconv.FormatUint(*q.After, 10))
	}
	if q.Wait {
		v.Set("wait", "1")
	}
	return ask[Audit](ctx, c, http.MethodGet, PathAudit+"?"+v.Encode(), nil)
}

// FollowAudit lists records to fn, and goes on with what is recorded until ctx ends, whose cause it returns, or fn
// returns an error. When the server goes away, having answered before, it is asked again, for c.Patience.
func (c *Client) FollowAudit(ctx context.Context, q AuditQuery, fn func([]event.Audit) error) error {
	for p := (retries{c: c}); ; {
		page, err := c.Audit(ctx, q)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil:
			p.heard()
			if err := fn(page.Records); err != nil {
				return err
			}
			q.After, q.Wait = &page.Last, true
			continue
		case !c.met.Load() || !temporary(err):
			return err
		}
		if err := p.again(ctx, "audit log", err); err != nil {
			return err
		}
	}
}
