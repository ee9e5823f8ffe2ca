package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"kiln/internal/api"
	"kiln/internal/apiclient"
	"kiln/internal/audit"
	"kiln/internal/auth"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/registry"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// A gate is a registry behind its access control, and the API.
type gate struct {
	*httptest.Server
	keys  *auth.Keys
	store *store.Store
	uses  *tokenUses
	admin string // token
}

func newGate(t *testing.T, anonymous ...string) *gate {
	t.Helper()
	dir := t.TempDir()
	keys, err := auth.Load(dir)
	must(t, err)
	keys.Anonymous, err = auth.AnonymousPull(anonymous)
	must(t, err)
	token, err := os.ReadFile(filepath.Join(dir, auth.AdminTokenFile))
	must(t, err)
	images, err := registry.Open(filepath.Join(dir, "registry"), registry.Options{Reserve: -1})
	must(t, err)
	g := &gate{keys: keys, admin: strings.TrimSpace(string(token))}
	b := natstest.Start(t)
	g.store, err = store.Open(t.Context(), b.JetStream(), time.Minute)
	must(t, err)
	identity, err := secret.NewIdentity()
	must(t, err)
	recorded := audit.New(b, slog.New(slog.DiscardHandler))
	book := newTokenBook(g.store, slog.Default())
	book.attach(keys)
	g.uses = book.uses
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan error, 2)
	go func() { followed <- book.run(ctx) }()
	go func() { followed <- recorded.Run(ctx) }()
	mux := mount(registryEntrances(images, keys, g.store, recorded)...)
	mux.Handle("/api/", (&api.Server{Bus: b, Recipient: identity.Recipient(), Keys: keys, Store: g.store, Audit: recorded, Registry: images, TokenDeleted: book.forget, Contexts: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler),
		Status: func(context.Context) apiclient.Status { return apiclient.Status{} }}).Handler())
	g.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		g.Close()
		cancel()
		if err := errors.Join(<-followed, <-followed); err != nil {
			t.Error(err)
		}
		if err := images.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (g *gate) host() string { return strings.TrimPrefix(g.URL, "http://") }

// kiln runs a command with a token.
func (g *gate) kiln(t *testing.T, token string, args ...string) result {
	t.Helper()
	return kiln(t.Context(), map[string]string{envServer: g.URL, envToken: token, envData: os.DevNull}, args...)
}

// token makes a token and returns its password.
func (g *gate) token(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := g.kiln(t, g.admin, append([]string{"token", "create", name}, args...)...)
	if r.code != 0 {
		t.Fatalf("kiln token create %q: %+v", args, r)
	}
	return strings.TrimSpace(r.out)
}

// do sends a request with an Authorization header, and returns status, error code and challenge.
func (g *gate) do(t *testing.T, authorization, method, path string) (status int, code, challenge string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.URL+path, nil)
	must(t, err)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := http.DefaultClient.Do(req)
	must(t, err)
	defer res.Body.Close()
	var body struct {
		Errors []struct{ Code string }
	}
	if b, err := io.ReadAll(res.Body); err == nil && res.StatusCode >= 400 && json.Unmarshal(b, &body) == nil && len(body.Errors) == 1 {
		code = body.Errors[0].Code
	}
	return res.StatusCode, code, res.Header.Get("WWW-Authenticate")
}

// session gets a session from the token endpoint as clients do. An empty password is nobody's.
func (g *gate) session(t *testing.T, password string, scopes ...string) (token string, status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", g.URL+auth.TokenPath+"?"+url.Values{"service": {"kiln"}, "scope": scopes}.Encode(), nil)
	must(t, err)
	if password != "" {
		req.SetBasicAuth("somebody", password)
	}
	return g.sessionOf(t, req)
}

func (g *gate) sessionOf(t *testing.T, req *http.Request) (token string, status int) {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	must(t, err)
	defer res.Body.Close()
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || answer.Token != answer.AccessToken || (answer.ExpiresIn > 0) != (res.StatusCode == 200) {
		t.Errorf("%s %s: %+v, %v", req.Method, req.URL.Path, answer, err)
	}
	return answer.Token, res.StatusCode
}

func (g *gate) ref(t *testing.T, s string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(g.host() + "/" + s)
	must(t, err)
	return ref
}

func user(token string) remote.Option {
	return remote.WithAuth(&authn.Basic{Username: "somebody", Password: token})
}

// push pushes an image as the administrator and returns its digest.
func (g *gate) push(t *testing.T, s string) string {
	t.Helper()
	img, err := random.Image(100, 1)
	must(t, err)
	must(t, remote.Write(g.ref(t, s), img, user(g.admin)))
	d, err := img.Digest()
	must(t, err)
	return d.String()
}

// refusedWith is the status of a client's error; 0 for none.
func refusedWith(err error) int {
	var e *transport.Error
	if errors.As(err, &e) {
		return e.StatusCode
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestTokenCommands(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	r := g.kiln(t, g.admin, "token", "create", "ci", "--repo", "team/=push", "--repo", "base=content/read", "--expires", "30d")
	if r.code != 0 || !strings.HasPrefix(r.out, "kt_") || strings.Count(r.out, "\n") != 1 || !strings.Contains(r.err, "not shown again") || strings.Contains(r.err, "kt_") {
		t.Fatalf("create: %+v", r)
	}
	password := strings.TrimSpace(r.out)
	if r := g.kiln(t, g.admin, "token", "create", "ci", "--repo", "*=pull"); r.code == 0 || !strings.Contains(r.err, "kiln token delete ci") {
		t.Errorf("the same name again: %+v", r)
	}
	var list apiclient.Tokens
	r = g.kiln(t, g.admin, "token", "list", "-o", "json")
	must(t, json.Unmarshal([]byte(r.out), &list))
	want := []event.Grant{{Repository: "team/*", Permissions: []event.Permission{event.ContentRead, event.ContentWrite, event.MetadataRead}},
		{Repository: "base", Permissions: []event.Permission{event.ContentRead}}}
	if len(list.Tokens) != 1 || list.Tokens[0].Name != "ci" || !slices.EqualFunc(list.Tokens[0].Grants, want, func(a, b event.Grant) bool {
		return a.Repository == b.Repository && slices.Equal(a.Permissions, b.Permissions)
	}) || list.Tokens[0].Expires.Sub(list.Tokens[0].Created) != 30*24*time.Hour {
		t.Errorf("list: %s", r.out)
	}
	show := g.kiln(t, g.admin, "token", "show", "ci")
	if show.code != 0 || !strings.Contains(show.out, "team/*   content/read content/write metadata/read") {
		t.Errorf("show: %+v", show)
	}
	stored, _, err := g.store.Tokens.Get(t.Context(), auth.TokenKey("ci"))
	must(t, err)
	record, err := json.Marshal(stored)
	must(t, err)
	if secret := password[strings.LastIndexByte(password, '_')+1:]; strings.Contains(string(record)+r.out+show.out, secret) {
		t.Error("the password is stored, or shown again")
	}
	if status, _, _ := g.do(t, "Bearer "+password, "GET", "/v2/"); status != 200 {
		t.Errorf("the token is answered %d", status)
	}
	if r := g.kiln(t, g.admin, "token", "delete", "ci"); r.code != 0 {
		t.Errorf("delete: %+v", r)
	}
	if status, code, _ := g.do(t, "Bearer "+password, "GET", "/v2/"); status != 401 || code != "UNAUTHORIZED" {
		t.Errorf("the deleted token is answered %d %s", status, code)
	}
	for _, args := range [][]string{{"create", "x"}, {"create", "-x", "--repo", "a=pull"}, {"create", "x", "--repo", "a=read"}, {"create", "x", "--repo", "kiln/=pull"},
		{"create", "x", "--repo", "a=pull", "--expires", "1ms"}, {"create", "a b", "--repo", "a=pull"}, {"delete", "ci"}, {"show", "ci"}} {
		if r := g.kiln(t, g.admin, append([]string{"token"}, args...)...); r.code == 0 {
			t.Errorf("kiln token %q is accepted", args)
		}
	}
}

// What each permission is for, of a token shown as it is and in a session that asks for everything.
func TestPermissions(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	d := g.push(t, "team/app:1")
	g.push(t, "team/app:gone")
	g.push(t, "other/app:1")
	for _, c := range []struct {
		method, path string
		permission   event.Permission
		status       int
	}{
		{"GET", "/v2/team/app/manifests/1", event.ContentRead, 200},
		{"HEAD", "/v2/team/app/manifests/" + d, event.ContentRead, 200},
		{"GET", "/v2/team/app/referrers/" + d, event.ContentRead, 200},
		{"GET", "/v2/team/app/tags/list", event.MetadataRead, 200},
		{"POST", "/v2/team/app/blobs/uploads/", event.ContentWrite, 202},
		{"DELETE", "/v2/team/app/manifests/gone", event.ContentDelete, 202},
		{"GET", "/api/v1/registry/tags?repository=team/app", event.MetadataRead, 200},
	} {
		for _, has := range event.Permissions() {
			password := g.token(t, "t", "--repo", "team/*="+string(has))
			session, _ := g.session(t, password, "repository:team/app:*", "repository:other/app:pull,push,delete")
			for kind, authorization := range map[string]string{"token": "Bearer " + password, "session": "Bearer " + session} {
				if kind == "session" && (strings.HasPrefix(c.path, "/api/") || c.method == "DELETE" && has == c.permission) {
					continue // the API has no sessions, and what is deleted is gone
				}
				want := 403
				if has == c.permission {
					want = c.status
				}
				if status, code, _ := g.do(t, authorization, c.method, c.path); status != want || code != "" && code != "DENIED" {
					t.Errorf("%s with %s: %s %s = %d %s, want %d", kind, has, c.method, c.path, status, code, want)
				}
				other := strings.Replace(c.path, "team/app", "other/app", 1)
				if status, _, _ := g.do(t, authorization, c.method, other); status != 403 {
					t.Errorf("%s with %s: %s %s = %d", kind, has, c.method, other, status)
				}
			}
			g.kiln(t, g.admin, "token", "delete", "t")
		}
	}
}

func TestTokensAndTheAPI(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	g.push(t, "team/app:1")
	g.push(t, "other/app:1")
	reader := g.token(t, "reader", "--repo", "team/*=pull")
	keeper := g.token(t, "keeper", "--repo", "team/*=metadata/write")
	if r := g.kiln(t, reader, "repo", "list"); r.code != 0 || !strings.Contains(r.out, "team/app") || strings.Contains(r.out, "other/app") {
		t.Errorf("kiln repo list: %+v", r)
	}
	for _, c := range []struct {
		token string
		ok    bool
		args  []string
	}{
		{reader, true, []string{"tag", "list", "team/app"}}, {reader, false, []string{"tag", "list", "other/app"}},
		{reader, true, []string{"manifest", "list-metadata", "team/app"}}, {keeper, false, []string{"tag", "list", "team/app"}},
		{reader, false, []string{"tag", "lock", "team/app:1"}}, {keeper, true, []string{"tag", "lock", "team/app:1"}},
		{keeper, true, []string{"tag", "unlock", "team/app:1"}}, {keeper, false, []string{"tag", "lock", "other/app:1"}},
		{reader, false, []string{"rollback", "team/app:1"}}, {reader, false, []string{"runs"}}, {reader, false, []string{"token", "list"}},
		{reader, false, []string{"manifest", "delete", "--yes", "team/app:1"}}, {reader, false, []string{"secret", "list"}}, {reader, false, []string{"gc"}},
	} {
		if r := g.kiln(t, c.token, c.args...); (r.code == 0) != c.ok || !c.ok && !strings.Contains(r.err, "token reader") && !strings.Contains(r.err, "token keeper") {
			t.Errorf("kiln %q: %+v, want success %t", c.args, r, c.ok)
		}
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	g.push(t, "team/app:1")
	g.push(t, "other/app:1")
	password := g.token(t, "ci", "--repo", "team/*=push")

	status, code, challenge := g.do(t, "", "GET", "/v2/team/app/manifests/1")
	if want := `Bearer realm="` + g.URL + `/v2/token",service="kiln",scope="repository:team/app:pull"`; status != 401 || code != "UNAUTHORIZED" || challenge != want {
		t.Errorf("without a token: %d %s %s, want %s", status, code, challenge, want)
	}
	session, _ := g.session(t, password, "repository:team/app:pull", "repository:other/app:pull repository:team/*:pull", "registry:catalog:*", "plugin:x:y", "x", "repository:a")
	for path, want := range map[string]struct {
		status int
		why    string
	}{
		"GET /v2/":                                             {200, ""},
		"GET /v2/_catalog":                                     {200, ""},
		"GET /v2/team/app/manifests/1":                         {200, ""},
		"GET /v2/other/app/manifests/1":                        {403, ""}, // asked for and not permitted
		"POST /v2/team/app/blobs/uploads/":                     {401, `scope="repository:team/app:pull,push",error="insufficient_scope"`},
		"POST /v2/team/app/blobs/uploads/?mount=x&from=team/x": {401, `scope="repository:team/app:pull,push repository:team/x:pull",error="insufficient_scope"`},
		"GET /v2/team/x/tags/list":                             {401, `scope="repository:team/x:pull",error="insufficient_scope"`},
		"POST /v2/.kiln/publish/ra":                            {403, ""},
		"GET /v2/kiln/contexts/manifests/x":                    {401, "insufficient_scope"},
		"DELETE /v2/team/app/manifests/1":                      {401, `scope="repository:team/app:delete",error="insufficient_scope"`},
		"GET " + auth.TokenPath:                                {401, "Basic"}, // a session makes no other
		"GET /api/v1/registry/repositories?":                   {403, ""},
	} {
		method, path, _ := strings.Cut(path, " ")
		if status, _, challenge := g.do(t, "Bearer "+session, method, path); status != want.status || !strings.Contains(challenge, want.why) {
			t.Errorf("%s %s: %d %s, want %d %s", method, path, status, challenge, want.status, want.why)
		}
	}
	// The forms of OAuth2.
	for _, form := range []url.Values{{"grant_type": {"password"}, "username": {"ci"}, "password": {password}}, {"grant_type": {"refresh_token"}, "refresh_token": {password}}} {
		form.Set("scope", "repository:team/app:pull,push repository:team/b:pull")
		req, err := http.NewRequestWithContext(t.Context(), "POST", g.URL+auth.TokenPath, strings.NewReader(form.Encode()))
		must(t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		token, status := g.sessionOf(t, req)
		if pushed, _, _ := g.do(t, "Bearer "+token, "POST", "/v2/team/app/blobs/uploads/"); status != 200 || pushed != 202 {
			t.Errorf("session of %v: %d, upload %d", form, status, pushed)
		}
	}
	for _, wrong := range []string{"wrong", password + "x", strings.Replace(password, "kt_", "kt_0", 1), session, "kt_", "kt_" + auth.TokenKey("ci") + "_", "kt_" + auth.TokenKey("nobody") + "_x"} {
		if _, status := g.session(t, wrong, "repository:team/app:pull"); status != 401 {
			t.Errorf("session for %q: %d", wrong, status)
		}
	}
	if _, status := g.session(t, "", "repository:team/app:pull"); status != 401 {
		t.Errorf("session for nobody: %d", status)
	}
	if _, status := g.session(t, password, slices.Repeat([]string{"repository:a:pull"}, 65)...); status != 400 {
		t.Errorf("session with 65 scopes: %d", status)
	}
	// A session ends with its token, even if another one has its name.
	g.kiln(t, g.admin, "token", "delete", "ci")
	for _, state := range []string{"deleted", "replaced"} {
		if status, _, challenge := g.do(t, "Bearer "+session, "GET", "/v2/team/app/manifests/1"); status != 401 || !strings.Contains(challenge, "invalid_token") {
			t.Errorf("session of a token that is %s: %d %s", state, status, challenge)
		}
		if state == "deleted" {
			g.token(t, "ci", "--repo", "team/*=push")
		}
	}
}

// A run's own token publishes for that run alone, and only a server's processes move fences.
func TestPublishingOverTheNetwork(t *testing.T) {
	g := newGate(t)
	token := func(p auth.Principal) string {
		t.Helper()
		p.Expires = time.Now().Add(time.Hour)
		s, err := g.keys.Mint(p)
		must(t, err)
		return s
	}
	own := token(publishingAccess("ra", time.Time{}))
	server := token(auth.Principal{Name: "server", Role: auth.RoleServer})
	staging := token(stagingAccess("runs", time.Time{}))
	c := registry.NewClient(g.URL, nil)
	if err := c.RaiseFence(t.Context(), server, "ra", 1); err != nil {
		t.Errorf("a process of the server raises a fence: %v", err)
	}
	for name, tok := range map[string]string{"of the run": own, "that stages": staging, "of nobody": "x"} {
		if err := c.RaiseFence(t.Context(), tok, "ra", 2); !errors.Is(err, registry.ErrDenied) && !errors.Is(err, registry.ErrUnauthenticated) {
			t.Errorf("a token %s raises a fence: %v", name, err)
		}
		if got, err := c.Fences(t.Context(), tok, ""); !errors.Is(err, registry.ErrDenied) && !errors.Is(err, registry.ErrUnauthenticated) {
			t.Errorf("a token %s lists fences: %v, %v", name, got, err)
		}
	}
	publish := func(tok, run string) error {
		_, err := c.Publish(t.Context(), tok, registry.Publication{Run: run, Attempt: 1, Step: "push",
			Tags: []registry.Tag{{Repository: "app", Tag: run, Digest: "sha256:" + strings.Repeat("0", 64)}}})
		return err
	}
	if err := publish(own, "ra"); errors.Is(err, registry.ErrDenied) || err == nil {
		t.Errorf("an image that is not there, with the run's token: %v", err)
	}
	for name, c := range map[string]struct{ token, run string }{
		"another run": {own, "rb"}, "a token that stages": {staging, "ra"}, "a process of the server": {server, "ra"},
	} {
		if err := publish(c.token, c.run); !errors.Is(err, registry.ErrDenied) {
			t.Errorf("%s: %v, want %v", name, err, registry.ErrDenied)
		}
	}
	if _, err := c.Resolve(t.Context(), staging, "app", "nothere"); !errors.Is(err, registry.ErrManifestUnknown) {
		t.Errorf("an image that is not there: %v", err)
	}
	if _, err := c.Resolve(t.Context(), own, "app", "nothere"); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("a token that only publishes reads: %v", err)
	}
}
