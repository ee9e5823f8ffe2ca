package apiclient

import (
	"net/url"
	"strconv"
	"time"
)

// A RunsQuery selects runs of a list. The zero value means all, as far as the server's limit goes; a run
// must have all that is given.
type RunsQuery struct {
	Limit  int       // most runs to list, up to 1000
	Before string    // ID of a run: only older ones
	Prefix string    // only runs whose ID begins with it
	Task   string    // name of the task
	Status []string  // one of these states
	Cause  string    // kind of a run.Cause
	Since  time.Time // created then or later
	Until  time.Time // created before
	Image  string    // that it has published: repository, repository:tag or repository@digest
	Commit string    // beginning of the commit
	Branch string    // or tag
	Base   string    // base image that was used, or that made the run due
}

// encode returns the query of a URL, with its question mark, or nothing.
func (q RunsQuery) encode() string {
	v := url.Values{}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	for _, p := range []struct{ name, value string }{
		{"before", q.Before}, {"prefix", q.Prefix}, {"task", q.Task}, {"image", q.Image}, {"commit", q.Commit},
		{"branch", q.Branch}, {"base", q.Base}, {"cause", q.Cause}, {"since", stamp(q.Since)}, {"until", stamp(q.Until)},
	} {
		if p.value != "" {
			v.Set(p.name, p.value)
		}
	}
	for _, s := range q.Status {
		v.Add("status", s)
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
