package registry_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"kiln/internal/registry"
	"kiln/internal/registrytest"
)

// A guard records what it is asked and denies what it was told to.
type guard struct {
	mu    sync.Mutex
	deny  string
	asked []string
}

func (g *guard) Authorize(_ *http.Request, repository string, action registry.Action) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	a := strings.TrimSpace(string(action) + " " + repository)
	g.asked = append(g.asked, a)
	if a == g.deny {
		return fmt.Errorf("%w: %s", registry.ErrDenied, a)
	}
	return nil
}

func guarded(t *testing.T) (*registrytest.Registry, *guard) {
	t.Helper()
	s := openStore(t, t.TempDir())
	g := &guard{}
	srv := httptest.NewServer(s.Handler(g))
	t.Cleanup(srv.Close)
	return &registrytest.Registry{Store: s, URL: srv.URL}, g
}

func TestEveryRequestIsAuthorized(t *testing.T) {
	t.Parallel()
	r, g := guarded(t)
	d := digest.FromString("x").String()
	for request, action := range map[string]string{
		"GET /v2/":                       "pull",
		"GET /v2/_catalog":               "catalog",
		"GET /v2/a/b/tags/list":          "list a/b",
		"GET /v2/a/b/manifests/x":        "pull a/b",
		"HEAD /v2/a/b/manifests/x":       "pull a/b",
		"PUT /v2/a/b/manifests/x":        "push a/b",
		"DELETE /v2/a/b/manifests/x":     "delete a/b",
		"GET /v2/a/b/blobs/" + d:         "pull a/b",
		"HEAD /v2/a/b/blobs/" + d:        "pull a/b",
		"DELETE /v2/a/b/blobs/" + d:      "delete a/b",
		"POST /v2/a/b/blobs/uploads/":    "push a/b",
		"GET /v2/a/b/blobs/uploads/1":    "push a/b",
		"PATCH /v2/a/b/blobs/uploads/1":  "push a/b",
		"PUT /v2/a/b/blobs/uploads/1":    "push a/b",
		"DELETE /v2/a/b/blobs/uploads/1": "push a/b",
		"GET /v2/a/b/referrers/" + d:     "pull a/b",
		"PUT /v2/.kiln/fence/r1":         "control",
		"DELETE /v2/.kiln/fence/r1":      "control",
		"POST /v2/.kiln/publish/r1":      "publish r1",
		"GET /v2/A/tags/list":            "pull",
		"GET /v2/.kiln/publish":          "pull",
		"GET /v2/x":                      "pull",
	} {
		g.deny, g.asked = action, nil
		method, path, _ := strings.Cut(request, " ")
		_, b := want(t, r, http.StatusForbidden, method, path, nil)
		if method != "HEAD" && code(t, b) != "DENIED" || !slices.Equal(g.asked, []string{action}) {
			t.Errorf("%s: asked %q, want %q: %s", request, g.asked, action, b)
		}
	}
}

func TestBaseSaysThatThisIsARegistry(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	res, b := want(t, r, http.StatusOK, "GET", "/v2/", nil)
	if string(b) != "{}" || res.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
		t.Errorf("%v %s", res.Header, b)
	}
}

func TestMountNeedsToPullFromItsSource(t *testing.T) {
	t.Parallel()
	r, g := guarded(t)
	d := putBlob(t, r, "secret", []byte("x"))
	g.deny = "pull secret"
	for _, q := range []string{"?mount=" + d + "&from=secret", "?mount=" + d} {
		want(t, r, http.StatusAccepted, "POST", "/v2/mine/blobs/uploads/"+q, nil)
		want(t, r, http.StatusNotFound, "HEAD", "/v2/mine/blobs/"+d, nil)
	}
	putBlob(t, r, "open", []byte("x"))
	want(t, r, http.StatusCreated, "POST", "/v2/mine/blobs/uploads/?mount="+d, nil)
}

func TestNilAuthorizerRefusesEverything(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	openStore(t, t.TempDir()).Handler(nil).ServeHTTP(w, httptest.NewRequest("GET", "/v2/", nil))
	if w.Code != http.StatusUnauthorized {
		t.Errorf("status %d", w.Code)
	}
}

func TestNamesMayHoldTheProtocolsWords(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	for _, repo := range []string{"blobs", "blobs/uploads", "a/manifests", "tags/list", "a/blobs/uploads/b", "referrers", "v2"} {
		tinyPush(t, r, repo, "list", []byte(repo))
		fetch(t, r, repo, "list")
		if got := pages(t, r, "/v2/"+repo+"/tags/list"); !slices.Equal(got, []string{"list"}) {
			t.Errorf("tags of %s: %q", repo, got)
		}
	}
}

func TestRequestWaitsForTheOneThatHoldsItsUpload(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	loc := beginUpload(t, r, "a")
	body, slow := io.Pipe()
	first := make(chan int, 1)
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), "PATCH", r.URL+loc, body)
		if err != nil {
			t.Error(err)
		}
		req.SetBasicAuth("test", r.Token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			first <- 0
			return
		}
		if err := res.Body.Close(); err != nil {
			t.Error(err)
		}
		first <- res.StatusCode
	}()
	content := bytes.Repeat([]byte("x"), 100_000)
	if _, err := slow.Write(content); err != nil {
		t.Fatal(err)
	}
	for { // the status is told at once, though a request is under way
		res, _ := want(t, r, http.StatusNoContent, "GET", loc, nil)
		if res.Header.Get("Range") == "0-99999" {
			break
		}
	}
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) {
		if err := slow.Close(); err != nil {
			t.Error(err)
		}
	}})
	req, err := http.NewRequestWithContext(ctx, "PUT", r.URL+loc+"?digest="+digest.FromBytes(content).String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("test", r.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusCreated {
		t.Errorf("second request: status %d", res.StatusCode)
	}
	if status := <-first; status != http.StatusAccepted {
		t.Errorf("first request: status %d", status)
	}
}

func TestCancelStopsAnUploadUnderWay(t *testing.T) {
	t.Parallel()
	r := registrytest.Start(t)
	loc := beginUpload(t, r, "a")
	body := &endless{hook: func() { want(t, r, http.StatusNoContent, "DELETE", loc, nil) }, done: make(chan struct{})}
	req, err := http.NewRequestWithContext(t.Context(), "PATCH", r.URL+loc, body)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("test", r.Token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	<-body.done
	if err := res.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("the cancelled request ended with %d", res.StatusCode)
	}
	if n := files(t, r.Dir+"/uploads"); n != 0 {
		t.Errorf("%d files of uploads are left", n)
	}
}

// endless is a body without an end that calls hook once it is under way.
type endless struct {
	reads int
	hook  func()
	done  chan struct{}
}

func (e *endless) Read(p []byte) (int, error) {
	if e.reads++; e.reads == 20 {
		e.hook()
		close(e.done)
	}
	clear(p)
	return len(p), nil
}
