package git

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	userAgent    = "git/kiln" // some forges answer only what begins with git/
	infoRefs     = "/info/refs"
	maxRedirects = 5
)

// httpClient returns the client of all repositories. It follows redirects as git does: of the first
// request only, never from https to http, with the credential only to the origin it is for.
func (m *Mirrors) httpClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: m.dial, TLSClientConfig: &tls.Config{RootCAs: m.cfg.RootCAs, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: 2 * time.Minute, IdleConnTimeout: 90 * time.Second,
			MaxIdleConnsPerHost: 4, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true, DisableCompression: true,
		},
		CheckRedirect: m.checkRedirect,
	}
}

func (m *Mirrors) checkRedirect(req *http.Request, via []*http.Request) error {
	first, last := via[0], via[len(via)-1]
	switch {
	case first.Method != http.MethodGet || len(via) > maxRedirects:
		return fmt.Errorf("%w: redirect to %s", ErrRefused, req.URL.Host)
	case req.URL.Scheme != "https" && req.URL.Scheme != "http", last.URL.Scheme == "https" && req.URL.Scheme != "https":
		return fmt.Errorf("%w: redirect from %s to %s://%s", ErrRefused, last.URL.Scheme, req.URL.Scheme, req.URL.Host)
	case !strings.HasSuffix(req.URL.Path, infoRefs):
		return fmt.Errorf("%w: redirect to something that is no repository, at %s (a page to log in?)", ErrDenied, req.URL.Host)
	}
	if err := m.checkScheme(req.URL.Scheme, req.URL.Host); err != nil {
		return err
	}
	req.URL.User = nil
	for _, hop := range append(via[1:], req) {
		if !sameOrigin(first.URL, hop.URL) {
			req.Header.Del("Authorization")
		}
	}
	return nil
}

func sameOrigin(a, b *url.URL) bool { return a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host) }

// httpWire is git's smart protocol over HTTP.
type httpWire struct {
	m    *Mirrors
	base *url.URL // where the first request was answered
	cred Credential
	auth bool
}

func (m *Mirrors) newHTTP(r remote, cred Credential) (*httpWire, error) {
	if err := m.checkScheme(r.scheme, r.authority()); err != nil {
		return nil, err
	}
	base, err := url.Parse(r.String())
	if err != nil {
		return nil, fmt.Errorf("%w: repository URL cannot be parsed", ErrRefused)
	}
	return &httpWire{m: m, base: base, cred: cred, auth: cred.Username != "" || cred.Password != ""}, nil
}

func (w *httpWire) advertise(ctx context.Context) (io.ReadCloser, error) {
	u := w.at(infoRefs)
	u.RawQuery = "service=git-upload-pack"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("%w: repository URL cannot be requested", ErrRefused)
	}
	resp, err := w.do(req)
	if err != nil {
		return nil, err
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/x-git-upload-pack-advertisement" {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: the answer is %q, not that of a git server with the smart protocol", ErrRepositoryNotFound, clip(ct, 60))
	}
	final := *resp.Request.URL
	final.RawQuery, final.User = "", nil
	final.RawPath = strings.TrimSuffix(final.EscapedPath(), infoRefs)
	if final.Path, err = url.PathUnescape(final.RawPath); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("%w: redirect to a URL that cannot be parsed", ErrRefused)
	}
	w.auth = w.auth && sameOrigin(&final, w.base)
	w.base = &final
	return resp.Body, nil
}

func (w *httpWire) request(ctx context.Context, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.at("/git-upload-pack").String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-git-upload-pack-request")
	req.Header.Set("Accept", "application/x-git-upload-pack-result")
	req.Header["Idempotency-Key"] = []string{} // not sent: it may be repeated if the server has just hung up an idle connection
	resp, err := w.do(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (w *httpWire) at(p string) *url.URL {
	u := *w.base
	u.RawPath = u.EscapedPath() + p
	u.Path += p
	return &u
}

func (w *httpWire) do(req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", userAgent)
	if w.auth {
		req.SetBasicAuth(w.cred.basic())
	}
	resp, err := w.m.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the URL is in our own message
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	resp.Body.Close() // what it says may echo the credential
	return nil, w.refusal(resp)
}

// refusal explains a status. Forges answer 404, or 401, for a private repository.
func (w *httpWire) refusal(resp *http.Response) error {
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized && w.auth:
		return fmt.Errorf("%w: %s does not accept the credential (401); check that the token is valid and may read the repository", ErrDenied, resp.Request.URL.Host)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%w: %s asks for a credential (401); the repository is private or does not exist", ErrDenied, resp.Request.URL.Host)
	case code == http.StatusForbidden:
		return fmt.Errorf("%w: %s forbids it (403); check what the token may read", ErrDenied, resp.Request.URL.Host)
	case (code == http.StatusNotFound || code == http.StatusGone) && w.auth:
		return fmt.Errorf("%w (%d): it does not exist, or the credential may not see it", ErrRepositoryNotFound, code)
	case code == http.StatusNotFound || code == http.StatusGone:
		return fmt.Errorf("%w (%d): it does not exist, or it is private and needs a credential", ErrRepositoryNotFound, code)
	case code >= 300 && code < 400:
		return fmt.Errorf("%w: redirect without a target (%d)", ErrRefused, code)
	}
	return fmt.Errorf("%w: %s answers %s", ErrUnavailable, resp.Request.URL.Host, clip(resp.Status, 60))
}

func (w *httpWire) close() {}
