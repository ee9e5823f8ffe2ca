package runnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/gofrs/flock"
	"github.com/vishvananda/netlink"
)

const (
	// linkPrefix begins the name of every bridge of every daemon on the host.
	linkPrefix = "kln"
	// portPrefix begins the names of the host's ends of containers' interfaces.
	portPrefix = "klv"
	// maxNetworks is how many bridges a provider has at most; slot numbers have at most 3 digits.
	maxNetworks = 250
	// subnetBits is the size of a network.
	subnetBits = 24
	// hostLock is held by the daemon that is choosing addresses on this host.
	hostLock         = "/run/kiln-networks.lock"
	hostLockTimeout  = 10 * time.Second
	hostLockInterval = 5 * time.Millisecond
)

// A bridge is one network.
type bridge struct {
	run    string // "" for the bridge of isolated containers
	slot   int
	name   string
	link   netlink.Link
	mtu    int
	subnet netip.Prefix

	// Guarded by the provider's mutex.
	members map[*endpoint]struct{}
	idle    []*endpoint // connected, without a container
	expiry  *time.Timer // running while there are no members
	used    map[netip.Addr]bool
	last    netip.Addr // handed out most recently
}

func bridgeName(id string, slot int) string { return fmt.Sprintf("%s%s-%d", linkPrefix, id, slot) }

// portName names the n-th port, unique among those that exist at a time.
func portName(id string, n uint32) string { return fmt.Sprintf("%s%s%04x", portPrefix, id, n&0xffff) }

// isolated tells whether the containers on the bridge are kept from each other.
func (b *bridge) isolated() bool { return b.run == "" }

// gateway is the host's address on the bridge.
func (b *bridge) gateway() netip.Addr { return b.subnet.Addr().Next() }

// newBridge makes a bridge with an address range that nothing else on the host uses.
func (p *Provider) newBridge(run string) (*bridge, error) {
	slot, err := p.slots.take()
	if err != nil {
		return nil, err
	}
	b := &bridge{
		run:     run,
		slot:    slot,
		name:    bridgeName(p.cfg.ID, slot),
		members: map[*endpoint]struct{}{},
		used:    map[netip.Addr]bool{},
	}
	if err := p.makeBridge(b); err != nil {
		p.slots.free(slot)
		return nil, fmt.Errorf("bridge %s: %w", b.name, errors.Join(err, removeLink(p.host, b.name)))
	}
	b.last = b.gateway()
	return b, nil
}

func (p *Provider) makeBridge(b *bridge) error {
	unlock, err := lockHost()
	if err != nil {
		return err
	}
	defer unlock()
	routes, err := listRoutes(p.host)
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	if b.subnet, err = freeSubnet(p.cfg.Pools, destinations(routes), p.slots.turn); err != nil {
		return err
	}
	p.slots.turn++
	b.mtu = uplinkMTU(p.host, routes)
	off := false
	link := &netlink.Bridge{
		LinkAttrs:         netlink.LinkAttrs{Name: b.name, MTU: b.mtu, HardwareAddr: hardwareAddr(b.gateway())},
		MulticastSnooping: &off,
	}
	if err := p.host.LinkAdd(link); err != nil {
		return err
	}
	b.link = link
	disableIPv6(b.name)
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(b.gateway(), b.subnet.Bits()))}
	if err := p.host.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s: %w", addr, err)
	}
	return p.host.LinkSetUp(link)
}

// takeAddr hands out the addresses in turn, so that one is not soon used again.
func (b *bridge) takeAddr() (netip.Addr, error) {
	size := 1 << (32 - b.subnet.Bits())
	a := b.last
	for range size {
		a = a.Next()
		if !b.subnet.Contains(a) || !b.subnet.Contains(a.Next()) { // past the end, or broadcast
			a = b.gateway()
			continue
		}
		if !b.used[a] && a != b.gateway() {
			b.used[a] = true
			b.last = a
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("network %s of bridge %s: all addresses are in use", b.subnet, b.name)
}

// takeIdle returns a connected endpoint that no container uses, nil if there is none.
func (b *bridge) takeIdle() *endpoint {
	n := len(b.idle)
	if n == 0 {
		return nil
	}
	e := b.idle[n-1]
	b.idle = b.idle[:n-1]
	return e
}

// closeIdle gives up the namespaces that no container uses.
func (b *bridge) closeIdle() error {
	var errs []error
	for _, e := range b.idle {
		errs = append(errs, e.closeNamespace())
	}
	b.idle = nil
	return errors.Join(errs...)
}

// freeSubnet returns a network out of pools that overlaps none of taken. Turn says where in a pool
// the search begins.
func freeSubnet(pools, taken []netip.Prefix, turn int) (netip.Prefix, error) {
	for _, pool := range pools {
		bits := max(pool.Bits(), subnetBits)
		n := 1 << (bits - pool.Bits())
		for i := range n {
			s := netip.PrefixFrom(addrAt(pool.Masked().Addr(), ((turn+i)%n)<<(32-bits)), bits)
			if !slices.ContainsFunc(taken, s.Overlaps) {
				return s, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("address pools %v: the host has routes for all of it: configure a pool that it does not use", pools)
}

// addrAt returns the n-th address from a on.
func addrAt(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// destinations are the networks that routes lead to, the default route left out.
func destinations(routes []netlink.Route) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		ones, _ := r.Dst.Mask.Size()
		if ok && ones > 0 {
			out = append(out, netip.PrefixFrom(addr, ones))
		}
	}
	return out
}

// uplinkMTU is the smallest MTU of the interfaces that default routes use.
func uplinkMTU(h *netlink.Handle, routes []netlink.Route) int {
	mtu := 1500
	for _, r := range routes {
		if !isDefault(r) {
			continue
		}
		if l, err := h.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU >= 576 {
			mtu = min(mtu, l.Attrs().MTU)
		}
	}
	return mtu
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// hardwareAddr derives an interface's address from its IP address: a reused IP address does not need
// to be learnt again.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x0e, 0x6b, b[0], b[1], b[2], b[3]}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// disableIPv6 keeps the host from having an IPv6 address on the link. A kernel without IPv6 has none.
func disableIPv6(link string) {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte("1"), 0o644)
}

// lockHost waits until no other daemon chooses addresses.
func lockHost() (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), hostLockTimeout)
	defer cancel()
	l := flock.New(hostLock)
	if _, err := l.TryLockContext(ctx, hostLockInterval); err != nil {
		return nil, fmt.Errorf("%s: held by another process for %s: %w", hostLock, hostLockTimeout, err)
	}
	return func() { _ = l.Close() }, nil
}

// slots are the numbers of bridges.
type slots struct {
	inUse [maxNetworks]bool
	turn  int // of address ranges
}

func (s *slots) take() (int, error) {
	for i, used := range s.inUse {
		if !used {
			s.inUse[i] = true
			return i, nil
		}
	}
	return 0, fmt.Errorf("%d networks are in use, the most at once", maxNetworks)
}

func (s *slots) free(slot int) { s.inUse[slot] = false }
