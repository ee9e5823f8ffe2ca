// Package netguard keeps requests whose address somebody else has chosen away from the network that the
// server is in: loopback, link-local, private and reserved addresses are refused unless allowed.
//
// The address is checked after the name was resolved and directly before it is used, for every address
// that is tried, so a name that resolves to something else the second time gains nothing. A proxy would
// evade that: users of a Guard use none.
package netguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// ErrRefused is returned for an address that may not be spoken to.
var ErrRefused = errors.New("refused address")

// A Guard decides which addresses may be connected to.
type Guard struct {
	// Allow, if not nil, allows an address that is not public, and that host was resolved to.
	Allow func(host string, addr netip.Addr) bool
}

const dialTimeout = 10 * time.Second

// notPublic are networks that the standard library's predicates do not cover: shared, benchmark,
// documentation and reserved ones, and those that embed an IPv4 address that somebody translates.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("fec0::/10"),
}

// Public reports whether an address belongs to the internet at large.
func Public(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(addr) {
			return false
		}
	}
	return true
}

// Dial connects to host:port if the guard admits the address.
func (g Guard) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second,
		ControlContext: func(_ context.Context, _, resolved string, _ syscall.RawConn) error {
			return g.Check(host, resolved)
		}}
	return d.DialContext(ctx, network, address)
}

// Check returns an error that wraps ErrRefused unless address, an IP and a port that host was resolved
// to, may be connected to.
func (g Guard) Check(host, address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrRefused, address)
	}
	addr := ap.Addr().Unmap()
	if Public(addr) || g.Allow != nil && g.Allow(host, addr) {
		return nil
	}
	return fmt.Errorf("%w: %s is at %s, a loopback, link-local or private address; the server's configuration may allow it",
		ErrRefused, host, addr)
}

// Host returns an error that wraps ErrRefused if a host, a name or an address, has an address that may not be
// connected to. It is for what somebody else connects to later, and so no more than a first check.
func (g Guard) Host(ctx context.Context, host string) error {
	if addr, err := netip.ParseAddr(host); err == nil {
		return g.Check(host, netip.AddrPortFrom(addr, 0).String())
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if err := g.Check(host, netip.AddrPortFrom(addr, 0).String()); err != nil {
			return err
		}
	}
	return nil
}

// Client returns an HTTP client behind the guard. It follows no redirects, uses no proxy and gives up on
// a request after limit.
func (g Guard) Client(limit time.Duration) *http.Client {
	return &http.Client{
		Timeout: limit,
		Transport: &http.Transport{DialContext: g.Dial, TLSHandshakeTimeout: dialTimeout, ForceAttemptHTTP2: true,
			MaxIdleConns: 64, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
