package netguard_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"kiln/internal/netguard"
)

func TestPublic(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700::1111": true, "127.0.0.1": false, "::1": false, "10.1.2.3": false, "192.168.0.1": false,
		"169.254.169.254": false, "fe80::1": false, "fd00::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false,
		"100.64.0.1": false, "64:ff9b::7f00:1": false, "224.0.0.1": false,
	} {
		if got := netguard.Public(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Public(%s) = %t, want %t", addr, got, want)
		}
	}
}

func TestClientReachesLoopbackOnlyIfAllowed(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound))
	defer s.Close()
	if _, err := (netguard.Guard{}).Client(time.Second).Get(s.URL); !errors.Is(err, netguard.ErrRefused) {
		t.Errorf("Get of a loopback address: %v, want ErrRefused", err)
	}
	allowed := netguard.Guard{Allow: func(host string, addr netip.Addr) bool { return host == "127.0.0.1" && addr.IsLoopback() }}
	resp, err := allowed.Client(time.Second).Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusFound {
		t.Errorf("status %d: the redirect was followed", resp.StatusCode)
	}
}

func TestHostsAreCheckedByAllTheirAddresses(t *testing.T) {
	t.Parallel()
	var g netguard.Guard
	for _, host := range []string{"localhost", "127.0.0.1", "::1", "169.254.169.254", "::ffff:10.0.0.1", "0.0.0.0", "127.1"} {
		if err := g.Host(t.Context(), host); err == nil {
			t.Errorf("%s is not refused", host)
		}
	}
	if err := g.Host(t.Context(), "8.8.8.8"); err != nil {
		t.Error(err)
	}
	g.Allow = func(host string, _ netip.Addr) bool { return host == "localhost" }
	if err := g.Host(t.Context(), "localhost"); err != nil {
		t.Error(err)
	}
}

func TestAllowed(t *testing.T) {
	t.Parallel()
	a, err := netguard.ParseAllowed([]string{"10.0.0.0/8", "Git.example", "other.example:8443", "::1", "[::1]:80"})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{"git.example": true, "other.example": true, "evil.example": false} {
		if got := a.Address(host, netip.MustParseAddr("127.0.0.1")); got != want {
			t.Errorf("%s: %t", host, got)
		}
	}
	for addr, want := range map[string]bool{"10.1.2.3": true, "::1": true, "::ffff:10.1.2.3": true, "192.168.0.1": false} {
		if got := a.Address("any", netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %t", addr, got)
		}
	}
	for authority, want := range map[string]bool{"git.example:80": true, "other.example:8443": true, "other.example:80": false, "10.0.0.1:80": true, "evil.example": false} {
		if got := a.PlainHTTP(authority); got != want {
			t.Errorf("plain HTTP with %s: %t", authority, got)
		}
	}
}
