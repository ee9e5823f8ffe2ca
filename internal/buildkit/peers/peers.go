// Package peers is what a session and kiln's network plugin have agreed on, for daemons that are not kiln's
// own: there nobody can change what a container finds under a name once it runs. So each step has a number in
// the networks of its run, and by it an address that is known before anything is started. It is valid on the
// run's own network only; every network has the same ones.
//
// The number travels in the host name of the container, which is all that a plugin gets to know of it.
package peers

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Plugin is the name of the network plugin. An operator gives the worker of a daemon that uses it the label
// Label with this value; a daemon does not tell by itself which plugin it uses.
const (
	Plugin = "kiln-cni"
	Label  = "org.kiln.network"
)

// Range has the addresses of steps. Nobody else uses it: it is set aside for measurements of networks.
var Range = netip.MustParsePrefix("198.19.0.0/16")

// Max is the highest number.
const Max = 1<<16 - 2

// Address returns the address of a number, from 1 to Max.
func Address(n int) (netip.Addr, error) {
	if n < 1 || n > Max {
		return netip.Addr{}, fmt.Errorf("network: number %d of a step: a network has room for %d", n, Max)
	}
	a := Range.Addr().As4()
	a[2], a[3] = byte(n>>8), byte(n)
	return netip.AddrFrom4(a), nil
}

// Suffix returns what stands behind a step's name in its host name.
func Suffix(n int) string { return "." + strconv.Itoa(n) }

// Split returns the number at the end of a name, zero if there is none.
func Split(name string) (step string, n int) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return name, 0
	}
	n, err := strconv.Atoi(name[i+1:])
	if err != nil || n < 1 || n > Max {
		return name, 0
	}
	return name[:i], n
}
