package buildkit_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"kiln/internal/buildkit/daemon"
	"kiln/internal/gittest"
	"kiln/internal/netguard"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
)

// An attacked machine is what an attacker's Dockerfile tries to reach: a server that is allowed by the name localhost,
// and is a secret one by any other.
type attacked struct {
	port    string
	secrets atomic.Int64 // requests that should not have come
}

func startAttacked(t *testing.T) *attacked {
	t.Helper()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "good.git")
	repo.Write("f.txt", "from git", 0o644)
	repo.Commit("one")
	git := gittest.Serve(t, root, "", "")
	a := &attacked{}
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "from http") })
	mux.HandleFunc("/secret", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the secret") })
	mux.HandleFunc("/hop/", func(w http.ResponseWriter, r *http.Request) {
		target := "http://127.0.0.1:" + a.port + strings.TrimPrefix(r.URL.RequestURI(), "/hop")
		http.Redirect(w, r, target, http.StatusFound)
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		target := "http://127.0.0.1:" + a.port + "/secret"
		if strings.Contains(r.URL.Path, "/token/") {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+target+`",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, target, http.StatusTemporaryRedirect)
	})
	mux.Handle("/", git)
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host, _, _ := net.SplitHostPort(r.Host); host != "localhost" {
			a.secrets.Add(1)
			t.Log(r.Method, r.Host, r.URL)
		}
		mux.ServeHTTP(w, r)
	}))
	_ = srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	_, a.port, _ = net.SplitHostPort(l.Addr().String())

	evil := gittest.NewRepo(t, root, "evil.git")
	evil.Write(".gitmodules", "[submodule \"m\"]\n\tpath = m\n\turl = http://127.0.0.1:"+a.port+"/good.git\n", 0o644)
	evil.Git("add", ".gitmodules")
	evil.Git("update-index", "--add", "--cacheinfo", "160000,"+repo.Git("rev-parse", "HEAD")+",m")
	evil.Git("-c", "user.name=eve", "-c", "user.email=eve@evil.test", "commit", "-q", "-m", "one")
	evil.Git("push", "-q", "origin", "HEAD:main")
	return a
}

// ownAddress is an address of this machine that is not loopback.
func ownAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && !netguard.Public(p.Addr()) {
			return p.Addr().String()
		}
	}
	return "10.0.0.1" // refused before anything is sent
}

// TestDockerfilesFetchFromPublicAddressesOnly builds an attacker's Dockerfiles: once with the check of what a
// Dockerfile names, once without it, as if a name had changed its address in between.
func TestDockerfilesFetchFromPublicAddressesOnly(t *testing.T) {
	e := newEnvAt(t, solvertest.StartDaemonConfig(t, daemon.Config{AllowSources: []string{"localhost"}}))
	e.registry = strings.Replace(e.registry, "127.0.0.1", "localhost", 1)
	a := startAttacked(t)
	testRegistriesAtPublicAddresses(t, e, a)
	guard := netguard.Guard{Allow: func(host string, _ netip.Addr) bool { return host == "localhost" }}
	for name, fetch := range map[string]func(context.Context, string) error{"checked": guard.Host, "evaded": nil} {
		try := func(url string) (string, error) {
			s := e.open(t, solve.SessionConfig{Fetch: fetch})
			b := solve.Build{Step: "b", DockerfileInline: []byte("FROM scratch\nADD " + url + " /data/x\n"), Staging: e.staging()}
			built, err := s.Build(t.Context(), b, newJournal().log)
			if err != nil {
				return "", err
			}
			return data(t, built), nil
		}
		local := "http://localhost:" + a.port
		for url, want := range map[string]string{local + "/ok": "x -rw------- from http", local + "/good.git": "x/f.txt -rw-r--r-- from git"} {
			if got, err := try(url); err != nil || got != want {
				t.Errorf("%s: %s: %q, %v", name, url, got, err)
			}
		}
		for _, url := range []string{
			"http://127.0.0.1:" + a.port + "/secret", "http://[::ffff:127.0.0.1]:" + a.port + "/secret", "http://0.0.0.0:" + a.port + "/secret",
			"http://" + ownAddress(t) + ":" + a.port + "/secret", "http://169.254.169.254/latest/meta-data", local + "/hop/secret",
			"http://127.0.0.1:" + a.port + "/good.git", local + "/hop/good.git", local + "/evil.git",
		} {
			got, err := try(url)
			if err == nil {
				t.Errorf("%s: %s was fetched: %s", name, url, got)
			} else if fetch != nil && !strings.Contains(url, "localhost") && !strings.Contains(err.Error(), "refused address") {
				t.Errorf("%s: %s: %v", name, url, err)
			}
		}
	}
	if n := a.secrets.Load(); n != 0 {
		t.Errorf("%d requests came through", n)
	}
}

// testRegistriesAtPublicAddresses has an attacker's builds and steps use registries, which send them on, too.
func testRegistriesAtPublicAddresses(t *testing.T, e *env, a *attacked) {
	t.Helper()
	local := "localhost:" + a.port
	refused := func(what string, err error) {
		if err == nil || !strings.Contains(err.Error(), "refused address") || !strings.Contains(err.Error(), "kiln serve --allow-source") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, image := range []string{"127.0.0.1:" + a.port + "/x:1", ownAddress(t) + ":" + a.port + "/x:1", "169.254.169.254/x:1", "[::1]:" + a.port + "/x:1",
		local + "/hop/x:1", local + "/token/x:1"} {
		s := e.open(t, solve.SessionConfig{})
		_, err := s.Build(t.Context(), solve.Build{Step: "b", DockerfileInline: []byte("FROM " + image + "\n"), Staging: e.staging()}, newJournal().log)
		refused("FROM "+image, err)
		_, err = s.Run(t.Context(), solve.Container{Step: "c", Image: image, Args: []string{"x"}}, newJournal().log)
		refused("a step of "+image, err)
	}
	b := solve.Build{Step: "b", DockerfileInline: []byte("FROM scratch\nADD http://" + local + "/ok /x\n"), Staging: e.staging(), CacheTo: []solve.Cache{{Ref: "127.0.0.1:" + a.port + "/x:1"}}}
	s := e.open(t, solve.SessionConfig{})
	_, err := s.Build(t.Context(), b, newJournal().log)
	refused("--cache-to", err)
	b.CacheTo, b.CacheFrom = nil, []solve.Cache{{Ref: "127.0.0.1:" + a.port + "/x:1"}}
	if _, err := s.Build(t.Context(), b, newJournal().log); err != nil { // a cache that is not to be had is none
		t.Errorf("--cache-from: %v", err)
	}
}
