package buildkit

import (
	"context"
	"strconv"
	"strings"
	"time"

	gwclient "github.com/moby/buildkit/frontend/gateway/client"

	"kiln/internal/buildkit/limits"
	"kiln/internal/event"
	"kiln/internal/solve"
)

// limited returns env with the limits and the options of c in it, as kiln's own daemon reads them. Of another
// daemon's containers nothing of that can be had, which the step's log says.
func (g *gateway) limited(ctx context.Context, c solve.Container, img *image, env []string, log solve.LogFunc) ([]string, error) {
	want := limits.Limits{CPUs: c.CPUs, Memory: c.Memory}
	options, err := g.options(ctx, c, img)
	if err != nil {
		return nil, err
	}
	names := options.Names()
	if want == (limits.Limits{}) && len(names) == 0 {
		return limits.PutOptions(limits.Put(env, want), options), nil
	}
	network, err := g.session.client.network(ctx)
	if err != nil {
		return nil, err
	}
	if network != limits.Network {
		say := func(text string) {
			log(event.LogEntry{Time: time.Now(), Stream: event.StreamKiln, Data: []byte("warning: " + text + "\n")})
		}
		if want != (limits.Limits{}) {
			say("the limits of processors and memory have no effect: this BuildKit daemon cannot limit a container; kiln's own can")
		}
		if len(names) > 0 {
			say(strings.Join(names, ", ") + ": without effect on this BuildKit daemon; kiln's own can do it")
		}
		want, options = limits.Limits{}, limits.Options{}
	}
	return limits.PutOptions(limits.Put(env, want), options), nil
}

// options returns what is to be different about c, as the daemon is told.
func (g *gateway) options(ctx context.Context, c solve.Container, img *image) (limits.Options, error) {
	o := c.Options
	out := limits.Options{ReadOnly: o.ReadOnly, Hostname: o.Hostname, Aliases: o.Names, Nameservers: o.Nameservers, Search: o.Search, Resolver: o.Resolver,
		Capabilities: o.Capabilities, NoNewPrivileges: o.NoNewPrivileges, Pids: o.Pids, Shares: o.CPUShares, Swap: o.MemorySwap,
		CPUs: o.CPUSet, Nodes: o.NodeSet, Sysctls: o.Sysctls}
	for _, u := range o.Ulimits {
		out.Ulimits = append(out.Ulimits, limits.Ulimit(u))
	}
	for _, t := range tmpfsOf(c) {
		if len(t.Options) == 0 {
			continue
		}
		if out.Tmpfs == nil {
			out.Tmpfs = map[string][]string{}
		}
		out.Tmpfs[t.Path] = t.Options
	}
	var err error
	out.Groups, err = g.groups(ctx, c, img)
	return out, err
}

// maxGroupFile bounds what is read of an image's /etc/group, in bytes.
const maxGroupFile = 1 << 20

// groups returns the numbers of the groups that c is to be in.
func (g *gateway) groups(ctx context.Context, c solve.Container, img *image) ([]uint32, error) {
	var groups []uint32
	var known []byte
	for _, name := range c.Options.Groups {
		id, err := strconv.ParseUint(name, 10, 32)
		if err == nil {
			groups = append(groups, uint32(id))
			continue
		}
		if known == nil && img.rootfs != nil {
			known, err = img.rootfs.ReadFile(ctx, gwclient.ReadRequest{Filename: "/etc/group", Range: &gwclient.FileRange{Length: maxGroupFile}})
			if failure, engine := g.failure(ctx, err); err != nil && engine {
				return nil, failure
			}
		}
		group, ok := groupOf(string(known), name)
		if !ok {
			return nil, stepError("group %q is not in /etc/group of image %s; give its number", name, c.Image)
		}
		groups = append(groups, group)
	}
	return groups, nil
}

// groupOf looks a group up in the text of an /etc/group.
func groupOf(file, name string) (uint32, bool) {
	for line := range strings.Lines(file) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 3 || fields[0] != name {
			continue
		}
		id, err := strconv.ParseUint(fields[2], 10, 32)
		return uint32(id), err == nil
	}
	return 0, false
}
