package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"kiln/internal/apiclient"
)

// A certificate is the server's, as its files are now: what is renewed there is used from the next
// connection on, unless others have to be told of it before. It is safe for concurrent use.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu       sync.Mutex
	foretold bool   // what is renewed is used by adopt
	stamp    string // of the files that were read last
	used     keyPair
	next     *keyPair // that the files have, and that is not used yet
}

type keyPair struct {
	pair *tls.Certificate
	pem  []byte
}

// openCertificate reads a certificate and its key.
func openCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log, stamp: stampOf(certFile, keyFile)}
	var err error
	c.used, err = c.load()
	return c, err
}

// stampOf changes with the files.
func stampOf(files ...string) string {
	var b strings.Builder
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			fmt.Fprintf(&b, "%d %d\n", st.Size(), st.ModTime().UnixNano())
		}
	}
	return b.String()
}

// load reads the files.
func (c *certificate) load() (keyPair, error) {
	pem, err := readFile(c.certFile)
	if err != nil {
		return keyPair{}, err
	}
	key, err := readFile(c.keyFile)
	if err != nil {
		return keyPair{}, err
	}
	pair, err := tls.X509KeyPair(pem, key)
	if err != nil {
		return keyPair{}, fmt.Errorf("certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	return keyPair{&pair, pem}, nil
}

// look reads the files if they have changed. What is wrong is not tried again until it is changed. The caller holds
// the lock.
func (c *certificate) look(stamp string) {
	if stamp == c.stamp {
		return
	}
	c.stamp = stamp
	next, err := c.load()
	if err != nil {
		c.log.Warn("the changed certificate is not used", "err", err)
		return
	}
	c.log.Info("certificate read again", "file", c.certFile, "until", next.pair.Leaf.NotAfter)
	c.next = &next
}

// adopt uses what the files had when they were looked at last. The caller holds the lock.
func (c *certificate) adopt() {
	if c.next != nil {
		c.used, c.next = *c.next, nil
	}
}

// current returns the certificate as the files have it, or as it was while they have none.
func (c *certificate) current() (*tls.Certificate, []byte) {
	stamp := ""
	if !c.foretold {
		stamp = stampOf(c.certFile, c.keyFile)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.foretold {
		c.look(stamp)
		c.adopt()
	}
	return c.used.pair, c.used.pem
}

// foretell uses what it returned when it was called before, and reports whether there is something newer, which is used
// from its next call on.
func (c *certificate) foretell() bool {
	stamp := stampOf(c.certFile, c.keyFile)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.adopt()
	c.look(stamp)
	return c.next != nil
}

// trusted are the certificates that the server is using, or will.
func (c *certificate) trusted() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		return string(c.used.pem) + "\n" + string(c.next.pem)
	}
	return string(c.used.pem)
}

// config is how the server speaks TLS.
func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, _ := c.current()
		return pair, nil
	}}
}

// checkName reports that clients would not accept the certificate for the registry's host, if so; "" is any.
func (c *certificate) checkName(host string) error {
	leaf := c.used.pair.Leaf
	if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return fmt.Errorf("certificate %s: is valid from %s to %s only", c.certFile, leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
	}
	if host == "" {
		return nil
	}
	name := hostOf(host)
	if err := leaf.VerifyHostname(name); err != nil {
		return usagef("--registry-host NAME[:PORT] with a name of the certificate",
			"certificate %s: is not for %q, which is the registry's name: %w", c.certFile, name, err)
	}
	return nil
}

// transport is for requests to the server itself: whatever has signed its certificate, it is trusted.
func (c *certificate) transport() *http.Transport {
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, pem := c.current()
			roots, err := systemRoots(pem)
			if err != nil {
				return nil, err
			}
			d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: hostOf(addr)}}
			return d.DialContext(ctx, network, addr)
		},
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
	}
}

// hostOf returns the host of HOST[:PORT].
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	return strings.Trim(host, "[]")
}

// systemRoots are the authorities that this system trusts and those of a PEM.
func systemRoots(pem []byte) (*x509.CertPool, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	roots.AppendCertsFromPEM(pem)
	return roots, nil
}

// openTLS reads the certificate, if there is to be one, and says so if everybody on the network could read along.
func (n *node) openTLS(context.Context) error {
	if n.listener == nil || n.onlyWorks() { // which tells of its health alone
		return nil
	}
	if n.cfg.tlsCert == "" {
		host := hostOf(n.listener.Addr().String())
		if ip := net.ParseIP(host); ip != nil && !ip.IsLoopback() && !strings.HasPrefix(n.cfg.publicURL, "https://") {
			n.log.Warn("without TLS everybody on the way can read tokens and change images: use --tls-cert and --tls-key, "+
				"or put a proxy with TLS in front and say so with --public-url https://...", "listen", n.listener.Addr().String())
		}
		return nil
	}
	var err error
	if n.cert, err = openCertificate(n.cfg.tlsCert, n.cfg.tlsKey, n.log); err != nil {
		return usagef("--tls-cert FILE --tls-key FILE in PEM", "%w", err)
	}
	if !n.has(roleRegistry) {
		return n.cert.checkName("") // the registry's name is that of another process
	}
	n.cert.foretold = n.shared()
	return n.cert.checkName(n.host)
}

// scheme is how the server is spoken to.
func (cfg *serveConfig) scheme() string {
	if cfg.tlsCert != "" {
		return "https"
	}
	return "http"
}

// own is what requests to the server's own registry go through; nil for the default.
func (n *node) own() http.RoundTripper {
	if n.remote != nil {
		return n.remote
	}
	if n.cert == nil {
		return nil
	}
	t := n.cert.transport()
	n.onClose(func() error { t.CloseIdleConnections(); return nil })
	return t
}

// serveHTTP serves what the server listens for. With TLS it is HTTP/1.1 as well: the windows of HTTP/2 make
// pushes from afar slow.
func (n *node) serveHTTP(server *http.Server) error {
	if n.cert == nil {
		return server.Serve(n.listener)
	}
	server.TLSConfig, server.TLSNextProto = n.cert.config(), map[string]func(*http.Server, *tls.Conn, http.Handler){}
	return server.ServeTLS(n.listener, "", "")
}

// trust returns how the client checks the certificate of a server: the file of --ca holds authorities to
// trust beside the system's; at, if not nil, is the server on this host.
func (c *cli) trust(at *apiclient.Location) (*tls.Config, error) {
	file := c.ca
	if file == "" {
		file = c.env(envCA)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if file == "" && (at == nil || at.Certificate == "") {
		return cfg, nil
	}
	if file == "" {
		file, cfg.ServerName = at.Certificate, at.Name
	}
	pem, err := readFile(file)
	if err != nil {
		return nil, usagef("--ca FILE", "certificates: %w", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(pem) {
		return nil, usagef("--ca FILE", "%s: holds no certificate in PEM", file)
	}
	cfg.RootCAs, err = systemRoots(pem)
	return cfg, err
}
