package git

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"kiln/internal/netguard"
)

const dialTimeout = 15 * time.Second

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
	if netguard.Public(addr) || m.cfg.Allow != nil && m.cfg.Allow(host, addr) {
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
