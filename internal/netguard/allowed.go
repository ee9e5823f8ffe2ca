package netguard

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Allowed are hosts outside of the public internet that may be connected to nevertheless.
type Allowed struct {
	hosts    map[string]bool // in lower case, with or without a port
	networks []netip.Prefix
}

// ParseAllowed reads hosts, host:port, addresses and networks. It reports all that it does not understand.
func ParseAllowed(list []string) (Allowed, error) {
	a := Allowed{hosts: map[string]bool{}}
	var errs []error
	for _, s := range list {
		s = strings.ToLower(strings.TrimSpace(s))
		if p, err := netip.ParsePrefix(s); err == nil {
			a.networks = append(a.networks, p.Masked())
			continue
		}
		if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
			a.networks = append(a.networks, netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()))
			continue
		}
		if s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789.-_:[]") != "" {
			errs = append(errs, fmt.Errorf("%q: want a host, host:port, address or network such as 10.0.0.0/8", s))
			continue
		}
		a.hosts[s] = true
	}
	return a, errors.Join(errs...)
}

// contains reports whether an address is in one of the networks.
func (a Allowed) contains(addr netip.Addr) bool {
	for _, p := range a.networks {
		if p.Contains(addr.Unmap()) {
			return true
		}
	}
	return false
}

// Address reports whether a host may be at an address that is not public. It is a Guard's Allow.
func (a Allowed) Address(host string, addr netip.Addr) bool {
	return a.contains(addr) || a.named(host)
}

// named reports whether a host is allowed by its name, on any port or on one.
func (a Allowed) named(host string) bool {
	host = strings.ToLower(host)
	if a.hosts[host] {
		return true
	}
	for h := range a.hosts {
		if name, _, ok := strings.Cut(h, ":"); ok && name == host {
			return true
		}
	}
	return false
}

// PlainHTTP reports whether http:// may be used for an authority of a URL.
func (a Allowed) PlainHTTP(authority string) bool {
	authority = strings.ToLower(authority)
	if a.hosts[authority] {
		return true
	}
	host := authority
	if ap, err := netip.ParseAddrPort(authority); err == nil {
		return a.contains(ap.Addr())
	}
	if addr, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return a.contains(addr)
	}
	host, _, _ = strings.Cut(authority, ":")
	return a.hosts[host]
}
