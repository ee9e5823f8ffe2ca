package runnet

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"kiln/internal/buildkit/peers"
)

// containerLink is the name of a container's interface.
const containerLink = "eth0"

// maxHostname is the longest name that the kernel takes, less one as is usual.
const maxHostname = 63

// How often and for how long awaitUp looks.
const (
	upInterval = 500 * time.Microsecond
	upAttempts = 400
)

// An endpoint is one container's place in a network. It implements BuildKit's network.Namespace.
type endpoint struct {
	provider *Provider
	bridge   *bridge
	step     string
	names    []string // further ones
	changed  bool     // its namespace is for nobody else
	port     string   // the host's end
	addr     netip.Addr
	peer     netip.Addr // a further address, if valid: see package peers
	inner    string     // name of the container's end; "" is containerLink
	note     string     // alias of the host's end
	ns       *os.File
	up       bool       // connected
	hosts    *hostsFile // guarded by the provider's mutex

	closing sync.Once
	err     error
}

// newNamespace makes a network namespace that exists as long as the file is open or a process is in
// it; a daemon that is killed leaves none behind.
func newNamespace() (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result)
	go func() {
		// The thread stays in the new namespace: it ends with this goroutine, which never unlocks it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		made <- result{f, err}
	}()
	r := <-made
	return r.f, r.err
}

// connect makes the container's namespace and the interface between the bridge and it.
func (e *endpoint) connect(host *netlink.Handle) (err error) {
	if e.ns, err = newNamespace(); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	return e.attach(host)
}

// attach makes the interface between the bridge and the container's namespace.
func (e *endpoint) attach(host *netlink.Handle) error {
	e.inner = cmp.Or(e.inner, containerLink)
	mac := hardwareAddr(e.addr)
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: e.port, MTU: e.bridge.mtu, MasterIndex: e.bridge.link.Attrs().Index},
		PeerName:         e.inner,
		PeerHardwareAddr: mac,
		PeerMTU:          uint32(e.bridge.mtu),
		PeerNamespace:    netlink.NsFd(int(e.ns.Fd())),
	}
	if err := host.LinkAdd(veth); err != nil {
		return fmt.Errorf("interface %s: %w", e.port, err)
	}
	if e.note != "" {
		if err := host.LinkSetAlias(veth, e.note); err != nil {
			return fmt.Errorf("interface %s: %w", e.port, err)
		}
	}
	if err := e.secure(host, veth, mac); err != nil {
		return fmt.Errorf("interface %s: %w", e.port, err)
	}
	if err := host.LinkSetUp(veth); err != nil {
		return fmt.Errorf("interface %s: %w", e.port, err)
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(e.ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	inner, err := e.configure(h)
	if err != nil {
		return fmt.Errorf("interface %s: %w", e.inner, err)
	}
	return errors.Join(awaitUp(h, inner), awaitUp(host, veth), awaitUp(host, e.bridge.link))
}

// secure fixes which addresses are behind the port. A container could otherwise claim those of
// another and receive its traffic.
func (e *endpoint) secure(host *netlink.Handle, port netlink.Link, mac net.HardwareAddr) error {
	if e.bridge.isolated() {
		if err := host.LinkSetIsolated(port, true); err != nil {
			return fmt.Errorf("isolation: %w", err)
		}
	}
	if err := host.LinkSetLearning(port, false); err != nil {
		return fmt.Errorf("learning: %w", err)
	}
	err := host.NeighSet(&netlink.Neigh{
		LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP,
		Flags: netlink.NTF_MASTER, HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("hardware address: %w", err)
	}
	err = host.NeighSet(&netlink.Neigh{
		LinkIndex: e.bridge.link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
		IP: e.addr.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("neighbour: %w", err)
	}
	return nil
}

// configure gives the container's end its address and routes.
func (e *endpoint) configure(h *netlink.Handle) (netlink.Link, error) {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return nil, err
	}
	l, err := h.LinkByName(e.inner)
	if err != nil {
		return nil, err
	}
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(e.addr, e.bridge.subnet.Bits()))}
	if err := h.AddrAdd(l, addr); err != nil {
		return nil, fmt.Errorf("address %s: %w", addr, err)
	}
	if e.peer.IsValid() {
		peer := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(e.peer, peers.Range.Bits()))}
		if err := h.AddrAdd(l, peer); err != nil {
			return nil, fmt.Errorf("address %s: %w", peer, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return nil, err
	}
	gw := e.bridge.gateway()
	if err := h.RouteAdd(&netlink.Route{Gw: gw.AsSlice()}); err != nil {
		return nil, fmt.Errorf("default route by %s: %w", gw, err)
	}
	return l, nil
}

// awaitUp waits until the kernel has noticed, in the background, that a link has a carrier. Until
// then it drops what is sent by it, and a first packet that is lost costs its sender a second.
func awaitUp(h *netlink.Handle, link netlink.Link) error {
	tick := time.NewTicker(upInterval)
	defer tick.Stop()
	for range upAttempts {
		l, err := h.LinkByIndex(link.Attrs().Index)
		if err != nil {
			return err
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		<-tick.C
	}
	return nil // slow at first, but connected
}

// Set puts a container into the namespace. A step of a run is called by its own name there: the whole
// name may be longer than the kernel allows, and the network's key is nobody's business.
func (e *endpoint) Set(s *specs.Spec) error {
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), e.ns.Fd())
	err := oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path})(nil, nil, nil, s)
	if err != nil || e.bridge.isolated() {
		return err
	}
	s.Hostname = hostLabel(e.step)
	return e.provider.addHosts(e, s)
}

// Sample measures nothing.
func (e *endpoint) Sample() (*resourcestypes.NetworkSample, error) { return nil, nil }

// Close disconnects the container. It may be called twice.
func (e *endpoint) Close() error {
	e.closing.Do(func() { e.err = e.provider.leave(e) })
	return e.err
}

func (e *endpoint) closeNamespace() error {
	if e.ns == nil {
		return nil
	}
	return e.ns.Close()
}
