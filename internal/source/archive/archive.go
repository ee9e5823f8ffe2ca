// Package archive reads tarballs as build contexts: those at a URL, and those that an artifact of an OCI
// registry consists of.
//
// What is fetched is unpacked into a directory of its own, which is gone when the context of Open ends; a
// Fetcher removes what an earlier process has left. Neither the server nor the archive is trusted: the
// transfer, the unpacked size and the number of files are bounded, no name and no link leads out of the
// directory, and devices are left out. Addresses are the business of the Dial that a Fetcher is given.
//
// A credential is sent to the origin that it is for and not to where that redirects to, and is in no error.
package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	maxTransfer   = 4 << 30  // bytes of one archive
	maxUnpacked   = 16 << 30 // bytes of its files
	maxEntries    = 1_000_000
	maxRedirects  = 5
	headerTimeout = 2 * time.Minute
)

// ErrRefused says that a context is not allowed here, or that it is none.
var ErrRefused = errors.New("refused")

// Config says how archives are reached, and where they are unpacked.
type Config struct {
	Dir string // for unpacked files, created if it does not exist; one Fetcher at a time uses it
	// Dial connects to host:port, if that may be connected to.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Own is for requests to this server's registry. Nil means that it speaks plain HTTP.
	Own http.RoundTripper
	// PlainHTTP permits http:// for the host[:port] of a URL. Nil permits none.
	PlainHTTP func(authority string) bool
}

// A Fetcher opens archives. Its methods may be called concurrently.
type Fetcher struct {
	cfg       Config
	transport *http.Transport
}

// New empties the directory and returns a Fetcher that uses it.
func New(cfg Config) (*Fetcher, error) {
	if err := errors.Join(os.RemoveAll(cfg.Dir), os.MkdirAll(cfg.Dir, 0o700)); err != nil {
		return nil, fmt.Errorf("archives: %w", err)
	}
	return &Fetcher{cfg: cfg, transport: &http.Transport{DialContext: cfg.Dial, TLSHandshakeTimeout: 15 * time.Second,
		ResponseHeaderTimeout: headerTimeout, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10,
		DisableCompression: true, ForceAttemptHTTP2: true}}, nil
}

// Close closes idle connections and removes what is unpacked.
func (f *Fetcher) Close() error {
	f.transport.CloseIdleConnections()
	return os.RemoveAll(f.cfg.Dir)
}

// Open fetches the tarball at a URL, plain or compressed with gzip. The secret is a token or user:password,
// empty for none. The source lives until ctx ends.
func (f *Fetcher) Open(ctx context.Context, address, secret string) (*Source, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("tarball: %w: not an http or https URL without a credential", ErrRefused)
	}
	u.Fragment = ""
	s, err := f.open(ctx, u, secret)
	if err != nil {
		return nil, fmt.Errorf("tarball %s: %w", shown(u), tidy(ctx, err))
	}
	return s, nil
}

func (f *Fetcher) open(ctx context.Context, u *url.URL, secret string) (*Source, error) {
	if err := f.checkScheme(u); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if user, password, ok := strings.Cut(secret, ":"); ok {
		req.SetBasicAuth(user, password)
	} else if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret)
	}
	resp, err := (&http.Client{Transport: f.transport, CheckRedirect: f.checkRedirect}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answers %s", resp.Status)
	}
	key := sha256.Sum256([]byte(u.String()))
	d, err := f.begin(hex.EncodeToString(key[:]))
	if err != nil {
		return nil, err
	}
	return d.finish(ctx, d.unpack(ctx, resp.Body))
}

func (f *Fetcher) checkScheme(u *url.URL) error {
	if u.Scheme == "http" && (f.cfg.PlainHTTP == nil || !f.cfg.PlainHTTP(u.Host)) {
		return fmt.Errorf("%w: http:// is not encrypted", ErrRefused)
	}
	return nil
}

func (f *Fetcher) checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("%w: more than %d redirects", ErrRefused, maxRedirects)
	case req.URL.Scheme != "https" && (req.URL.Scheme != "http" || via[len(via)-1].URL.Scheme != "http"):
		return fmt.Errorf("%w: redirect to a URL of scheme %s", ErrRefused, req.URL.Scheme)
	}
	if req.URL.Scheme != via[0].URL.Scheme || req.URL.Host != via[0].URL.Host {
		req.Header.Del("Authorization")
	}
	return f.checkScheme(req.URL)
}

// shown is a URL without its query, where stores have their signatures.
func shown(u *url.URL) string {
	short := *u
	short.RawQuery = ""
	return short.String()
}

// tidy drops the URL from errors of requests, and says why ctx ended.
func tidy(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err
	}
	return err
}

// limited is a reader that fails behind its limit, and says how much that is.
type limited struct {
	r    io.Reader
	left int64
	what string
}

func (l *limited) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, fmt.Errorf("%w: %s", ErrRefused, l.what)
	}
	n, err := l.r.Read(b[:min(int64(len(b)), l.left)])
	l.left -= int64(n)
	return n, err
}
