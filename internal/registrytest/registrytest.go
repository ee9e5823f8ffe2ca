// Package registrytest starts a real registry for tests.
package registrytest

import (
	"crypto/subtle"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"kiln/internal/registry"
)

// Token is the password of every registry that Start starts, under any user name, and its bearer
// token. It allows everything.
const Token = "registrytest-token"

// A Registry is a running registry.
type Registry struct {
	Store *registry.Store
	URL   string // http://127.0.0.1:port
	Host  string // 127.0.0.1:port, as in references
	Token string
	Dir   string // where the store is
}

// Start serves a registry on a loopback port from t's temporary directory. It is stopped when t
// ends.
func Start(t testing.TB) *Registry { return StartWith(t, registry.Options{Reserve: -1}) }

// StartWith is Start with options for the store.
func StartWith(t testing.TB, opt registry.Options) *Registry {
	t.Helper()
	dir := t.TempDir()
	s, err := registry.Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.Handler(Authorizer{}))
	t.Cleanup(func() {
		srv.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Registry{Store: s, URL: srv.URL, Host: strings.TrimPrefix(srv.URL, "http://"), Token: Token, Dir: dir}
}

// An Authorizer lets in who knows Token.
type Authorizer struct{}

// Authorize implements [registry.Authorizer].
func (Authorizer) Authorize(r *http.Request, _ string, _ registry.Action) error {
	_, password, ok := r.BasicAuth()
	if !ok {
		password = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	}
	if subtle.ConstantTimeCompare([]byte(password), []byte(Token)) != 1 {
		return registry.ErrUnauthenticated
	}
	return nil
}
