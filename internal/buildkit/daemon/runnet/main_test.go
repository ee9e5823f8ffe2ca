package runnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/util/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// childEnv is set in the process that runs the tests, which has a network of its own: it may do as it
// likes with the host's firewall and routes, and tests of other packages do not see it.
const childEnv = "KILN_RUNNET_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal follows the thread's death
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "runnet tests need root:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// unreachable is how long a connection may take before the test believes that it is impossible.
const unreachable = 400 * time.Millisecond

const testID = "0123abcd"

func newProvider(t testing.TB, cfg Config) *Provider {
	t.Helper()
	if cfg.ID == "" {
		cfg.ID = testID
	}
	cfg.Dir = t.TempDir()
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// container joins a network as BuildKit does.
func container(t testing.TB, p *Provider, hostname string) *endpoint {
	t.Helper()
	ns, err := p.New(context.Background(), hostname, network.NamespaceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns.(*endpoint)
}

// inside calls f on a thread that is in the namespace.
func inside(t testing.TB, ns *os.File, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// serve answers every connection in the namespace with the address that it comes from.
func serve(t testing.TB, ns *os.File, addr string) {
	t.Helper()
	var l net.Listener
	var err error
	listen := func() { l, err = net.Listen("tcp4", addr) }
	if ns == nil {
		listen()
	} else {
		inside(t, ns, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, host)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
}

// dial returns what a server says to a client in the namespace.
func dial(t testing.TB, ns *os.File, addr string) (answer string, err error) {
	t.Helper()
	inside(t, ns, func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp4", addr, unreachable); err != nil {
			return
		}
		defer c.Close()
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	})
	return answer, err
}

func mustReach(t *testing.T, from *endpoint, addr, seenAs string) {
	t.Helper()
	got, err := dial(t, from.ns, addr)
	if err != nil || got != seenAs {
		t.Errorf("connection to %s: seen as %q, %v, want %q", addr, got, err, seenAs)
	}
}

func mustNotReach(t *testing.T, from *endpoint, addr string) {
	t.Helper()
	if got, err := dial(t, from.ns, addr); err == nil {
		t.Errorf("connection to %s succeeded (seen as %q), want none", addr, got)
	}
}

func at(e *endpoint, port int) string { return netip.AddrPortFrom(e.addr, uint16(port)).String() }

// A neighbour is another machine, or a container of somebody else, on a link of the host.
type neighbour struct{ ns *os.File }

// connectTo puts a neighbour with the address remote on a link of the host with the address local.
func connectTo(t testing.TB, link netlink.Link, local, remote string) neighbour {
	t.Helper()
	ns, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	name := "x" + strings.ReplaceAll(strings.TrimSuffix(remote, "/24"), ".", "")
	name = name[:min(len(name), 13)]
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if link != nil {
		veth.MasterIndex = link.Attrs().Index
	}
	must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() {
		_ = netlink.LinkDel(veth)
		_ = ns.Close()
	})
	if link == nil {
		link = veth
	}
	la, err := netlink.ParseAddr(local)
	must(t, err)
	must(t, netlink.AddrAdd(link, la))
	must(t, netlink.LinkSetUp(link))
	must(t, netlink.LinkSetUp(veth))
	ra, err := netlink.ParseAddr(remote)
	must(t, err)
	inside(t, ns, func() {
		peer, err := netlink.LinkByName("eth0")
		must(t, err)
		must(t, netlink.AddrAdd(peer, ra))
		must(t, netlink.LinkSetUp(peer))
		h, err := netlink.NewHandle()
		must(t, err)
		defer h.Close()
		must(t, awaitUp(h, peer))
	})
	h, err := netlink.NewHandle()
	must(t, err)
	defer h.Close()
	must(t, errors.Join(awaitUp(h, veth), awaitUp(h, link)))
	return neighbour{ns}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// ourLinks are the interfaces and tables on the host that belong to the provider with that ID.
func ourLinks(t *testing.T, id string) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.Contains(l.Attrs().Name, id) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}
