package buildkit_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"kiln/internal/event"
	"kiln/internal/solve"
)

// startNeighbour connects a web server to this host, in a network of its own: at a link-local address, as the
// service that tells virtual machines their secrets, and at another.
func startNeighbour(t *testing.T) (linkLocal, other string) {
	t.Helper()
	n := os.Getpid() % 60 // of several tests at once, each has its addresses
	local, other := fmt.Sprintf("169.254.213.%d", 4*n+2), fmt.Sprintf("192.0.2.%d", 4*n+2)
	cmd := exec.Command("/bin/busybox", "sh", "-c", fmt.Sprintf(`until ip link show eth0; do sleep 0.05; done >/dev/null 2>&1
		ip addr add %s/30 dev eth0 && ip addr add %s/30 dev eth0 && ip link set eth0 up && exec httpd -f -p 8080 -h /etc`, local, other))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("kt%d", os.Getpid())}, PeerName: "eth0", PeerNamespace: netlink.NsPid(cmd.Process.Pid)}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(link) }) // it goes with its peer
	for _, addr := range []string{local, other} {
		ip := net.ParseIP(addr).To4()
		ip[3]-- // this host's end
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(30, 32)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	return local, other
}

// testLinkLocal has steps look for a neighbour of this host, which they find at any but its link-local address.
func testLinkLocal(t *testing.T, e *env) {
	linkLocal, other := startNeighbour(t)
	script := fmt.Sprintf("for i in $(seq 60); do knock %s | busybox grep -q answers && break; done\nknock %[1]s\nknock %s\n", other, linkLocal)
	want := other + " answers\n" + linkLocal + " does not\n"
	s := e.open(t, solve.SessionConfig{})
	c := e.shell(knock + script)
	_, j := runStep(t, s, c)
	for where, got := range map[string]string{"cmd": j.text(event.StreamStdout), "RUN": e.runInBuild(t, s, script)} {
		if !strings.HasSuffix(got, want) {
			t.Errorf("%s finds %q, want %q", where, got, want)
		}
	}
}
