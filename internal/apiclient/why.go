package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/triggers/decide"
)

// Paths of what explains.
const (
	// PathWhy: GET ?image=REFERENCE -> Why of the run that published it.
	PathWhy = "/api/v1/why"
	// PathEvents: GET, see EventsQuery, -> Events.
	PathEvents = "/api/v1/events"
	// PathReconcile: POST ?dryRun=1 -> Reconciled.
	PathReconcile = "/api/v1/reconcile"
)

// WhyPath explains a run: GET -> Why.
func WhyPath(id string) string { return RunPath(id) + "/why" }

// ApprovePath is where a run that waits for approval is approved: POST -> 202 run.Run.
func ApprovePath(id string) string { return RunPath(id) + "/approve" }

// DecisionsPath is where the decisions about a task are listed: GET ?since=RFC3339 -> Decisions.
func DecisionsPath(task string) string { return "/api/v1/tasks/" + url.PathEscape(task) + "/decisions" }

// ReplayPath is where an event is handled again: POST ?dryRun=1 -> Reconciled.
func ReplayPath(seq uint64) string {
	return PathEvents + "/" + strconv.FormatUint(seq, 10) + "/replay"
}

// A Why is the way from a run back to what brought it about.
type Why struct {
	Run run.Run `json:"run"`
	// Decision made the run due; nil if it is not stored any more.
	Decision *decide.Decision `json:"decision,omitempty"`
	// Event is the fact that was decided; nil if there was none, or if it is not stored any more.
	Event *EventRecord `json:"event,omitempty"`
	// Upstream are the runs that published the base images which made this one due.
	Upstream []Why `json:"upstream,omitempty"`
}

// An EventRecord is a stored event. The body of its delivery is left out.
type EventRecord struct {
	Seq   uint64      `json:"seq"` // place in the stream of events
	Event event.Event `json:"event"`
}

// Events is a list of events, oldest first.
type Events struct {
	Events []EventRecord `json:"events"`
	// Last is the place to ask for events after.
	Last uint64 `json:"last"`
}

// An EventsQuery selects events.
type EventsQuery struct {
	Type  string // such as git.pushed; empty for all
	After uint64 // only those after this place in the stream
	Limit int    // the last so many, or with Wait the first; 1 to 1000
	// Wait says that the answer may wait some seconds for an event after After, if there is none yet.
	Wait bool
}

// Decisions are what was decided about a task, oldest first.
type Decisions struct {
	Decisions []decide.Decision `json:"decisions"`
}

// Reconciled is what looking at the world again has found, or would.
type Reconciled struct {
	DryRun bool `json:"dryRun,omitempty"`
	// Looked is how many tracks were compared.
	Looked int `json:"looked"`
	// Due are the decisions that were made, or would be.
	Due []Found `json:"due"`
	// Problems are what could not be looked at, as sentences.
	Problems []string `json:"problems,omitempty"`
}

// Found is a decision about a task.
type Found struct {
	Task     string          `json:"task"`
	Decision decide.Decision `json:"decision"`
}

// Why explains a run.
func (c *Client) Why(ctx context.Context, id string) (Why, error) {
	var w Why
	err := c.call(ctx, http.MethodGet, WhyPath(id), nil, &w)
	return w, err
}

// WhyImage explains the run that published an image.
func (c *Client) WhyImage(ctx context.Context, reference string) (Why, error) {
	var w Why
	err := c.call(ctx, http.MethodGet, PathWhy+"?"+url.Values{"image": {reference}}.Encode(), nil, &w)
	return w, err
}

// Decisions lists what was decided about a task since a time; zero means as far as is stored.
func (c *Client) Decisions(ctx context.Context, task string, since time.Time) (Decisions, error) {
	path := DecisionsPath(task)
	if !since.IsZero() {
		path += "?" + url.Values{"since": {since.UTC().Format(time.RFC3339)}}.Encode()
	}
	var d Decisions
	err := c.call(ctx, http.MethodGet, path, nil, &d)
	return d, err
}

// Events lists stored events.
func (c *Client) Events(ctx context.Context, q EventsQuery) (Events, error) {
	var e Events
	err := c.call(ctx, http.MethodGet, PathEvents+"?"+q.values().Encode(), nil, &e)
	return e, err
}

func (q EventsQuery) values() url.Values {
	v := url.Values{}
	if q.Type != "" {
		v.Set("type", q.Type)
	}
	if q.After > 0 {
		v.Set("after", strconv.FormatUint(q.After, 10))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Wait {
		v.Set("wait", "1")
	}
	return v
}

// Approve lets a run that waits for approval go on.
func (c *Client) Approve(ctx context.Context, id string) (run.Run, error) {
	var r run.Run
	err := c.call(ctx, http.MethodPost, ApprovePath(id), struct{}{}, &r)
	return r, err
}

// Reconcile looks at every repository and image that a task follows, and decides what has changed. A dry
// run stores nothing.
func (c *Client) Reconcile(ctx context.Context, dryRun bool) (Reconciled, error) {
	var r Reconciled
	err := c.callFor(ctx, reconcileTimeout, http.MethodPost, PathReconcile+dryRunQuery(dryRun), struct{}{}, &r)
	return r, err
}

// Replay handles a stored event again as if it came now. A dry run stores nothing.
func (c *Client) Replay(ctx context.Context, seq uint64, dryRun bool) (Reconciled, error) {
	var r Reconciled
	err := c.callFor(ctx, reconcileTimeout, http.MethodPost, ReplayPath(seq)+dryRunQuery(dryRun), struct{}{}, &r)
	return r, err
}

// reconcileTimeout bounds a reconciliation, which asks every repository and registry.
const reconcileTimeout = 10 * time.Minute

func dryRunQuery(dryRun bool) string {
	if dryRun {
		return "?dryRun=1"
	}
	return ""
}
