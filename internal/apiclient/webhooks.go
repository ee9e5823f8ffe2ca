package apiclient

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// PathWebhooks is where webhooks of the registry are: POST SetWebhook -> 201 Webhook; GET -> Webhooks.
const PathWebhooks = "/api/v1/registry/webhooks"

// WebhookPath is the path of one webhook, by its name or ID: GET -> Webhook; PATCH SetWebhook -> Webhook; DELETE ->
// Webhook as it was; below it POST ping -> Webhook and GET events -> WebhookEvents.
func WebhookPath(webhook string) string { return PathWebhooks + "/" + url.PathEscape(webhook) }

// MaxWebhookEvents is how many requests to a webhook are kept.
const MaxWebhookEvents = 100

// SetWebhook says what a webhook is, or what of it changes: nil leaves something as it is.
type SetWebhook struct {
	Name    string            `json:"name,omitempty"` // unique; only of a new one
	URI     *string           `json:"uri,omitempty"`  // stored sealed, and not shown again but for its host
	Actions []string          `json:"actions,omitempty"`
	Scope   *string           `json:"scope,omitempty"`   // REPOSITORY:TAG, each with an asterisk at its end for more; empty for all
	Headers map[string]string `json:"headers,omitempty"` // of its requests; stored sealed, and not shown again
	Secret  *string           `json:"secret,omitempty"`  // name of the secret that requests are signed with; empty for none
	Enabled *bool             `json:"enabled,omitempty"`
}

// A Webhook is an address that is told of what happens in the registry.
type Webhook struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	URI     string    `json:"uri"` // scheme and host alone
	Actions []string  `json:"actions"`
	Scope   string    `json:"scope"`
	Headers []string  `json:"headers,omitempty"` // names
	Secret  string    `json:"secret,omitempty"`
	Enabled bool      `json:"enabled"`
	Reason  string    `json:"reason,omitempty"` // for which it is disabled
	Created time.Time `json:"created"`
}

// Webhooks are all webhooks, by name.
type Webhooks struct {
	Webhooks []Webhook `json:"webhooks"`
}

// A WebhookEvent is one request to a webhook, with its answer.
type WebhookEvent struct {
	Event    string          `json:"event"` // its ID, the same when it is repeated
	Action   string          `json:"action"`
	Image    string          `json:"image,omitempty"` // REPOSITORY:TAG or REPOSITORY@DIGEST
	At       time.Time       `json:"at"`
	Attempt  uint64          `json:"attempt"`
	Request  json.RawMessage `json:"request"`            // its body
	Status   int             `json:"status,omitempty"`   // of the answer; 0 for none
	Response string          `json:"response,omitempty"` // the beginning of its body
	Error    string          `json:"error,omitempty"`
	Took     time.Duration   `json:"took"` // nanoseconds
}

// WebhookEvents are the last requests to a webhook, the newest first.
type WebhookEvents struct {
	Events []WebhookEvent `json:"events"`
}

// CreateWebhook makes a webhook.
func (c *Client) CreateWebhook(ctx context.Context, w SetWebhook) (Webhook, error) {
	return ask[Webhook](ctx, c, http.MethodPost, PathWebhooks, w)
}

// UpdateWebhook changes a webhook.
func (c *Client) UpdateWebhook(ctx context.Context, webhook string, w SetWebhook) (Webhook, error) {
	return ask[Webhook](ctx, c, http.MethodPatch, WebhookPath(webhook), w)
}

// Webhooks lists all webhooks.
func (c *Client) Webhooks(ctx context.Context) ([]Webhook, error) {
	list, err := ask[Webhooks](ctx, c, http.MethodGet, PathWebhooks, nil)
	return list.Webhooks, err
}

// Webhook describes a webhook.
func (c *Client) Webhook(ctx context.Context, webhook string) (Webhook, error) {
	return ask[Webhook](ctx, c, http.MethodGet, WebhookPath(webhook), nil)
}

// DeleteWebhook removes a webhook and drops what waits for it.
func (c *Client) DeleteWebhook(ctx context.Context, webhook string) (Webhook, error) {
	return ask[Webhook](ctx, c, http.MethodDelete, WebhookPath(webhook), nil)
}

// PingWebhook sends a webhook a request of the action ping, and returns an error unless it was taken.
func (c *Client) PingWebhook(ctx context.Context, webhook string) (Webhook, error) {
	return ask[Webhook](ctx, c, http.MethodPost, WebhookPath(webhook)+"/ping", struct{}{})
}

// WebhookEvents returns the last requests to a webhook, the newest first.
func (c *Client) WebhookEvents(ctx context.Context, webhook string) ([]WebhookEvent, error) {
	list, err := ask[WebhookEvents](ctx, c, http.MethodGet, WebhookPath(webhook)+"/events", nil)
	return list.Events, err
}
