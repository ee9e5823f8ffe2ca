package runnet

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/moby/buildkit/util/resolvconf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	forwardingFile = "/proc/sys/net/ipv4/ip_forward"
	// metaOutKind loads the kind of the outgoing interface ("bridge", "veth"); the library has no
	// name for it.
	metaOutKind expr.MetaKey = 27
	ifNameSize               = unix.IFNAMSIZ
)

func tableName(id string) string { return linkPrefix + id }

// installFirewall installs the rules of all networks that a provider will have, in one transaction.
//
// Nothing of it depends on which networks exist: rules match interfaces by the beginning of their
// names, and the only exception, that a network may talk to itself, is listed for all of them.
func installFirewall(id string, nameservers []netip.Addr, uplinks []string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	f := &firewall{conn: c, ours: linkPrefix + id + "-"}
	f.table = c.AddTable(&nftables.Table{Name: tableName(id), Family: nftables.TableFamilyINet})
	if err := f.addSets(id, nameservers, uplinks); err != nil {
		return err
	}
	f.addInput()
	f.addForward()
	f.addMasquerade()
	return c.Flush()
}

// A firewall is a table under construction.
type firewall struct {
	conn  *nftables.Conn
	table *nftables.Table
	ours  string // what our bridges' names begin with

	self        *nftables.Set // (bridge, bridge), for each of our bridges but the isolated one
	nameservers *nftables.Set
	uplinks     *nftables.Set // bridges that lead outside
}

func (f *firewall) addSets(id string, nameservers []netip.Addr, uplinks []string) error {
	pair, err := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	if err != nil {
		return err
	}
	f.self = &nftables.Set{Table: f.table, Name: "self", KeyType: pair, Concatenation: true}
	var pairs []nftables.SetElement
	for slot := range maxNetworks {
		name := ifName(bridgeName(id, slot))
		pairs = append(pairs, nftables.SetElement{Key: append(bytes.Clone(name), name...)})
	}
	f.nameservers = &nftables.Set{Table: f.table, Name: "nameservers", KeyType: nftables.TypeIPAddr}
	var addrs []nftables.SetElement
	for _, a := range nameservers {
		if a.Is4() && !a.IsLoopback() {
			addrs = append(addrs, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	f.uplinks = &nftables.Set{Table: f.table, Name: "uplinks", KeyType: nftables.TypeIFName}
	var links []nftables.SetElement
	for _, l := range uplinks {
		links = append(links, nftables.SetElement{Key: ifName(l)})
	}
	return errors.Join(
		f.conn.AddSet(f.self, pairs),
		f.conn.AddSet(f.nameservers, addrs),
		f.conn.AddSet(f.uplinks, links),
	)
}

// addInput keeps containers from the host's own services, its nameservers excepted.
func (f *firewall) addInput() {
	host := f.chain("host")
	f.rule(host, established, accept)
	f.allowNameservers(host)
	f.rule(host, drop)
	input := f.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityRef(*nftables.ChainPriorityFilter-10))
	f.rule(input, in(f.ours), jump(host))
}

// addForward keeps networks from each other and from other bridges of the host.
func (f *firewall) addForward() {
	out := f.chain("outbound")
	f.rule(out, exprs{meta(expr.MetaKeyIIFNAME, 1), meta(expr.MetaKeyOIFNAME, 2), lookup(f.self, false)}, accept)
	f.rule(out, established, accept)
	f.rule(out, exprs{meta(expr.MetaKeyNFPROTO, 1), equal([]byte{unix.NFPROTO_IPV6})}, drop)
	f.allowNameservers(out)
	f.rule(out, destination(netip.MustParsePrefix("169.254.0.0/16")), drop)
	f.rule(out, exprs{meta(expr.MetaKeyOIFNAME, 1), equal([]byte(linkPrefix))}, drop)
	f.rule(out, exprs{
		meta(metaOutKind, 1), equal(ifName("bridge")),
		meta(expr.MetaKeyOIFNAME, 1), lookup(f.uplinks, true),
	}, drop)

	inbound := f.chain("inbound")
	f.rule(inbound, established, accept)
	f.rule(inbound, drop)

	forward := f.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRef(*nftables.ChainPriorityFilter-10))
	f.rule(forward, in(f.ours), jump(out))
	// What a container sends is settled above; this is for what others send to one.
	f.rule(forward, exprs{meta(expr.MetaKeyIIFNAME, 1), differs([]byte(f.ours))}, outTo(f.ours), jump(inbound))
}

// addMasquerade lets containers reach the world by the host's address.
func (f *firewall) addMasquerade() {
	post := f.hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	f.rule(post, in(f.ours), exprs{meta(expr.MetaKeyOIFNAME, 1), differs([]byte(f.ours))}, exprs{&expr.Masq{}})
}

// allowNameservers accepts queries to the nameservers, also where they are on the host or have
// link-local addresses, as in some clouds.
func (f *firewall) allowNameservers(c *nftables.Chain) {
	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		f.rule(c, ipv4, exprs{
			meta(expr.MetaKeyL4PROTO, 1), equal([]byte{proto}),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			equal(binaryutil.BigEndian.PutUint16(53)),
			destinationAddr, lookup(f.nameservers, false),
		}, accept)
	}
}

func (f *firewall) chain(name string) *nftables.Chain {
	return f.conn.AddChain(&nftables.Chain{Table: f.table, Name: name})
}

func (f *firewall) hook(name string, t nftables.ChainType, h *nftables.ChainHook, p *nftables.ChainPriority) *nftables.Chain {
	return f.conn.AddChain(&nftables.Chain{Table: f.table, Name: name, Type: t, Hooknum: h, Priority: p})
}

func (f *firewall) rule(c *nftables.Chain, parts ...exprs) {
	var all exprs
	for _, p := range parts {
		all = append(all, p...)
	}
	f.conn.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: all})
}

// exprs is a part of a rule. The parts below read as in nft's own language.
type exprs []expr.Any

var (
	accept = exprs{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = exprs{&expr.Verdict{Kind: expr.VerdictDrop}}
	ipv4   = exprs{meta(expr.MetaKeyNFPROTO, 1), equal([]byte{unix.NFPROTO_IPV4})}

	established = exprs{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
			Xor:  binaryutil.NativeEndian.PutUint32(0),
		},
		differs(binaryutil.NativeEndian.PutUint32(0)),
	}
	destinationAddr = &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
)

func jump(c *nftables.Chain) exprs {
	return exprs{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}
}

// in matches packets from interfaces whose name begins with prefix.
func in(prefix string) exprs {
	return exprs{meta(expr.MetaKeyIIFNAME, 1), equal([]byte(prefix))}
}

// outTo matches packets to interfaces whose name begins with prefix.
func outTo(prefix string) exprs {
	return exprs{meta(expr.MetaKeyOIFNAME, 1), equal([]byte(prefix))}
}

// destination matches IPv4 packets to p.
func destination(p netip.Prefix) exprs {
	mask := ipNet(p).Mask
	return append(slices.Clone(ipv4), destinationAddr,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		equal(p.Addr().AsSlice()))
}

func meta(key expr.MetaKey, register uint32) *expr.Meta {
	return &expr.Meta{Key: key, Register: register}
}

// equal compares register 1 with data; of a register that is longer only the beginning counts.
func equal(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func differs(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

func lookup(s *nftables.Set, invert bool) *expr.Lookup {
	return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: invert}
}

// ifName is an interface's name as the kernel compares whole names.
func ifName(name string) []byte {
	b := make([]byte, ifNameSize)
	copy(b, name)
	return b
}

// Forwarding tells whether the host routes IPv4 packets. New switches it on.
func Forwarding() (bool, error) {
	b, err := os.ReadFile(forwardingFile)
	if err != nil {
		return false, err
	}
	return len(b) > 0 && b[0] != '0', nil
}

// enableForwarding makes the host route packets, without which no container reaches the network.
func enableForwarding(log *slog.Logger) error {
	on, err := Forwarding()
	if on || err != nil {
		return err
	}
	if err := os.WriteFile(forwardingFile, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("IP forwarding is off and cannot be switched on (sysctl -w net.ipv4.ip_forward=1): %w", err)
	}
	log.Info("IP forwarding switched on for the networks of builds", "sysctl", "net.ipv4.ip_forward")
	return nil
}

// uplinkBridges are the bridges that default routes use: the way out, not a network of containers.
func uplinkBridges(h *netlink.Handle) []string {
	routes, err := listRoutes(h)
	if err != nil {
		return nil // none is the safe assumption
	}
	var names []string
	for _, r := range routes {
		if !isDefault(r) {
			continue
		}
		if l, err := h.LinkByIndex(r.LinkIndex); err == nil && l.Type() == "bridge" {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// hostNameservers are those that BuildKit writes into the resolv.conf of containers.
func hostNameservers() []netip.Addr {
	var addrs []netip.Addr
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		if rc, err := resolvconf.Load(file); err == nil {
			addrs = append(addrs, rc.NameServers()...)
		}
	}
	return addrs
}
