// Package cni is kiln's network plugin: it gives the containers of a BuildKit daemon as it is shipped the
// networks that those of kiln's own daemon have, by package runnet. The daemon executes it, under the protocol of
// the Container Network Interface, for each container that begins and ends.
//
// It is the same program as everything else, called by another name. Calls may come at the same time.
package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"kiln/internal/buildkit/daemon/runnet"
	"kiln/internal/buildkit/peers"
)

// loopback is the name of the plugin that every daemon wants beside.
const loopback = "loopback"

// Called reports whether a process that was started by a name, with the variable CNI_COMMAND in its environment,
// is to be a plugin.
func Called(name, command string) bool {
	name = filepath.Base(name)
	return command != "" && (name == peers.Plugin || name == loopback)
}

// Main is the plugin of a name. It returns the exit code.
func Main(name string) int {
	funcs := skel.CNIFuncs{Add: add, Del: remove, Check: func(*skel.CmdArgs) error { return nil }}
	if filepath.Base(name) == loopback {
		funcs.Add, funcs.Del = addLoopback, func(*skel.CmdArgs) error { return nil }
	}
	if e := skel.PluginMainFuncsWithError(funcs, version.All, "kiln's network of builds"); e != nil {
		_ = e.Print() // to whoever executes the plugin, who sees the exit code anyway
		return 1
	}
	return 0
}

// config is what the plugin reads of the network's configuration.
type config struct {
	types.PluginConf
	// Pools and Nameservers replace the ranges that networks are cut from, and the nameservers of the host.
	Pools       []netip.Prefix `json:"pools"`
	Nameservers []netip.Addr   `json:"nameservers"`
}

func read(args *skel.CmdArgs) (*config, *runnet.Plugin, error) {
	var c config
	if err := json.Unmarshal(args.StdinData, &c); err != nil {
		return nil, nil, fmt.Errorf("configuration: %w", err)
	}
	sum := sha256.Sum256([]byte(c.Name))
	return &c, &runnet.Plugin{ID: hex.EncodeToString(sum[:4]), Pools: c.Pools, Nameservers: c.Nameservers,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}, nil
}

// hostname returns the host name of the container, which BuildKit hands over as a pod's.
func hostname(args string) string {
	for arg := range strings.SplitSeq(args, ";") {
		if name, ok := strings.CutPrefix(arg, "K8S_POD_NAME="); ok {
			return name
		}
	}
	return ""
}

func add(args *skel.CmdArgs) error {
	c, plugin, err := read(args)
	if err != nil {
		return err
	}
	j, err := plugin.Connect(context.Background(), runnet.Member{ID: args.ContainerID, Hostname: hostname(args.Args), Namespace: args.Netns, Link: args.IfName})
	if err != nil {
		return err
	}
	inside := 2 // in the list of interfaces
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: j.Bridge}, {Name: j.Port}, {Name: args.IfName, Sandbox: args.Netns}},
		IPs:        []*current.IPConfig{{Interface: &inside, Address: ipNet(j.Address), Gateway: j.Gateway.AsSlice()}},
		Routes:     []*types.Route{{Dst: net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, GW: j.Gateway.AsSlice()}}}
	if j.Peer.IsValid() {
		result.IPs = append(result.IPs, &current.IPConfig{Interface: &inside, Address: ipNet(j.Peer)})
	}
	return types.PrintResult(result, c.CNIVersion)
}

func remove(args *skel.CmdArgs) error {
	_, plugin, err := read(args)
	if err != nil {
		return err
	}
	return plugin.Disconnect(context.Background(), args.ContainerID)
}

func addLoopback(args *skel.CmdArgs) error {
	c, _, err := read(args)
	if err != nil {
		return err
	}
	if err := runnet.Loopback(args.Netns); err != nil {
		return err
	}
	inside := 0
	return types.PrintResult(&current.Result{CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: args.IfName, Mac: "00:00:00:00:00:00", Sandbox: args.Netns}},
		IPs:        []*current.IPConfig{{Interface: &inside, Address: net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}}}, c.CNIVersion)
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Install makes of a directory what a daemon needs to use the plugin, which is program, and returns what is to
// be written into the daemon's configuration. It may be repeated.
func Install(dir, program string) (toml string, err error) {
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{peers.Plugin, loopback} {
		link := filepath.Join(bin, name)
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err := os.Symlink(program, link); err != nil {
			return "", err
		}
	}
	list := filepath.Join(dir, "kiln.conflist")
	text := fmt.Sprintf("{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"kiln\",\n  \"plugins\": [{\"type\": %q}]\n}\n", peers.Plugin)
	if err := os.WriteFile(list, []byte(text), 0o644); err != nil {
		return "", err
	}
	return fmt.Sprintf("[worker.oci]\n  networkMode = \"cni\"\n  cniConfigPath = %q\n  cniBinaryPath = %q\n  [worker.oci.labels]\n    %q = %q\n",
		list, bin, peers.Label, peers.Plugin), nil
}
