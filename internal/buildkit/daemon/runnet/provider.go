// Package runnet connects the containers of a build daemon.
//
// Containers whose hostname is "<step>.<key>" share the bridge of that key: they reach each other by
// address and by the names of their steps, as they are and as host names are written (my_db is also
// my-db), and nobody else can reach them. A bridge is made for the first container of a key and removed
// soon after the last. All other containers (the RUN steps of Dockerfiles) sit on one bridge with isolated
// ports: they cannot reach each other at all.
//
// Every container reaches the world outside the host by masquerading, and the host's nameservers. It
// reaches neither the host itself, nor other bridges of the host (other runs, other daemons,
// Docker), nor link-local addresses, where clouds keep their metadata services.
//
// Who may choose hostnames, as the frontend of a build may, and knows the key of a network may join it. So
// a run's engine makes keys that cannot be guessed, and no container is shown its own.
//
// Address ranges are taken so that they do not overlap any route of the host or a network of another
// daemon. Everything that a provider makes in the kernel bears its ID, so that Sweep finds it after
// the process was killed.
package runnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/util/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultPools are the ranges that networks are cut from if the host does not use them.
var DefaultPools = []netip.Prefix{
	netip.MustParsePrefix("10.201.0.0/16"),
	netip.MustParsePrefix("172.29.0.0/16"),
	netip.MustParsePrefix("192.168.224.0/19"),
	netip.MustParsePrefix("198.18.0.0/16"),
}

// Config says how a provider makes networks.
type Config struct {
	// ID distinguishes the provider from others on the host: 8 characters of [0-9a-f].
	ID string
	// Dir is where files of running containers are kept. It exists and is emptied by the caller.
	Dir string
	// Pools are the ranges to cut networks from, IPv4; nil means DefaultPools.
	Pools []netip.Prefix
	// Nameservers may be reached wherever they are. Nil means those of the host's resolv.conf.
	Nameservers []netip.Addr
	// NoReuse makes a new namespace for every container. Without it, namespaces are used again in
	// the same network, which is safe unless a container can reconfigure its own (CAP_NET_ADMIN) or says that it does.
	NoReuse bool
	Logger  *slog.Logger
}

const (
	// maxIdle is how many namespaces of a network wait for their next container.
	maxIdle = 16
	// linger is how long the network of a run stays after its last container: its next step will
	// usually want it, and removing a network keeps the kernel from making another.
	linger = 2 * time.Second
)

// A Provider makes network namespaces for containers. It implements BuildKit's network.Provider and
// may be used concurrently.
type Provider struct {
	cfg     Config
	host    *netlink.Handle
	foreign foreignFirewall
	linger  time.Duration

	mu       sync.Mutex
	networks map[string]*bridge // by run; "" is the one of isolated containers
	slots    slots
	ports    uint32         // numbers the host's ends
	removals sync.WaitGroup // of endpoints and bridges
	closed   bool
}

var _ network.Provider = (*Provider)(nil)

var (
	validID  = regexp.MustCompile(`^[0-9a-f]{8}$`)
	validRun = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$`)
)

// ErrClosed is returned for containers that start when the daemon is stopping.
var ErrClosed = errors.New("network provider is closed")

// New sets up the firewall of a provider. It removes what an earlier provider of the same ID left.
func New(cfg Config) (*Provider, error) {
	if !validID.MatchString(cfg.ID) {
		return nil, fmt.Errorf("network ID %q: must be 8 characters of [0-9a-f]", cfg.ID)
	}
	if cfg.Pools == nil {
		cfg.Pools = DefaultPools
	}
	for _, p := range cfg.Pools {
		if !p.IsValid() || !p.Addr().Is4() || p.Bits() > 28 {
			return nil, fmt.Errorf("address pool %s: must be an IPv4 prefix of at most 28 bits", p)
		}
	}
	if cfg.Nameservers == nil {
		cfg.Nameservers = hostNameservers()
	}
	if err := Sweep(cfg.ID); err != nil {
		return nil, err
	}
	if err := enableForwarding(cfg.Logger); err != nil {
		return nil, err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	p := &Provider{cfg: cfg, host: host, foreign: foreignFirewall{id: cfg.ID}, linger: linger, networks: map[string]*bridge{}}
	if err := installFirewall(cfg.ID, cfg.Nameservers, uplinkBridges(host)); err != nil {
		host.Close()
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return p, nil
}

// Wishes are what a container asks of its place in a network.
type Wishes struct {
	// Names are further names by which the other containers of a run reach it.
	Names []string
	// Changed says that the container's namespace will have settings of its own, so that no other gets it afterwards.
	Changed bool
}

type wishesKey struct{}

// WithWishes returns a context for the New of a container that has wishes.
func WithWishes(ctx context.Context, w Wishes) context.Context {
	return context.WithValue(ctx, wishesKey{}, w)
}

// validName is a name that a hosts file can have.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// New makes the namespace of one container and connects it. The caller closes it.
func (p *Provider) New(ctx context.Context, hostname string, _ network.NamespaceOptions) (network.Namespace, error) {
	if err := p.foreign.open(ctx, p.cfg.Logger); err != nil {
		p.cfg.Logger.Warn("another firewall may keep builds from reaching the network", "err", err)
	}
	step, run := split(hostname)
	w, _ := ctx.Value(wishesKey{}).(Wishes)
	e, err := p.join(run, step, w)
	if err != nil {
		return nil, err
	}
	if e.up {
		return e, nil
	}
	if err := e.connect(p.host); err != nil {
		return nil, errors.Join(fmt.Errorf("network of %q: %w", hostname, err), e.Close())
	}
	e.up = true
	return e, nil
}

// Close removes all networks and the firewall. Containers that still run lose their connection.
func (p *Provider) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	var errs []error
	for _, b := range p.networks {
		errs = append(errs, b.closeIdle())
		if b.expiry != nil {
			b.expiry.Stop()
		}
	}
	p.mu.Unlock()
	p.removals.Wait()
	p.host.Close()
	return errors.Join(append(errs, Sweep(p.cfg.ID))...)
}

// split returns the step and run of a container's hostname; both are empty for a container that
// belongs to no run.
func split(hostname string) (step, run string) {
	i := strings.LastIndexByte(hostname, '.')
	if i <= 0 || !validRun.MatchString(hostname[i+1:]) || strings.ContainsAny(hostname, " \t\r\n#") {
		return "", ""
	}
	return hostname[:i], hostname[i+1:]
}

// join gives a container a place in the network of run, which is made if it is the first. The place
// is connected already if another container of the network has had it.
func (p *Provider) join(run, step string, w Wishes) (*endpoint, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	b := p.networks[run]
	if b == nil {
		var err error
		if b, err = p.newBridge(run); err != nil {
			return nil, err
		}
		p.networks[run] = b
	}
	if b.expiry != nil {
		b.expiry.Stop()
		b.expiry = nil
	}
	e := b.takeIdle()
	if e == nil {
		addr, err := b.takeAddr()
		if err != nil {
			p.expireLater(b)
			return nil, err
		}
		p.ports++
		e = &endpoint{provider: p, bridge: b, addr: addr, port: portName(p.cfg.ID, p.ports)}
	}
	e.step, e.changed = step, w.Changed
	e.names = slices.DeleteFunc(slices.Clone(w.Names), func(name string) bool { return !validName.MatchString(name) })
	b.members[e] = struct{}{}
	return e, nil
}

// leave takes a container out of its network. What takes time is done in the background.
func (p *Provider) leave(e *endpoint) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := e.bridge
	b.removeHost(e)
	delete(b.members, e)
	defer p.expireLater(b)
	if p.closed {
		return e.closeNamespace()
	}
	if e.up && !e.changed && !p.cfg.NoReuse && len(b.idle) < maxIdle {
		b.idle = append(b.idle, &endpoint{provider: p, bridge: b, port: e.port, addr: e.addr, ns: e.ns, up: true})
		return nil
	}
	p.removals.Go(func() {
		p.remove(e.port)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(b.used, e.addr)
	})
	return e.closeNamespace()
}

// expireLater has the network of a run removed if no container joins it soon. The provider's mutex
// is held.
func (p *Provider) expireLater(b *bridge) {
	if b.run == "" || len(b.members) > 0 || p.closed {
		return
	}
	if b.expiry != nil {
		b.expiry.Stop()
	}
	b.expiry = time.AfterFunc(p.linger, func() { p.expire(b) })
}

// expire removes the network of a run unless a container has joined it.
func (p *Provider) expire(b *bridge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(b.members) > 0 || p.networks[b.run] != b {
		return
	}
	delete(p.networks, b.run)
	ports := make([]string, 0, len(b.idle)+1)
	for _, e := range b.idle {
		ports = append(ports, e.port)
	}
	if err := b.closeIdle(); err != nil {
		p.cfg.Logger.Warn("namespaces of a run not closed", "link", b.name, "err", err)
	}
	p.removals.Go(func() {
		p.remove(append(ports, b.name)...)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.slots.free(b.slot)
	})
}

// remove removes interfaces of the host.
func (p *Provider) remove(links ...string) {
	for _, l := range links {
		if err := removeLink(p.host, l); err != nil {
			p.cfg.Logger.Warn("network interface not removed", "link", l, "err", err)
		}
	}
}

// removeLink removes an interface of the host. It is not an error that it is gone.
func removeLink(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(l)
	}
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
