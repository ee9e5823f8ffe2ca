package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/distribution/reference"

	"kiln/internal/event"
)

// TokenPath is where clients of the registry get sessions: the token endpoint of Docker's protocol, as
// GET with Basic authentication and as an OAuth2 POST.
const TokenPath = "/v2/token"

const (
	sessionLife  = 5 * time.Minute
	maxScopes    = 64
	maxTokenForm = 64 << 10 // bytes
	service      = "kiln"
)

// actions are the permissions that clients mean by what they ask for.
var actions = map[string][]event.Permission{
	"pull":   {event.ContentRead, event.MetadataRead},
	"push":   {event.ContentWrite},
	"delete": {event.ContentDelete},
	"*":      event.Permissions(),
}

// CatalogScope is the scope of the list of repositories.
const CatalogScope = "registry:catalog:*"

// Scope is the scope with which a client asks for a permission.
func Scope(repository string, p event.Permission) string {
	action := "*"
	switch p {
	case event.ContentRead, event.MetadataRead:
		action = "pull"
	case event.ContentWrite:
		action = "pull,push"
	case event.ContentDelete:
		action = "delete"
	}
	return "repository:" + repository + ":" + action
}

// Challenge is the WWW-Authenticate header that tells the sender of a request to get a session for the
// scope, which may be empty; the cause is why it needs one.
func (k *Keys) Challenge(r *http.Request, scope string, cause error) string {
	var b strings.Builder
	fmt.Fprintf(&b, `Bearer realm="%s%s",service="%s"`, k.address(r), TokenPath, service)
	if scope != "" {
		fmt.Fprintf(&b, `,scope="%s"`, scope)
	}
	switch {
	case errors.Is(cause, ErrScope):
		b.WriteString(`,error="insufficient_scope"`)
	case r.Header.Get("Authorization") != "":
		b.WriteString(`,error="invalid_token"`)
	}
	return b.String()
}

// address is how the sender of a request reaches the server, as far as the request tells.
func (k *Keys) address(r *http.Request) string {
	public, err := url.Parse(k.PublicURL)
	switch {
	case r.TLS != nil, r.Header.Get("X-Forwarded-Proto") == "https", err == nil && public.Scheme == "https" && public.Host == r.Host:
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// TokenHandler serves TokenPath.
func (k *Keys) TokenHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		w.Header().Set("Cache-Control", "no-store")
		p, scopes, err := k.applicant(w, r, now)
		if err == nil {
			var s Principal
			if s, err = p.session(scopes, now); err == nil {
				err = k.answer(w, s, now)
			}
		}
		if err != nil {
			refuse(w, r, err)
		}
	})
}

// errRequest is returned for a request that is not one for a session.
var errRequest = errors.New("not a request for a token")

// applicant returns who wants a session, and for what.
func (k *Keys) applicant(w http.ResponseWriter, r *http.Request, now time.Time) (p Principal, scopes []string, err error) {
	switch r.Method {
	case http.MethodGet:
		scopes = r.URL.Query()["scope"]
		p, err = k.FromRequest(r, now)
	case http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, maxTokenForm)
		if err := r.ParseForm(); err != nil {
			return p, nil, fmt.Errorf("%w: %w", errRequest, err)
		}
		scopes = r.PostForm["scope"]
		p, err = k.applicantOf(r, now)
	default:
		err = fmt.Errorf("%w: use GET or POST", errRequest)
	}
	scopes = strings.Fields(strings.Join(scopes, " "))
	if err == nil && len(scopes) > maxScopes {
		err = fmt.Errorf("%w: %d scopes, at most %d are allowed", errRequest, len(scopes), maxScopes)
	}
	return p, scopes, err
}

// applicantOf returns who has sent an OAuth2 form. A token is its own refresh token.
func (k *Keys) applicantOf(r *http.Request, now time.Time) (Principal, error) {
	switch grant := r.PostForm.Get("grant_type"); grant {
	case "password":
		return k.Verify(r.Context(), r.PostForm.Get("password"), now)
	case "refresh_token":
		return k.Verify(r.Context(), r.PostForm.Get("refresh_token"), now)
	default:
		return Principal{}, fmt.Errorf("%w: grant_type %.40q: want password or refresh_token", errRequest, grant)
	}
}

// session returns what p gets of the scopes.
func (p Principal) session(scopes []string, now time.Time) (Principal, error) {
	s := Principal{Name: p.Name, Role: RoleSession, Token: p.Token, Expires: now.Add(sessionLife), Anonymous: p.Role == RoleAnonymous}
	if !p.Expires.IsZero() && p.Expires.Before(s.Expires) {
		s.Expires = p.Expires
	}
	if p.Role == RoleSession {
		return s, ErrToken // would never end
	}
	for _, scope := range scopes {
		if scope == CatalogScope {
			s.Catalog = p.Grants
			if p.Role == RoleAdmin {
				s.Catalog = []event.Grant{{Repository: "*", Permissions: event.Permissions()}}
			}
			continue
		}
		repository, asked, ok := parseScope(scope)
		if !ok {
			continue // of what this registry does not have, nobody gets anything
		}
		var granted, refused []event.Permission
		for _, what := range asked {
			if p.May(what, repository) == nil {
				granted = append(granted, what)
			} else {
				refused = append(refused, what)
			}
		}
		s.Grants, s.Refused = add(s.Grants, repository, granted), add(s.Refused, repository, refused)
	}
	if s.Anonymous && len(s.Grants) == 0 && len(s.Catalog) == 0 {
		return s, ErrToken
	}
	return s, nil
}

func add(grants []event.Grant, repository string, permissions []event.Permission) []event.Grant {
	if len(permissions) == 0 {
		return grants
	}
	return append(grants, event.Grant{Repository: repository, Permissions: permissions})
}

// parseScope reads repository:NAME:ACTION,...; it may have a class, such as repository(plugin).
func parseScope(s string) (repository string, asked []event.Permission, ok bool) {
	kind, rest, _ := strings.Cut(s, ":")
	kind, _, _ = strings.Cut(kind, "(")
	at := strings.LastIndexByte(rest, ':')
	if kind != "repository" || at < 0 {
		return "", nil, false
	}
	repository = rest[:at]
	n, err := reference.WithName("registry.invalid/" + repository)
	if err != nil || reference.Path(n) != repository {
		return "", nil, false
	}
	for a := range strings.SplitSeq(rest[at+1:], ",") {
		asked = append(asked, actions[a]...)
	}
	return repository, inOrder(asked), true
}

// answer sends a session.
func (k *Keys) answer(w http.ResponseWriter, s Principal, now time.Time) error {
	token, err := k.Mint(s)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, map[string]any{"token": token, "access_token": token, "token_type": "Bearer",
		"expires_in": max(1, int(s.Expires.Sub(now).Seconds())), "issued_at": now.UTC().Format(time.RFC3339)})
}

// refuse answers with an error as the registry does.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	status, code, message := http.StatusInternalServerError, "UNKNOWN", "internal error"
	switch {
	case errors.Is(err, ErrToken):
		w.Header().Set("WWW-Authenticate", `Basic realm="kiln"`)
		status, code, message = http.StatusUnauthorized, "UNAUTHORIZED", "authentication required"
		if r.Header.Get("Authorization") != "" || r.Method == http.MethodPost {
			message = "the password is no token of this server, or has expired"
		}
	case errors.Is(err, errRequest):
		status, code, message = http.StatusBadRequest, "UNSUPPORTED", err.Error()
	}
	_ = reply(w, status, map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
}

func reply(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // who is gone hears nothing
	return nil
}
