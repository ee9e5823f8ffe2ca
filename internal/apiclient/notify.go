package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// PathTargets is where targets of notifications are: POST AddTarget -> 201 Target; GET -> Targets.
const PathTargets = "/api/v1/notifications"

// TargetPath is the path of one target, by its ID or name: GET -> Target; DELETE -> Target as it was.
func TargetPath(target string) string { return PathTargets + "/" + url.PathEscape(target) }

// AddTarget asks for a target.
type AddTarget struct {
	Name   string   `json:"name,omitempty"` // unique; empty means one made of the URL's host
	URL    string   `json:"url"`            // stored sealed, and not shown again but for its host
	Events []string `json:"events"`
	Task   string   `json:"task,omitempty"`
	Secret string   `json:"secret,omitempty"` // name of a secret
}

// A Target is an address that events are sent to.
type Target struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	URL      string    `json:"url"` // scheme and host alone
	Events   []string  `json:"events"`
	Task     string    `json:"task,omitempty"`
	Secret   string    `json:"secret,omitempty"`
	Disabled bool      `json:"disabled,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Failed   int       `json:"failed,omitempty"` // notifications that were given up
	Created  time.Time `json:"created"`
}

// Targets are all targets, by name.
type Targets struct {
	Targets []Target `json:"targets"`
}

// A FailedNotification was given up: GET PathTargets/failed -> FailedNotifications.
type FailedNotification struct {
	ID       string    `json:"id"`
	Target   string    `json:"target"` // its name, or its ID if it was removed
	Type     string    `json:"type"`
	Subject  string    `json:"subject,omitempty"`
	Event    string    `json:"event"` // its ID
	Attempts int       `json:"attempts"`
	Error    string    `json:"error"`
	At       time.Time `json:"at"`
}

// FailedNotifications are those that were given up, oldest first.
type FailedNotifications struct {
	Failed []FailedNotification `json:"failed"`
}

// RetryFailed asks for notifications that were given up to be sent again: POST PathTargets/retry ->
// Retried. Empty means all of them.
type RetryFailed struct {
	IDs []string `json:"ids,omitempty"`
}

// Retried says how many are sent again.
type Retried struct {
	Retried int `json:"retried"`
}

// AddTarget adds a target.
func (c *Client) AddTarget(ctx context.Context, t AddTarget) (Target, error) {
	return ask[Target](ctx, c, http.MethodPost, PathTargets, t)
}

// Targets lists all targets.
func (c *Client) Targets(ctx context.Context) ([]Target, error) {
	list, err := ask[Targets](ctx, c, http.MethodGet, PathTargets, nil)
	return list.Targets, err
}

// RemoveTarget removes a target and drops what waits for it.
func (c *Client) RemoveTarget(ctx context.Context, target string) (Target, error) {
	return ask[Target](ctx, c, http.MethodDelete, TargetPath(target), nil)
}

// TestTarget sends a target an event of type kiln.test, and returns an error unless it was taken.
func (c *Client) TestTarget(ctx context.Context, target string) (Target, error) {
	return ask[Target](ctx, c, http.MethodPost, TargetPath(target)+"/test", struct{}{})
}

// FailedNotifications lists the notifications that were given up.
func (c *Client) FailedNotifications(ctx context.Context) ([]FailedNotification, error) {
	list, err := ask[FailedNotifications](ctx, c, http.MethodGet, PathTargets+"/failed", nil)
	return list.Failed, err
}

// RetryFailed has notifications that were given up sent again.
func (c *Client) RetryFailed(ctx context.Context, ids []string) (int, error) {
	r, err := ask[Retried](ctx, c, http.MethodPost, PathTargets+"/retry", RetryFailed{IDs: ids})
	return r.Retried, err
}
