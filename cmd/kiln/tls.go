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
// connection on. It is safe for concurrent use.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu    sync.Mutex
	stamp string // of the files that were read last
	pair  *tls.Certificate
	pem   []byte
}

// openCertificate reads a certificate and its key.
func openCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log, stamp: stampOf(certFile, keyFile)}
	return c, c.load()
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

// load reads the files. The caller holds the lock, or is the only one.
func (c *certificate) load() error {
	pem, err := readFile(c.certFile)
	if err != nil {
		return err
	}
	key, err := readFile(c.keyFile)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(pem, key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.pair, c.pem = &pair, pem
	return nil
}

// current returns the certificate as the files have it, or as it was while they have none.
func (c *certificate) current() (*tls.Certificate, []byte) {
	stamp := stampOf(c.certFile, c.keyFile)
	c.mu.Lock()
	defer c.mu.Unlock()
	if stamp != c.stamp {
		c.stamp = stamp // what is wrong is not tried again until it is changed
		if err := c.load(); err != nil {
			c.log.Warn("the changed certificate is not used", "err", err)
		} else {
			c.log.Info("certificate read again", "file", c.certFile, "until", c.pair.Leaf.NotAfter)
		}
	}
	return c.pair, c.pem
}

// config is how the server speaks TLS.
func (c *certificate) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, _ := c.current()
		return pair, nil
	}}
}

// checkName reports that clients would not accept the certificate for a host, if so.
func (c *certificate) checkName(host string) error {
	leaf := c.pair.Leaf
	if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
		return fmt.Errorf("certificate %s: is valid from %s to %s only", c.certFile, leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
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
	if n.listener == nil {
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
