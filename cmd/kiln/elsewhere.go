package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"kiln/internal/apiclient"
	"kiln/internal/auth"
	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/source"
	"kiln/internal/store"
	"kiln/scheduler"
	"kiln/worker"
)

// registryAway is what clients are told while the registry's process is not reached.
const registryAway = "the registry cannot be reached now"

// serverTokenLife is how long what processes of a server show each other is valid.
const serverTokenLife = 10 * time.Minute

// An elsewhere is the co-located registry in another process, as that process tells of it. It is an
// http.RoundTripper: requests to the registry by its canonical name are sent to where it is.
type elsewhere struct {
	records  *store.Bucket[event.Registry]
	certFile string // where the registry's certificate is kept for the build daemon
	log      *slog.Logger
	known    chan struct{} // closed when the first record is there

	mu        sync.RWMutex
	at        event.Registry
	url       *url.URL
	transport *http.Transport
}

func newElsewhere(records *store.Bucket[event.Registry], certFile string, log *slog.Logger) *elsewhere {
	return &elsewhere{records: records, certFile: certFile, log: log, known: make(chan struct{})}
}

// run follows the record until ctx ends. What was told last holds while the registry's process is away.
func (e *elsewhere) run(ctx context.Context) error {
	again := time.NewTicker(bookAgain)
	defer again.Stop()
	for {
		_ = e.records.Watch(ctx, theRegistry, func(r *store.Entry[event.Registry]) bool {
			if r != nil && !r.Gone {
				e.set(r.Value)
			}
			return true
		})
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
	}
}

func (e *elsewhere) set(r event.Registry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	u, err := url.Parse(r.URL)
	if err != nil || e.transport != nil && e.at.URL == r.URL && e.at.Certificate == r.Certificate {
		return
	}
	if e.transport != nil {
		e.transport.CloseIdleConnections()
	} else {
		defer close(e.known)
	}
	e.at, e.url, e.transport = r, u, transportTo(r)
	if r.Certificate != "" {
		if err := e.keepCertificate(r.Certificate); err != nil {
			e.log.Warn("the registry's certificate is not stored, so builds do not reach the registry", "err", err)
		}
	}
}

func (e *elsewhere) keepCertificate(pem string) error {
	if err := os.WriteFile(e.certFile+".tmp", []byte(pem), 0o600); err != nil {
		return err
	}
	return os.Rename(e.certFile+".tmp", e.certFile)
}

// transportTo trusts the certificates of the registry's record, for its canonical name.
func transportTo(r event.Registry) *http.Transport {
	t := &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second}
	if r.Certificate != "" {
		roots, err := systemRoots([]byte(r.Certificate))
		if err == nil {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: hostOf(r.Host)}
		}
	}
	return t
}

// wait blocks until it is known where the registry is.
func (e *elsewhere) wait(ctx context.Context) (event.Registry, error) {
	select {
	case <-e.known:
	case <-ctx.Done():
		return event.Registry{}, context.Cause(ctx)
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.at, nil
}

// certificate returns the file with the registry's certificate, "" if it has none.
func (e *elsewhere) certificate() string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.at.Certificate == "" {
		return ""
	}
	return e.certFile
}

// RoundTrip implements http.RoundTripper.
func (e *elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	e.mu.RLock()
	u, t := e.url, e.transport
	e.mu.RUnlock()
	if t == nil {
		return nil, errors.New("it is not known where the registry is: no process with the role registry has said so")
	}
	out := r.Clone(r.Context())
	if out.Host == "" {
		out.Host = r.URL.Host
	}
	out.URL.Scheme, out.URL.Host = u.Scheme, u.Host
	return t.RoundTrip(out)
}

// CloseIdleConnections closes what is kept for later requests.
func (e *elsewhere) CloseIdleConnections() {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.transport != nil {
		e.transport.CloseIdleConnections()
	}
}

// baseURL is what requests for the registry are addressed to; who sends them finds it.
func baseURL(host string) string { return "http://" + host }

// A remoteRegistry is the registry in another process, for processes of the same server.
type remoteRegistry struct {
	client *registry.Client
	token  func() (string, error)
}

// RaiseFence implements scheduler.Fence.
func (r remoteRegistry) RaiseFence(ctx context.Context, run string, attempt int) error {
	token, err := r.token()
	if err != nil {
		return err
	}
	return r.client.RaiseFence(ctx, token, run, attempt)
}

// FinishRun implements scheduler.Fence.
func (r remoteRegistry) FinishRun(ctx context.Context, run string) error {
	token, err := r.token()
	if err != nil {
		return err
	}
	return r.client.FinishRun(ctx, token, run)
}

// Fences implements scheduler.Fence.
func (r remoteRegistry) Fences(ctx context.Context, after string) ([]string, error) {
	token, err := r.token()
	if err != nil {
		return nil, err
	}
	return r.client.Fences(ctx, token, after)
}

// Resolve implements what digests need.
func (r remoteRegistry) Resolve(ctx context.Context, repository, reference string) (registry.Descriptor, error) {
	token, err := r.token()
	if err != nil {
		return registry.Descriptor{}, err
	}
	return r.client.Resolve(ctx, token, repository, reference)
}

// attemptsRegistry is the registry in another process, for the attempts of a worker.
type attemptsRegistry struct{ client *registry.Client }

// Publish implements worker.Publisher.
func (a attemptsRegistry) Publish(ctx context.Context, t event.Tokens, p registry.Publication) ([]registry.Published, error) {
	return a.client.Publish(ctx, t.Publish, p)
}

// Resolve implements worker.Resolver.
func (a attemptsRegistry) Resolve(ctx context.Context, t event.Tokens, repository, reference string) (registry.Descriptor, error) {
	return a.client.Resolve(ctx, t.Registry, repository, reference)
}

// remoteBlobs reads contexts for a process that has the keys of the server.
type remoteBlobs struct {
	base  string
	http  *http.Client
	token func() (string, error)
}

func (b remoteBlobs) reader() (source.Remote, error) {
	token, err := b.token()
	return source.Remote{BaseURL: b.base, Token: token, Client: b.http}, err
}

// BlobReader implements source.Reader.
func (b remoteBlobs) BlobReader(ctx context.Context, repo string, d digest.Digest) (io.ReadCloser, int64, error) {
	r, err := b.reader()
	if err != nil {
		return nil, 0, err
	}
	return r.BlobReader(ctx, repo, d)
}

// Manifest implements source.Reader.
func (b remoteBlobs) Manifest(ctx context.Context, repo, ref string) ([]byte, error) {
	r, err := b.reader()
	if err != nil {
		return nil, err
	}
	return r.Manifest(ctx, repo, ref)
}

var errReadOnly = errors.New("contexts are uploaded to the process that has the registry")

// PutBlob implements source.Blobs: uploads never come here.
func (b remoteBlobs) PutBlob(context.Context, string, io.Reader) (digest.Digest, int64, error) {
	return "", 0, errReadOnly
}

// PutManifest implements source.Blobs: uploads never come here.
func (b remoteBlobs) PutManifest(context.Context, string, string, string, []byte) error {
	return errReadOnly
}

// openElsewhere makes what reaches a registry in another process, and waits until that has told of itself.
func (n *node) openElsewhere(ctx context.Context) error {
	if n.registry != nil {
		return nil
	}
	n.remote = newElsewhere(&n.store.Registries, filepath.Join(n.cfg.data, "registry.crt"), n.log)
	n.onClose(func() error { n.remote.CloseIdleConnections(); return nil })
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() { defer close(done); _ = n.remote.run(following) }()
	n.onClose(func() error { stop(); <-done; return nil })
	n.log.Info("waiting for the registry's process to tell where it is")
	r, err := n.remote.wait(ctx)
	if err != nil {
		return err
	}
	at, err := url.Parse(r.URL)
	if err != nil {
		return fmt.Errorf("the registry says that it is at %q: %w", r.URL, err)
	}
	n.host, n.registryAt, n.insecure = r.Host, at.Host, at.Scheme == "http"
	n.aliases = append(append(n.aliases, r.Aliases...), at.Host)
	n.contexts = &source.Contexts{Blobs: remoteBlobs{baseURL(n.host), n.registryHTTP(), n.serverToken}}
	return nil
}

// serverToken is what this process shows to another one of the same server.
func (n *node) serverToken() (string, error) {
	if n.keys == nil {
		return "", errors.New("this process has no keys of the server")
	}
	return n.keys.Mint(auth.Principal{Name: "server", Role: auth.RoleServer, Expires: time.Now().Add(serverTokenLife), Grants: []event.Grant{
		{Repository: "*", Permissions: []event.Permission{event.ContentRead, event.MetadataRead}}, staging, readContexts}})
}

// registryClient returns a client of a registry in another process.
func (n *node) registryClient() *registry.Client {
	return registry.NewClient(baseURL(n.host), n.registryHTTP())
}

// registryHTTP sends requests to a registry in another process.
func (n *node) registryHTTP() *http.Client { return &http.Client{Transport: n.remote} }

// far returns the registry as other components of this process use it.
func (n *node) far() interface {
	scheduler.Fence
	Resolve(ctx context.Context, repository, reference string) (registry.Descriptor, error)
} {
	if n.registry != nil {
		return n.registry
	}
	return remoteRegistry{n.registryClient(), n.serverToken}
}

// attemptsAt returns the registry as attempts use it.
func (n *node) attemptsAt() interface {
	worker.Publisher
	worker.Resolver
} {
	if n.registry != nil {
		return worker.Direct{Registry: n.registry}
	}
	return attemptsRegistry{n.registryClient()}
}

// ofRegistry reports whether requests for a path are answered by the process that has the registry.
func ofRegistry(path string) bool {
	const images = "/api/v1/registry/"
	switch {
	case path == "/v2" || strings.HasPrefix(path, "/v2/"), path == auth.TokenPath:
		return true
	case path == apiclient.PathContexts || strings.HasPrefix(path, apiclient.PathContexts+"/"):
		return true
	}
	return strings.HasPrefix(path, images) && path != apiclient.PathWebhooks && !strings.HasPrefix(path, apiclient.PathWebhooks+"/")
}

// passOn has requests that the registry's process answers sent there, as they are.
func (n *node) passOn(next http.Handler) http.Handler {
	if n.registry != nil {
		return next
	}
	proxy := &httputil.ReverseProxy{Transport: n.remote, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", n.host, r.In.Host
			r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
			r.SetXForwarded()
			if proto := r.In.Header.Get("X-Forwarded-Proto"); proto != "" {
				r.Out.Header.Set("X-Forwarded-Proto", proto)
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			n.log.Warn("registry not reached", "path", r.URL.Path, "err", err)
			w.Header().Set("Retry-After", "2")
			http.Error(w, registryAway, http.StatusServiceUnavailable)
		}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ofRegistry(r.URL.Path) {
			proxy.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}
