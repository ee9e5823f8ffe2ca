package runnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"kiln/internal/buildkit/peers"
)

// A Plugin connects containers by the rules of a Provider, for a daemon that has none and executes a process
// for each container instead. What it knows of other containers it reads from the kernel, where it has noted
// it as the aliases of interfaces: nothing else is stored, and nothing has to be cleaned up after a restart.
//
// It writes no hosts files. A container whose host name has a number has the number's address besides, on
// the network of its run, so that whoever starts containers can tell them their names.
type Plugin struct {
	// ID, Pools and Nameservers are as those of a Provider.
	ID          string
	Pools       []netip.Prefix
	Nameservers []netip.Addr
	Logger      *slog.Logger
}

// A Member is a container that a Plugin connects.
type Member struct {
	ID        string // of the container, at most 128 bytes without blanks
	Hostname  string // decides which network it joins; "" joins none
	Namespace string // path of its network namespace
	Link      string // name of its interface there
}

// A Joined is a container's place.
type Joined struct {
	Bridge, Port string // interfaces of the host
	Address      netip.Prefix
	Gateway      netip.Addr
	Peer         netip.Prefix // its address by number, if it has one
}

const (
	pluginLock = "/run/kiln-cni-%s.lock"
	// pluginTimeout bounds the wait for other containers of the daemon.
	pluginTimeout = time.Minute
	// isolatedAlias and runAlias mark bridges, portAlias ports.
	isolatedAlias = "kiln isolated"
	runAlias      = "kiln run "
	portAlias     = "kiln port "
)

// Connect connects a container.
func (pl *Plugin) Connect(ctx context.Context, m Member) (Joined, error) {
	_, run := split(m.Hostname)
	var j Joined
	err := pl.locked(ctx, func(p *pluginState) error {
		if err := p.prepare(ctx); err != nil {
			return err
		}
		ns, err := os.Open(m.Namespace)
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		defer ns.Close()
		if j, err = p.connect(m, run, ns); err != nil {
			err = fmt.Errorf("network of %q: %w", m.Hostname, err)
			return errors.Join(err, p.removeUnused())
		}
		return nil
	})
	return j, err
}

// Disconnect removes what Connect has made for a container. It is no error that there is nothing.
func (pl *Plugin) Disconnect(ctx context.Context, id string) error {
	return pl.locked(ctx, func(p *pluginState) error {
		for _, port := range p.ports {
			if port.id != id {
				continue
			}
			if err := removeLink(p.host, port.name); err != nil {
				return fmt.Errorf("interface %s: %w", port.name, err)
			}
		}
		p.ports = slices.DeleteFunc(p.ports, func(port pluginPort) bool { return port.id == id })
		return p.removeUnused()
	})
}

// pluginState is what the kernel has of a plugin's networks.
type pluginState struct {
	*Provider
	ports []pluginPort
}

type pluginPort struct {
	name, id string
	bridge   int // index of its bridge
	addr     netip.Addr
	peer     netip.Addr // invalid or unspecified if it has none
}

// locked calls do with what there is, while nobody else changes it.
func (pl *Plugin) locked(ctx context.Context, do func(*pluginState) error) error {
	if !validID.MatchString(pl.ID) {
		return fmt.Errorf("network ID %q: must be 8 characters of [0-9a-f]", pl.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	l := flock.New(fmt.Sprintf(pluginLock, pl.ID))
	if _, err := l.TryLockContext(ctx, hostLockInterval); err != nil {
		return fmt.Errorf("%s: %w", l.Path(), err)
	}
	defer l.Close()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	cfg := Config{ID: pl.ID, Pools: pl.Pools, Nameservers: pl.Nameservers, Logger: pl.Logger}
	if cfg.Pools == nil {
		cfg.Pools = DefaultPools
	}
	p := &pluginState{Provider: &Provider{cfg: cfg, host: host, foreign: foreignFirewall{id: pl.ID}, networks: map[string]*bridge{}}}
	if err := p.load(); err != nil {
		return fmt.Errorf("networks: %w", err)
	}
	return do(p)
}

// load reads what there is from the kernel.
func (p *pluginState) load() error {
	links, err := listLinks(p.host)
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		if rest, ok := strings.CutPrefix(a.Alias, portAlias); ok && strings.HasPrefix(a.Name, portPrefix+p.cfg.ID) {
			var addr, peer string
			port := pluginPort{name: a.Name, bridge: a.MasterIndex}
			if _, err := fmt.Sscan(rest, &port.id, &addr, &peer); err != nil {
				return fmt.Errorf("interface %s: alias %q: %w", a.Name, a.Alias, err)
			}
			port.addr, _ = netip.ParseAddr(addr) // as written below
			port.peer, _ = netip.ParseAddr(peer)
			p.ports = append(p.ports, port)
		}
		if strings.HasPrefix(a.Name, linkPrefix+p.cfg.ID+"-") {
			if err := p.loadBridge(l); err != nil {
				return fmt.Errorf("bridge %s: %w", a.Name, err)
			}
		}
	}
	for _, port := range p.ports {
		for _, b := range p.networks {
			if b.link.Attrs().Index == port.bridge {
				b.used[port.addr] = true
			}
		}
	}
	return nil
}

func (p *pluginState) loadBridge(l netlink.Link) error {
	a := l.Attrs()
	b := &bridge{name: a.Name, link: l, mtu: a.MTU, members: map[*endpoint]struct{}{}, used: map[netip.Addr]bool{}}
	if _, err := fmt.Sscanf(a.Name, linkPrefix+p.cfg.ID+"-%d", &b.slot); err != nil || b.slot < 0 || b.slot >= maxNetworks {
		return errors.New("it is none of kiln's")
	}
	p.slots.inUse[b.slot] = true
	run, ok := strings.CutPrefix(a.Alias, runAlias)
	if !ok && a.Alias != isolatedAlias {
		return removeLink(p.host, a.Name) // whoever was making it was killed
	}
	addrs, err := list(func() ([]netlink.Addr, error) { return p.host.AddrList(l, netlink.FAMILY_V4) })
	if err != nil || len(addrs) != 1 {
		return fmt.Errorf("it has %d addresses: %w", len(addrs), err)
	}
	ip, _ := netip.AddrFromSlice(addrs[0].IP.To4())
	ones, _ := addrs[0].Mask.Size()
	b.subnet, b.run = netip.PrefixFrom(ip, ones).Masked(), run
	b.last = b.gateway()
	p.networks[run] = b
	return nil
}

// prepare makes the firewall, if there is none, and sees to it that others let packets pass.
func (p *pluginState) prepare(ctx context.Context) error {
	if err := enableForwarding(p.cfg.Logger); err != nil {
		return err
	}
	if err := p.foreign.open(ctx, p.cfg.Logger); err != nil {
		p.cfg.Logger.Warn("another firewall may keep builds from reaching the network", "err", err)
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName(p.cfg.ID) }) {
		return nil
	}
	nameservers := p.cfg.Nameservers
	if nameservers == nil {
		nameservers = hostNameservers()
	}
	if err := installFirewall(p.cfg.ID, nameservers, uplinkBridges(p.host)); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// connect makes the interface between a network and a container's namespace.
func (p *pluginState) connect(m Member, run string, ns *os.File) (Joined, error) {
	b, err := p.network(run)
	if err != nil {
		return Joined{}, err
	}
	step, _ := split(m.Hostname)
	var peer netip.Addr
	if _, n := peers.Split(step); n > 0 && run != "" {
		if peer, err = peers.Address(n); err != nil {
			return Joined{}, err
		}
	}
	for _, other := range p.ports {
		if peer.IsValid() && other.peer == peer && other.bridge == b.link.Attrs().Index {
			return Joined{}, fmt.Errorf("another container has its address %s", peer)
		}
	}
	addr, err := b.freeAddr()
	if err != nil {
		return Joined{}, err
	}
	e := &endpoint{provider: p.Provider, bridge: b, addr: addr, peer: peer, ns: ns, inner: m.Link, port: p.freePort(),
		note: fmt.Sprint(portAlias, m.ID, " ", addr, " ", cmp.Or(peer, netip.IPv4Unspecified()))}
	if err := e.attach(p.host); err != nil {
		return Joined{}, errors.Join(err, removeLink(p.host, e.port))
	}
	p.ports = append(p.ports, pluginPort{name: e.port, id: m.ID, bridge: b.link.Attrs().Index, addr: addr, peer: peer})
	j := Joined{Bridge: b.name, Port: e.port, Address: netip.PrefixFrom(addr, b.subnet.Bits()), Gateway: b.gateway()}
	if peer.IsValid() {
		j.Peer = netip.PrefixFrom(peer, peers.Range.Bits())
	}
	return j, nil
}

// network returns the bridge of a run, which is made if there is none.
func (p *pluginState) network(run string) (*bridge, error) {
	if b := p.networks[run]; b != nil {
		return b, nil
	}
	b, err := p.newBridge(run)
	if err != nil {
		return nil, err
	}
	alias := isolatedAlias
	if run != "" {
		alias = runAlias + run
	}
	if err := p.host.LinkSetAlias(b.link, alias); err != nil {
		return nil, errors.Join(fmt.Errorf("bridge %s: %w", b.name, err), removeLink(p.host, b.name))
	}
	p.networks[run] = b
	return b, nil
}

// freeAddr returns an address that no container has: the one that follows the last in use, so that one is
// not soon used again.
func (b *bridge) freeAddr() (netip.Addr, error) {
	for a := range b.used {
		if b.last.Less(a) {
			b.last = a
		}
	}
	return b.takeAddr()
}

// freePort returns a name that no port has.
func (p *pluginState) freePort() string {
	for n := uint32(0); ; n++ {
		name := portName(p.cfg.ID, n)
		if !slices.ContainsFunc(p.ports, func(o pluginPort) bool { return o.name == name }) {
			return name
		}
	}
}

// removeUnused removes networks without containers, and with the last the firewall.
func (p *pluginState) removeUnused() error {
	var errs []error
	for run, b := range p.networks {
		if slices.ContainsFunc(p.ports, func(o pluginPort) bool { return o.bridge == b.link.Attrs().Index }) {
			continue
		}
		if err := removeLink(p.host, b.name); err != nil {
			errs = append(errs, fmt.Errorf("bridge %s: %w", b.name, err))
			continue
		}
		delete(p.networks, run)
	}
	if len(p.networks) == 0 && len(errs) == 0 {
		return errors.Join(removeFirewall(p.cfg.ID), p.foreign.close())
	}
	return errors.Join(errs...)
}

// Loopback sets up the loopback interface of a network namespace.
func Loopback(namespace string) error {
	ns, err := os.Open(namespace)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	return nil
}
