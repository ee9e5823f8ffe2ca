package git

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const dialTimeout = 15 * time.Second

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

// public reports whether an address belongs to the internet at large.
func public(addr netip.Addr) bool {
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

// dial connects to host:port. The address is checked after the name was resolved and directly before
// it is used, for every address that is tried.
func (m *Mirrors) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second,
		ControlContext: func(_ context.Context, _, resolved string, _ syscall.RawConn) error {
			return m.checkAddress(host, resolved)
		}}
	return d.DialContext(ctx, network, address)
}

func (m *Mirrors) checkAddress(host, resolved string) error {
	ap, err := netip.ParseAddrPort(resolved)
	if err != nil {
		return fmt.Errorf("%w: address %s", ErrRefused, resolved)
	}
	addr := ap.Addr().Unmap()
	if public(addr) || m.cfg.Allow != nil && m.cfg.Allow(host, addr) {
		return nil
	}
	return fmt.Errorf("%w: %s is at %s, a loopback, link-local or private address; the server's configuration may allow it",
		ErrRefused, host, addr)
}

// checkScheme refuses http:// unless the host is allowed to be spoken to that way.
func (m *Mirrors) checkScheme(scheme, authority string) error {
	if scheme == "http" && (m.cfg.PlainHTTP == nil || !m.cfg.PlainHTTP(authority)) {
		return fmt.Errorf("%w: http:// is not encrypted; use https://, or allow plain HTTP for %s", ErrRefused, authority)
	}
	return nil
}
