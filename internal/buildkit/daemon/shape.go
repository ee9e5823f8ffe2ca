package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/resolvconf"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"kiln/internal/buildkit/daemon/runnet"
	"kiln/internal/buildkit/limits"
)

// maxShares is the share of processor time that a container has anyway.
const maxShares = 1024

// shape makes a container what its client has asked for, as far as BuildKit's executor has words for it. The
// rest goes with the context to where the container's specification passes by: see shapedNamespace.
func shape(ctx context.Context, meta *executor.Meta, mounts []executor.Mount) (context.Context, []executor.Mount) {
	var o limits.Options
	o, meta.Env = limits.TakeOptions(meta.Env)
	if len(o.Names()) == 0 {
		return ctx, mounts
	}
	meta.ReadonlyRootFS = meta.ReadonlyRootFS || o.ReadOnly
	if o.Shares > 0 || o.Swap != 0 || o.CPUs != "" || o.Nodes != "" {
		if meta.LinuxResources == nil {
			meta.LinuxResources = &pb.LinuxResources{}
		}
		r := meta.LinuxResources
		r.CpuShares, r.CpusetCpus, r.CpusetMems = min(o.Shares, maxShares), o.CPUs, o.Nodes
		if r.Memory > 0 && swapLimited() { // swap is limited together with memory or not at all
			r.MemorySwap = o.Swap
		}
	}
	mounts = slices.Clone(mounts)
	for i, m := range mounts {
		if options := tmpfsOptions(o.Tmpfs[m.Dest]); len(options) > 0 {
			mounts[i].Src = tunedMountable{m.Src, options}
		}
	}
	ctx = runnet.WithWishes(ctx, runnet.Wishes{Names: o.Aliases, Changed: len(o.Sysctls) > 0})
	return context.WithValue(ctx, optionsKey{}, o), mounts
}

type optionsKey struct{}

// swapLimited reports whether the kernel can limit swap. The runtime would start no container that it should limit.
func swapLimited() bool {
	for _, pattern := range []string{"/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/*/memory.swap.max"} {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// tmpfsOptions are those of options that a directory in memory may have.
func tmpfsOptions(options []string) []string {
	var known []string
	for _, o := range options {
		name, _, _ := strings.Cut(o, "=")
		if slices.Contains([]string{"size", "mode", "uid", "gid", "nr_inodes", "noexec", "nodev"}, name) && !strings.Contains(o, ",") {
			known = append(known, o)
		}
	}
	return known
}

// A tunedMountable is one of memory with further options. Of another kind it is left as it is.
type tunedMountable struct {
	executor.Mountable
	options []string
}

func (t tunedMountable) Mount(ctx context.Context, readonly bool) (executor.MountableRef, error) {
	ref, err := t.Mountable.Mount(ctx, readonly)
	if err != nil {
		return nil, err
	}
	return tunedRef{ref, t.options}, nil
}

type tunedRef struct {
	executor.MountableRef
	options []string
}

func (t tunedRef) Mount() ([]mount.Mount, func() error, error) {
	mounts, release, err := t.MountableRef.Mount()
	mounts = slices.Clone(mounts)
	for i, m := range mounts {
		if m.Type == "tmpfs" {
			mounts[i].Options = slices.Concat(m.Options, t.options)
		}
	}
	return mounts, release, err
}

// shaped returns the networks with a look at the specifications of the containers that join them. Files of running
// containers are kept in dir.
func (n networks) shaped(dir string) networks {
	out := networks{}
	for mode, provider := range n {
		out[mode] = shapedNetwork{provider, dir}
	}
	return out
}

type shapedNetwork struct {
	network.Provider
	dir string
}

func (n shapedNetwork) New(ctx context.Context, hostname string, opt network.NamespaceOptions) (network.Namespace, error) {
	ns, err := n.Provider.New(ctx, hostname, opt)
	o, ok := ctx.Value(optionsKey{}).(limits.Options)
	if err != nil || !ok {
		return ns, err
	}
	return &shapedNamespace{Namespace: ns, options: o, dir: n.dir}, nil
}

// A shapedNamespace applies the options of a container to its specification.
type shapedNamespace struct {
	network.Namespace
	options limits.Options
	dir     string
	resolv  string // the container's own resolv.conf, "" if it has none
}

// Set implements network.Namespace.
func (n *shapedNamespace) Set(s *specs.Spec) error {
	if err := n.Namespace.Set(s); err != nil {
		return err
	}
	o := n.options
	if o.Hostname != "" {
		s.Hostname = o.Hostname
	}
	for _, u := range o.Ulimits {
		if u.Name == "rtprio" || u.Name == "nice" {
			continue // they would let it go before other containers
		}
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, o.Groups...)
	if c := s.Process.Capabilities; c != nil && o.Capabilities != nil {
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Inheritable, &c.Permitted, &c.Ambient} {
			*set = slices.DeleteFunc(slices.Clone(*set), func(name string) bool { return !slices.Contains(o.Capabilities, name) })
		}
	}
	s.Process.NoNewPrivileges = s.Process.NoNewPrivileges || o.NoNewPrivileges
	if o.Pids > 0 {
		if s.Linux.Resources == nil {
			s.Linux.Resources = &specs.LinuxResources{}
		}
		s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &o.Pids}
	}
	for name, value := range o.Sysctls {
		if !limits.Namespaced(name) {
			continue // it would be the host's
		}
		if s.Linux.Sysctl == nil {
			s.Linux.Sysctl = map[string]string{}
		}
		s.Linux.Sysctl[name] = value
	}
	return n.resolve(s)
}

// resolve gives the container a resolv.conf of its own if it is to have another. Who is asked has to be reachable
// by the rules of its network all the same.
func (n *shapedNamespace) resolve(s *specs.Spec) error {
	o := n.options
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/etc/resolv.conf" })
	if i < 0 || len(o.Nameservers)+len(o.Search)+len(o.Resolver) == 0 {
		return nil
	}
	conf, err := resolvconf.Load(s.Mounts[i].Source)
	if err != nil {
		return err
	}
	if len(o.Nameservers) > 0 {
		var servers []netip.Addr
		for _, text := range o.Nameservers {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return fmt.Errorf("nameserver %q: %w", text, err)
			}
			servers = append(servers, addr)
		}
		conf.OverrideNameServers(servers)
	}
	if len(o.Search) > 0 {
		conf.OverrideSearch(o.Search)
	}
	if len(o.Resolver) > 0 {
		conf.OverrideOptions(o.Resolver)
	}
	text, err := conf.Generate(false)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(n.dir, "resolv-")
	if err != nil {
		return err
	}
	n.resolv, s.Mounts[i].Source = f.Name(), f.Name()
	_, err = f.Write(text)
	return errors.Join(err, f.Chmod(0o644), f.Close())
}

// Close implements network.Namespace. It may be called twice.
func (n *shapedNamespace) Close() error {
	err := n.Namespace.Close()
	if n.resolv != "" {
		err = errors.Join(err, os.RemoveAll(n.resolv))
	}
	return err
}
