package auth

import (
	"net/http"
	"strings"
	"time"
)

// FromRequest returns the principal of a request: a Bearer token, or Basic authentication whose
// password is a token (the user name is free), as registry clients send it. Whoever shows nothing is
// anonymous; whoever shows something wrong gets ErrToken.
func (k *Keys) FromRequest(r *http.Request, now time.Time) (Principal, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return k.anybody(), nil
	}
	if _, password, ok := r.BasicAuth(); ok {
		return k.Verify(r.Context(), password, now)
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return Principal{}, ErrToken
	}
	return k.Verify(r.Context(), strings.TrimSpace(token), now)
}

// anybody is who shows no token.
func (k *Keys) anybody() Principal {
	return Principal{Name: "anonymous", Role: RoleAnonymous, Grants: k.Anonymous}
}
