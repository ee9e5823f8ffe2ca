package buildkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"kiln/internal/buildkit/limits"
	"kiln/internal/buildkit/peers"
	"kiln/internal/solve"
)

// How a daemon connects its containers, as it says itself.
const (
	networkOwn    = limits.Network // by the host name that kiln gives them
	networkPlugin = peers.Plugin   // by the host name, which has a number besides
	networkCNI    = "cni"          // by a plugin, of which nothing is known
	networkHost   = "host"         // not at all: they share the network of the host
)

const (
	// maxHostname is Linux's limit of a host name, in bytes. Kiln's own daemon gives a container its step's
	// part of the name only, so there the limit is one of the step.
	maxHostname     = 64
	maxStepHostname = 200
	// keySize is how much of a network's key is random, in bytes: others cannot guess it while a run lasts.
	keySize = 8
)

// A place is where in the networks of a session a container is.
type place struct {
	hostname string // "<step>.<key>": by the second part a daemon knows which network to join
	mode     pb.NetMode
	hosts    map[string]string // names to addresses
}

// place returns where c belongs.
func (s *runSession) place(ctx context.Context, c solve.Container) (place, error) {
	p := place{hosts: c.Hosts}
	if c.Network != solve.NetworkRun {
		p.hostname = label(c.Step) // without a key it joins nothing
		p.hostname = p.hostname[:min(len(p.hostname), maxHostname-1)]
		if c.Network == solve.NetworkNone {
			p.mode = pb.NetMode_NONE
		}
		return p, nil
	}
	kind, err := s.client.network(ctx)
	if err != nil {
		return p, fmt.Errorf("network of the build daemon: %w", err)
	}
	switch kind {
	case networkOwn:
		p.hostname = hostname(c.Step, s.networkKey(c.NetworkName), maxStepHostname)
	case networkPlugin:
		return s.numbered(c)
	case networkHost:
		p.hostname = hostname(c.Step, label(s.cfg.Run), maxHostname)
		p.hosts = local(c)
	default: // other containers are not known by name
		if c.Started != nil {
			return p, stepError("services need kiln's own build daemon, or one with the plugin of kiln cni or with host networking: "+
				"on the network of this one (%s) steps do not find each other", kind)
		}
		p.hostname = hostname(c.Step, s.networkKey(c.NetworkName), maxHostname)
	}
	return p, nil
}

// local returns the hosts of a container that shares the host's network with all others.
func local(c solve.Container) map[string]string {
	hosts := map[string]string{}
	for _, peer := range c.Peers {
		hosts[peer], hosts[label(peer)] = "127.0.0.1", "127.0.0.1"
	}
	maps.Copy(hosts, c.Hosts)
	return hosts
}

// numbered returns the place of a container that kiln's plugin connects: its number gives it an address under
// which others know it before it is started.
func (s *runSession) numbered(c solve.Container) (place, error) {
	p := place{hosts: map[string]string{}}
	for _, peer := range c.Peers {
		addr, err := peers.Address(s.number(c.NetworkName, peer))
		if err != nil {
			return p, err
		}
		p.hosts[peer], p.hosts[label(peer)] = addr.String(), addr.String()
	}
	maps.Copy(p.hosts, c.Hosts)
	p.hostname = hostname(c.Step, strings.TrimPrefix(peers.Suffix(s.number(c.NetworkName, c.Step)), ".")+"."+s.networkKey(c.NetworkName), maxHostname)
	return p, nil
}

// number returns the number of a step in a network of the run, which it keeps.
func (s *runSession) number(network, step string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.numbers == nil {
		s.numbers = map[string]map[string]int{}
	}
	if s.numbers[network] == nil {
		s.numbers[network] = map[string]int{}
	}
	n := s.numbers[network][step]
	if n == 0 {
		n = len(s.numbers[network]) + 1
		s.numbers[network][step] = n
	}
	return n
}

// networkKey names a network of the session so that no other session can guess it.
func (s *runSession) networkKey(name string) string {
	sum := sha256.Sum256([]byte("network " + s.token + " " + name))
	return hex.EncodeToString(sum[:keySize])
}

// hostname returns "<step>.<key>", of at most limit bytes.
func hostname(step, key string, limit int) string {
	if !plain(step) {
		step = label(step)
	}
	step = strings.TrimRight(step[:min(len(step), max(1, limit-1-len(key)))], "-_.")
	return step + "." + key
}

// plain reports whether s can be a part of a host name as it is: that is what a step may be called that
// others reach.
func plain(s string) bool {
	for i, r := range s {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return s != ""
}

// label returns s as a part of a host name.
func label(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(s))
	if s = strings.Trim(s, "-"); s == "" {
		return "x"
	}
	return s
}
