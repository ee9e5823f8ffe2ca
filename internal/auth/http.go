package auth

import (
	"net/http"
	"time"
)

// FromRequest returns the principal of a request: a Bearer token, or Basic authentication whose
// password is a token (the user name is free), as registry clients send it.
func (k *Keys) FromRequest(r *http.Request, now time.Time) (Principal, error) {
	if _, password, ok := r.BasicAuth(); ok {
		return k.Verify(password, now)
	}
	const prefix = "Bearer "
	h := r.Header.Get("Authorization")
	if len(h) <= len(prefix) || h[:len(prefix)] != prefix {
		return Principal{}, ErrToken
	}
	return k.Verify(h[len(prefix):], now)
}
