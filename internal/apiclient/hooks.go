package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// PathHooks is where hooks are: POST CreateHook -> 201 Hook; GET -> Hooks.
const PathHooks = "/api/v1/hooks"

// HookPath is the path of one hook, by its ID or name: GET -> Hook; DELETE, with ?local=1 without asking
// the forge -> Hook as it was.
func HookPath(hook string) string { return PathHooks + "/" + url.PathEscape(hook) }

// A CreateHook asks for a hook.
type CreateHook struct {
	Name     string `json:"name,omitempty"` // unique; empty means one made of provider and ID
	Provider string `json:"provider"`
	Registry string `json:"registry,omitempty"` // how images name the registry that delivers: host[:port]
	// Repository is the URL of the repository that the hook is for. With TokenSecret, the name of a
	// secret with a token of the forge, the hook is registered there.
	Repository  string `json:"repository,omitempty"`
	TokenSecret string `json:"tokenSecret,omitempty"`
	API         string `json:"api,omitempty"` // address of the forge's API, where Repository does not tell it
	// Address is how senders reach the server, such as https://kiln.example.com; empty means the
	// server's own idea of it, or the address that this request was sent to.
	Address string `json:"address,omitempty"`
}

// A Hook is an address that a forge or registry delivers to.
type Hook struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Provider     string    `json:"provider"`
	URL          string    `json:"url"`              // where to deliver to, without the secret
	Secret       string    `json:"secret,omitempty"` // only in the answers to create and rotate
	Disabled     bool      `json:"disabled,omitempty"`
	Rotating     bool      `json:"rotating,omitempty"` // the previous secret is accepted too
	Registry     string    `json:"registry,omitempty"`
	Repository   string    `json:"repository,omitempty"`
	Registered   bool      `json:"registered,omitempty"` // at the forge, by the server
	TokenSecret  string    `json:"tokenSecret,omitempty"`
	Created      time.Time `json:"created"`
	LastDelivery time.Time `json:"lastDelivery,omitzero"` // give or take a minute
}

// Hooks is the list of all hooks, by name.
type Hooks struct {
	Hooks []Hook `json:"hooks"`
}

// A RotateHook asks for another secret: POST HookPath/rotate -> Hook. The secret so far is accepted until
// Finish, which makes none and ends that.
type RotateHook struct {
	Finish bool `json:"finish,omitempty"`
}

// A HookCheck says whether a hook is at its forge as it should be: POST HookPath/check.
type HookCheck struct {
	OK      bool   `json:"ok"`
	Problem string `json:"problem,omitempty"`
}

// CreateHook makes a hook. The answer has its secret, which is shown this once.
func (c *Client) CreateHook(ctx context.Context, h CreateHook) (Hook, error) {
	return ask[Hook](ctx, c, http.MethodPost, PathHooks, h)
}

// Hooks lists all hooks.
func (c *Client) Hooks(ctx context.Context) ([]Hook, error) {
	list, err := ask[Hooks](ctx, c, http.MethodGet, PathHooks, nil)
	return list.Hooks, err
}

// Hook returns a hook by its ID or name.
func (c *Client) Hook(ctx context.Context, hook string) (Hook, error) {
	return ask[Hook](ctx, c, http.MethodGet, HookPath(hook), nil)
}

// DeleteHook deletes a hook, at its forge too unless local is set.
func (c *Client) DeleteHook(ctx context.Context, hook string, local bool) (Hook, error) {
	path := HookPath(hook)
	if local {
		path += "?local=1"
	}
	return ask[Hook](ctx, c, http.MethodDelete, path, nil)
}

// RotateHook gives a hook another secret, or ends the time in which the one before is accepted.
func (c *Client) RotateHook(ctx context.Context, hook string, r RotateHook) (Hook, error) {
	return ask[Hook](ctx, c, http.MethodPost, HookPath(hook)+"/rotate", r)
}

// EnableHook has a hook act on deliveries, or drop them.
func (c *Client) EnableHook(ctx context.Context, hook string, enable bool) (Hook, error) {
	action := "/disable"
	if enable {
		action = "/enable"
	}
	return ask[Hook](ctx, c, http.MethodPost, HookPath(hook)+action, struct{}{})
}

// CheckHook asks the forge whether a hook is still there and active.
func (c *Client) CheckHook(ctx context.Context, hook string) (HookCheck, error) {
	return ask[HookCheck](ctx, c, http.MethodPost, HookPath(hook)+"/check", struct{}{})
}

// ask makes a call whose answer is a T. A nil body sends none.
func ask[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var out T
	err := c.call(ctx, method, path, body, &out)
	return out, err
}
