package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"kiln/internal/netguard"
)

// What images and caches are pulled from and pushed to is named by Dockerfiles and tasks, and registries send
// their clients elsewhere: for blobs by redirects, for tokens by what they answer. All of it goes through here
// but what concerns the registries of the configuration, which may be anywhere.

// A registryTransport speaks to registries at addresses that the guard admits. Behind a proxy, which finds the
// address, it can do no more than look at what is known of it here.
type registryTransport struct {
	guard            netguard.Guard
	direct, forProxy *http.Transport
}

var _ http.RoundTripper = (*registryTransport)(nil)

func newRegistryTransport(cfg *Config) (*registryTransport, error) {
	g, err := cfg.guard()
	if err != nil {
		return nil, err
	}
	t := &registryTransport{guard: g, direct: registryDefaults(), forProxy: registryDefaults()}
	t.direct.DialContext, t.forProxy.Proxy = g.Dial, http.ProxyFromEnvironment
	return t, nil
}

// own are the registries of the configuration, as images name them, and their mirrors.
func (c *Config) own() map[string]bool {
	own := map[string]bool{}
	for host, r := range c.Registries {
		own[host] = true
		for _, m := range r.Mirrors {
			m, _, _ = strings.Cut(m, "/") // HOST[/PATH]
			own[m] = true
		}
	}
	for _, host := range c.OwnRegistries {
		own[host] = true
	}
	return own
}

// registryDefaults are BuildKit's for registries: without HTTP/2, whose flow control slows pushes down.
func registryDefaults() *http.Transport {
	return &http.Transport{
		MaxIdleConns: 30, MaxIdleConnsPerHost: 4, IdleConnTimeout: 2 * time.Minute,
		TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: 5 * time.Second, MaxResponseHeaderBytes: headerLimit,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// RoundTrip implements http.RoundTripper.
func (t *registryTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	proxy, err := http.ProxyFromEnvironment(r)
	if err == nil && proxy == nil {
		resp, err := t.direct.RoundTrip(r)
		return resp, explain(r, err)
	}
	if err := t.guard.Host(r.Context(), r.URL.Hostname()); errors.Is(err, netguard.ErrRefused) {
		return nil, explain(r, err)
	}
	return t.forProxy.RoundTrip(r)
}

// explain says of a refused address how it can be allowed.
func explain(r *http.Request, err error) error {
	if !errors.Is(err, netguard.ErrRefused) {
		return err
	}
	return fmt.Errorf("%w (kiln serve --allow-source %s)", err, r.URL.Hostname())
}

// named has registries whose certificate is for another name spoken to by clients that ask for it.
func named(hosts docker.RegistryHosts, registries map[string]Registry) docker.RegistryHosts {
	clients := map[string]*http.Client{}
	for host, r := range registries {
		if r.CertName != "" {
			t := registryDefaults()
			t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				return r.dialTLS(ctx, network, addr, host)
			}
			clients[host] = &http.Client{Transport: t}
		}
	}
	return func(host string) ([]docker.RegistryHost, error) {
		list, err := hosts(host)
		for i := range list {
			if c := clients[list[i].Host]; c != nil {
				list[i].Client = c
			}
		}
		return list, err
	}
}

// dialTLS connects to the registry, which is at host, or to where it has sent the client. The certificates are
// read each time: they may have been renewed.
func (r Registry) dialTLS(ctx context.Context, network, addr, host string) (net.Conn, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if addr == host || addr == net.JoinHostPort(host, "443") {
		cfg.ServerName = r.CertName
		var err error
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
		for _, file := range r.TrustedCerts {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			cfg.RootCAs.AppendCertsFromPEM(pem)
		}
	}
	return (&tls.Dialer{Config: cfg}).DialContext(ctx, network, addr)
}

// guardRegistries has all registries but the configuration's own spoken to through t.
func guardRegistries(hosts docker.RegistryHosts, t http.RoundTripper, own map[string]bool) docker.RegistryHosts {
	client := &http.Client{Transport: t}
	return func(host string) ([]docker.RegistryHost, error) {
		list, err := hosts(host)
		for i := range list {
			if !own[list[i].Host] {
				list[i].Client = client
			}
		}
		return list, err
	}
}
