package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"kiln/internal/event"
)

// PathTokens is where tokens are: POST CreateToken -> 201 Token; GET -> Tokens.
const PathTokens = "/api/v1/tokens"

// TokenPath is the path of one token: GET -> Token; DELETE -> Token as it was.
func TokenPath(name string) string { return PathTokens + "/" + url.PathEscape(name) }

// A CreateToken asks for a token.
type CreateToken struct {
	Name string `json:"name"`
	// Role is admin, author, runner or reader; empty makes a token for nothing but images. Tasks are names of tasks,
	// or with a "*" at the end beginnings of names, that a token with a role is for; none means all.
	Role  string   `json:"role,omitempty"`
	Tasks []string `json:"tasks,omitempty"`
	// Grants are the permissions for repositories. With a role one without permissions gets those of the role, and no
	// grants mean those of the role for all repositories.
	Grants []event.Grant `json:"grants,omitempty"`
	// Seconds is how long it is good for; 0 means until it is deleted.
	Seconds int64 `json:"seconds,omitempty"`
}

// A Token is what may be done by who has its password.
type Token struct {
	Name    string        `json:"name"`
	ID      string        `json:"id"`
	Role    string        `json:"role,omitempty"`
	Tasks   []string      `json:"tasks,omitempty"`
	Grants  []event.Grant `json:"grants"`
	Created time.Time     `json:"created"`
	Expires time.Time     `json:"expires,omitzero"` // zero for never
	// Used is when it was used last, about a minute exactly; zero if it was not, or not for a year.
	Used time.Time `json:"used,omitzero"`
	// Password is set in the answer to its creation only.
	Password string `json:"password,omitempty"`
}

// Tokens is the list of all tokens, by name.
type Tokens struct {
	Tokens []Token `json:"tokens"`
}

// CreateToken makes a token. The answer has its password, which is shown this once.
func (c *Client) CreateToken(ctx context.Context, t CreateToken) (Token, error) {
	return ask[Token](ctx, c, http.MethodPost, PathTokens, t)
}

// Tokens lists all tokens.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	list, err := ask[Tokens](ctx, c, http.MethodGet, PathTokens, nil)
	return list.Tokens, err
}

// ShowToken returns a token, without its password.
func (c *Client) ShowToken(ctx context.Context, name string) (Token, error) {
	return ask[Token](ctx, c, http.MethodGet, TokenPath(name), nil)
}

// DeleteToken deletes a token, which is good for nothing from then on.
func (c *Client) DeleteToken(ctx context.Context, name string) (Token, error) {
	return ask[Token](ctx, c, http.MethodDelete, TokenPath(name), nil)
}
