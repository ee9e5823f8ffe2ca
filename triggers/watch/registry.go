package watch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"kiln/internal/graph"
)

// Bounds of what a registry may cost.
const (
	askTimeout      = 30 * time.Second // of one question, signing in included
	requestsPerHost = 8                // at once, polls and others
	maxManifest     = 4 << 20          // bytes
	maxETag         = 256              // bytes
	sessionAge      = 4 * time.Minute  // less than tokens live
	maxSessions     = 256              // of one registry
)

// accepted are the types of manifests that an image may be, indexes first.
var accepted = strings.Join([]string{
	string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
}, ", ")

// request asks the registry for an image. The error says why it could not be asked; what it answered, or
// that it did not, is an answer. The image is locked.
func (w *Watcher) request(ctx context.Context, n graph.Name, im *image) (answer, error) {
	p := split(n)
	h, err := w.enter(ctx, p.host)
	if err != nil {
		return answer{}, err
	}
	defer w.leave(h)
	timed, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	a := answer{asked: time.Now()}
	q := question{parts: p, known: im.known()}
	var res *http.Response
	session, err := w.session(timed, h, p)
	if err == nil {
		res, err = q.put(timed, session, &a)
	}
	switch {
	case err == nil:
		w.succeeded(h)
	case ctx.Err() != nil: // this caller's end is no answer for others
		return answer{}, context.Cause(ctx)
	default:
		a.err = w.failure(h, p, res, err)
	}
	return a, nil
}

// known is the last answer that the registry can say still holds.
func (im *image) known() answer {
	switch {
	case im.last.err == nil && im.last.etag != "":
		return im.last
	case im.state != nil && im.state.ETag != "":
		return answer{digest: im.state.Digest, etag: im.state.ETag}
	}
	return answer{}
}

// A question is which digest a tag has.
type question struct {
	parts
	known answer
}

// put asks with HEAD, and with GET if the registry does not answer that. The body of the response is
// closed; it is nil if there was none.
func (q question) put(ctx context.Context, session http.RoundTripper, a *answer) (*http.Response, error) {
	res, err := q.send(ctx, session, http.MethodHead, a)
	if err != nil || a.digest != "" {
		return res, err
	}
	return q.send(ctx, session, http.MethodGet, a)
}

// send makes one request and fills in the answer; without an error and a digest another method is needed.
func (q question) send(ctx context.Context, session http.RoundTripper, method string, a *answer) (*http.Response, error) {
	repo, err := q.repo()
	if err != nil {
		return nil, err
	}
	u := fmt.Sprintf("%s://%s/v2/%s/manifests/%s", repo.Scheme(), repo.RegistryStr(), repo.RepositoryStr(), q.tag)
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accepted)
	if q.known.etag != "" {
		req.Header.Set("If-None-Match", q.known.etag)
	}
	res, err := (&http.Client{Transport: session}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusNotModified && q.known.etag != "":
		a.digest, a.etag, a.mediaType = q.known.digest, q.known.etag, q.known.mediaType
		return res, nil
	case method == http.MethodHead && (res.StatusCode == http.StatusMethodNotAllowed || res.StatusCode == http.StatusNotImplemented):
		return res, nil
	}
	if err := transport.CheckError(res, http.StatusOK); err != nil {
		return res, err
	}
	return res, a.read(method, res)
}

// read takes the digest from a response.
func (a *answer) read(method string, res *http.Response) error {
	digest := res.Header.Get("Docker-Content-Digest")
	if _, err := v1.NewHash(digest); err != nil {
		digest = ""
	}
	if method == http.MethodGet {
		body, err := io.ReadAll(io.LimitReader(res.Body, maxManifest+1))
		if err != nil {
			return err
		}
		if len(body) > maxManifest {
			return fmt.Errorf("its manifest has more than %d bytes", maxManifest)
		}
		sum := sha256.Sum256(body)
		digest = "sha256:" + hex.EncodeToString(sum[:])
	}
	a.digest, a.mediaType = digest, res.Header.Get("Content-Type")
	if a.etag = res.Header.Get("ETag"); len(a.etag) > maxETag {
		a.etag = ""
	}
	return nil
}

// repo is how the library that signs in names the repository.
func (p parts) repo() (name.Repository, error) {
	return name.NewRepository(p.host + "/" + p.repository)
}

// A session is a connection that is signed in to pull from a repository.
type session struct {
	http.RoundTripper
	until time.Time
}

// session returns the session of a repository, signing in if there is none.
func (w *Watcher) session(ctx context.Context, h *host, p parts) (http.RoundTripper, error) {
	w.mu.Lock()
	s, ok := h.sessions[p.repository]
	w.mu.Unlock()
	if ok && time.Now().Before(s.until) {
		return s, nil
	}
	repo, err := p.repo()
	if err != nil {
		return nil, err
	}
	auth := authn.Anonymous
	if w.Login != nil {
		user, password, err := w.Login(ctx, p.host)
		if err != nil {
			return nil, fmt.Errorf("credential for registry %s: %w", p.host, err)
		}
		switch {
		case user != "":
			auth = &authn.Basic{Username: user, Password: password}
		case password != "":
			auth = authn.FromConfig(authn.AuthConfig{IdentityToken: password})
		}
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, w.client, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(h.sessions) >= maxSessions {
		clear(h.sessions)
	}
	s = session{rt, time.Now().Add(sessionAge)}
	h.sessions[p.repository] = s
	return s, nil
}

// retryAfter reads the header of that name, in seconds or as a date.
func retryAfter(res *http.Response, now time.Time) time.Duration {
	v := res.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(max(seconds, 0), int(maxWait/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(at.Sub(now), 0), maxWait)
	}
	return 0
}

// guard keeps requests from hosts that are not allowed, wherever a registry sends us.
type guard struct {
	inner http.RoundTripper
	allow func(host string) error
}

// RoundTrip implements [http.RoundTripper].
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.allow != nil {
		if err := g.allow(r.URL.Host); err != nil {
			return nil, fmt.Errorf("%s is not asked: %w", r.URL.Host, err)
		}
	}
	return g.inner.RoundTrip(r)
}

// CloseIdleConnections closes what is not in use.
func (g *guard) CloseIdleConnections() { (&http.Client{Transport: g.inner}).CloseIdleConnections() }

// newTransport returns a transport whose every wait is bounded.
func newTransport(dial func(ctx context.Context, network, address string) (net.Conn, error)) http.RoundTripper {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 64, MaxIdleConnsPerHost: 4,
		IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 20 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	if dial != nil { // which decides by the address: a proxy would hide that
		t.Proxy, t.DialContext = nil, dial
	}
	return t
}
