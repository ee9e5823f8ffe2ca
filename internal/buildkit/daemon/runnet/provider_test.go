package runnet

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/moby/buildkit/util/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
)

func TestStepsOfARunReachEachOther(t *testing.T) {
	p := newProvider(t, Config{})
	web, test := container(t, p, "web.run1"), container(t, p, "test.run1")
	serve(t, web.ns, ":80")
	mustReach(t, test, at(web, 80), test.addr.String())
}

func TestOthersDoNotReachARun(t *testing.T) {
	p := newProvider(t, Config{})
	other := newProvider(t, Config{ID: "fedc9876"})
	web := container(t, p, "web.run1")
	serve(t, web.ns, ":80")
	for _, c := range []struct {
		name string
		from *endpoint
	}{
		{"other run", container(t, p, "web.run2")},
		{"build step", container(t, p, "")},
		{"hostname without a run", container(t, p, "run1")},
		{"same run name on another daemon", container(t, other, "test.run1")},
		{"build step of another daemon", container(t, other, "")},
	} {
		t.Run(c.name, func(t *testing.T) { mustNotReach(t, c.from, at(web, 80)) })
	}
}

func TestBuildStepsDoNotReachEachOther(t *testing.T) {
	p := newProvider(t, Config{})
	a, b := container(t, p, ""), container(t, p, "")
	serve(t, a.ns, ":80")
	mustNotReach(t, b, at(a, 80))
}

func TestOutsideIsReachedByTheHostsAddress(t *testing.T) {
	world := connectTo(t, nil, "203.0.113.2/24", "203.0.113.1/24")
	serve(t, world.ns, ":80")
	p := newProvider(t, Config{})
	for _, hostname := range []string{"", "web.run1"} {
		mustReach(t, container(t, p, hostname), "203.0.113.1:80", "203.0.113.2")
	}
}

func TestHostIsNotReached(t *testing.T) {
	connectTo(t, nil, "203.0.113.2/24", "203.0.113.1/24")
	serve(t, nil, ":8080")
	p := newProvider(t, Config{})
	for _, hostname := range []string{"", "web.run1"} {
		c := container(t, p, hostname)
		mustNotReach(t, c, "203.0.113.2:8080")
		mustNotReach(t, c, c.bridge.gateway().String()+":8080")
	}
}

func TestNameserverOnTheHostIsReached(t *testing.T) {
	connectTo(t, nil, "203.0.113.2/24", "203.0.113.1/24")
	serve(t, nil, ":53")
	p := newProvider(t, Config{Nameservers: []netip.Addr{netip.MustParseAddr("203.0.113.2")}})
	c := container(t, p, "")
	mustReach(t, c, "203.0.113.2:53", c.addr.String())
	mustNotReach(t, c, c.bridge.gateway().String()+":53")
}

func TestLinkLocalAddressesAreNotReached(t *testing.T) {
	metadata := connectTo(t, nil, "169.254.169.1/24", "169.254.169.254/24")
	serve(t, metadata.ns, ":80")
	serve(t, metadata.ns, ":53")
	p := newProvider(t, Config{Nameservers: []netip.Addr{netip.MustParseAddr("169.254.169.254")}})
	c := container(t, p, "")
	mustNotReach(t, c, "169.254.169.254:80")
	mustReach(t, c, "169.254.169.254:53", "169.254.169.1")
}

func TestOtherBridgesOfTheHostAreNotReached(t *testing.T) {
	docker := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
	must(t, netlink.LinkAdd(docker))
	t.Cleanup(func() { must(t, netlink.LinkDel(docker)) })
	db := connectTo(t, docker, "172.17.0.1/24", "172.17.0.2/24")
	serve(t, db.ns, ":5432")
	p := newProvider(t, Config{})
	mustNotReach(t, container(t, p, ""), "172.17.0.2:5432")
	mustNotReach(t, container(t, p, "web.run1"), "172.17.0.2:5432")
}

// TestForeignFirewallThatDrops is a host with Docker: its filter table drops what is forwarded for
// others, and bridged packets pass through it too.
func TestForeignFirewallThatDrops(t *testing.T) {
	must(t, os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0o644))
	t.Cleanup(func() {
		must(t, os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0o644))
	})
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	policy := nftables.ChainPolicyDrop
	table := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	must(t, c.Flush())
	t.Cleanup(func() { c.DelTable(table); must(t, c.Flush()) })

	world := connectTo(t, nil, "203.0.113.2/24", "203.0.113.1/24")
	serve(t, world.ns, ":80")
	p := newProvider(t, Config{})
	web, test := container(t, p, "web.run1"), container(t, p, "test.run1")
	serve(t, web.ns, ":80")
	mustReach(t, test, "203.0.113.1:80", "203.0.113.2")
	mustReach(t, test, at(web, 80), test.addr.String())
	mustNotReach(t, container(t, p, "web.run2"), at(web, 80))

	must(t, p.Close())
	if rules, err := c.GetRules(table, chain); err != nil || len(rules) != 0 {
		t.Errorf("%d rules left in the foreign chain, %v, want none", len(rules), err)
	}
}

func TestBridgeGoesWithTheLastContainer(t *testing.T) {
	p := newProvider(t, Config{NoReuse: true})
	p.linger = 0
	a, b := container(t, p, "a.run1"), container(t, p, "b.run1")
	must(t, a.Close())
	p.removals.Wait()
	if got := ourLinks(t, testID); len(got) != 2 {
		t.Errorf("links with one container left = %v, want its bridge and port", got)
	}
	must(t, b.Close())
	awaitNoLinks(t, testID)
	container(t, p, "c.run1") // and comes again
}

func TestNextContainerOfARunTakesThePlaceOfTheLast(t *testing.T) {
	p := newProvider(t, Config{})
	p.linger = time.Hour
	serve(t, container(t, p, "web.run1").ns, ":80")
	first := container(t, p, "a.run1")
	must(t, first.Close())
	second := container(t, p, "b.run1")
	if second.port != first.port || second.addr != first.addr {
		t.Errorf("place of the second container = %s %s, want %s %s", second.port, second.addr, first.port, first.addr)
	}
	if err := first.Close(); err != nil || second.ns.Fd() == ^uintptr(0) {
		t.Errorf("closing the first again: %v, the second's namespace must stay open", err)
	}
	if other := container(t, p, "a.run2"); other.port == first.port {
		t.Error("a container of another run got the place")
	}
	p.linger = 0
	must(t, second.Close())
}

// awaitNoLinks waits until the provider with that ID has no interfaces, as happens in the background.
func awaitNoLinks(t *testing.T, id string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); len(ourLinks(t, id)) > 0; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("links %v are still there", ourLinks(t, id))
		}
	}
}

func TestSweepRemovesWhatAKilledProcessLeft(t *testing.T) {
	p := newProvider(t, Config{})
	for _, hostname := range []string{"", "a.run1", "b.run2"} {
		container(t, p, hostname)
	}
	other := newProvider(t, Config{ID: "fedc9876"})
	container(t, other, "a.run1")
	must(t, Sweep(testID))
	if got := ourLinks(t, testID); len(got) != 0 {
		t.Errorf("links after Sweep = %v, want none", got)
	}
	if got := tables(t); !strings.Contains(got, "fedc9876") || strings.Contains(got, testID) {
		t.Errorf("tables after Sweep = %s, want only the other provider's", got)
	}
	if got := ourLinks(t, "fedc9876"); len(got) != 2 {
		t.Errorf("links of another provider after Sweep = %v, want its bridge and port", got)
	}
	must(t, Sweep(testID)) // nothing to do
}

func tables(t *testing.T) string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, table := range all {
		names = append(names, table.Name)
	}
	return strings.Join(names, " ")
}

func TestHostsFollowsTheRun(t *testing.T) {
	p := newProvider(t, Config{})
	web := container(t, p, "web.run1")
	hosts := hostsOf(t, web)
	db := container(t, p, "My_DB.run1")
	hostsOf(t, db)
	hostsOf(t, container(t, p, "stranger.run2"))
	want := fmt.Sprintf("127.0.0.1 localhost web\n%s\tweb\n%s\tMy_DB my-db\n", web.addr, db.addr)
	if got := read(t, hosts); got != want {
		t.Errorf("hosts = %q, want %q", got, want)
	}
	must(t, db.Close())
	want = strings.Replace(want, "\n"+db.addr.String(), "\n#"+db.addr.String()[1:], 1)
	if got := read(t, hosts); got != want {
		t.Errorf("hosts after a step ended = %q, want %q", got, want)
	}
}

func TestContainerIsCalledByItsStep(t *testing.T) {
	p := newProvider(t, Config{})
	long := strings.Repeat("x", 80)
	for step, want := range map[string]string{"web": "web", "a.b": "a.b", "My_DB": "my-db", long: long[:63]} {
		s := &specs.Spec{Hostname: "unchanged", Linux: &specs.Linux{}}
		must(t, container(t, p, step+".run1").Set(s))
		if s.Hostname != want {
			t.Errorf("hostname of step %s = %s, want %s", step, s.Hostname, want)
		}
	}
}

// hostsOf returns the hosts file that a container gets.
func hostsOf(t *testing.T, e *endpoint) string {
	t.Helper()
	base := filepath.Join(t.TempDir(), "hosts")
	must(t, os.WriteFile(base, []byte("127.0.0.1 localhost "+e.step+"."+e.bridge.run+"\n"), 0o644))
	s := &specs.Spec{Linux: &specs.Linux{}, Mounts: []specs.Mount{{Destination: "/etc/hosts", Source: base}}}
	if err := e.Set(s); err != nil {
		t.Fatal(err)
	}
	return s.Mounts[0].Source
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return string(b)
}

func TestSubnetsAvoidRoutesOfTheHost(t *testing.T) {
	prefixes := func(ss ...string) (out []netip.Prefix) {
		for _, s := range ss {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	pools := prefixes("10.201.0.0/23", "172.29.0.0/28")
	for _, c := range []struct {
		name  string
		taken []netip.Prefix
		turn  int
		want  string
	}{
		{"first", nil, 0, "10.201.0.0/24"},
		{"in turn", nil, 1, "10.201.1.0/24"},
		{"round", nil, 2, "10.201.0.0/24"},
		{"next", prefixes("10.201.0.128/25"), 0, "10.201.1.0/24"},
		{"other pool", prefixes("10.0.0.0/8"), 0, "172.29.0.0/28"},
		{"none", prefixes("10.0.0.0/8", "172.16.0.0/12"), 0, "invalid Prefix"},
	} {
		got, err := freeSubnet(pools, c.taken, c.turn)
		if got.String() != c.want || (err != nil) != (c.want == "invalid Prefix") {
			t.Errorf("%s: freeSubnet = %s, %v, want %s", c.name, got, err, c.want)
		}
	}
}

func TestAddressesRunOut(t *testing.T) {
	p := newProvider(t, Config{Pools: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/28")}})
	for range 13 { // without network, gateway and broadcast
		if _, err := p.join("run1", "step", Wishes{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.join("run1", "step", Wishes{}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("one container too many: %v, want an error", err)
	}
	if _, err := p.join("run2", "step", Wishes{}); err == nil || !strings.Contains(err.Error(), "10.77.0.0/28") {
		t.Errorf("one network too many: %v, want an error", err)
	}
}

func BenchmarkContainer(b *testing.B) {
	p := newProvider(b, Config{})
	for _, hostname := range []string{"", "step.run1"} {
		b.Run("hostname="+hostname, func(b *testing.B) {
			var closing time.Duration
			for b.Loop() {
				ns, err := p.New(context.Background(), hostname, network.NamespaceOptions{})
				if err != nil {
					b.Fatal(err)
				}
				t := time.Now()
				if err := ns.Close(); err != nil {
					b.Fatal(err)
				}
				closing += time.Since(t)
			}
			b.ReportMetric(float64(closing.Microseconds())/float64(b.N), "close-µs/op")
		})
	}
}
