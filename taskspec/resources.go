package taskspec

import (
	"encoding/base64"
	"regexp"
	"slices"

	"gopkg.in/yaml.v3"
)

const defaultNetwork = "acb_default_network"

func (p *parser) networkList(n *yaml.Node) []Network {
	var list []Network
	items := p.items(place{}, "networks", n)
	if len(items) > maxNetworks {
		p.errorf(place{node: items[maxNetworks]}, "networks", "a task has at most %d networks, this one has %d", maxNetworks, len(items))
		return nil
	}
	for _, item := range items {
		var net Network
		networkTable.decode(p, &net, place{}, item)
		if net.Name == "" {
			p.refuse(place{node: item}, "networks", "a network needs a name")
		}
		list = append(list, net)
	}
	return list
}

// finishNetworks adds the outer or the implicit network and leaves at most one default, the last.
func (p *parser) finishNetworks(t *Task) {
	switch {
	case p.opt.Network != "":
		t.Networks = append(t.Networks, Network{Name: p.opt.Network, SkipCreation: true, Default: true})
	case len(t.Networks) == 0:
		t.Networks = []Network{{Name: defaultNetwork, Driver: "bridge", Default: true}}
	}
	found := false
	for i := len(t.Networks) - 1; i >= 0; i-- {
		t.Networks[i].Default = t.Networks[i].Default && !found
		found = found || t.Networks[i].Default
	}
}

// stepNetwork sets the network of a step.
func (p *parser) stepNetwork(t *Task, s *rawStep) {
	name := s.network.text
	if name == "" {
		s.Network = "bridge"
		for _, net := range t.Networks {
			if net.Default {
				s.Network = net.Name
			}
		}
		if s.Network == defaultNetwork {
			s.Network = ""
		}
		return
	}
	s.Network = p.oneWord(s.at(nil), "network", s.network.node)
	switch s.Network {
	case "", "host", "none", "bridge", "default":
		return
	}
	names := make([]string, len(t.Networks))
	for i, net := range t.Networks {
		if net.Name == s.Network {
			return
		}
		names[i] = net.Name
	}
	p.warnf(s.at(s.network.node), "network", "no network %q is declared%s", p.clip(s.Network), didYouMean(s.Network, names))
}

var (
	volumeName = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)
	fileName   = regexp.MustCompile(`^[a-zA-Z0-9_.-]+$`)
)

// A volumeNode is a volume and whether any of its files are written.
type volumeNode struct {
	Volume
	declared bool
}

func (p *parser) volumeList(n *yaml.Node) []Volume {
	var list []Volume
	seen := map[string]bool{}
	items := p.items(place{}, "volumes", n)
	if len(items) > maxVolumes {
		p.errorf(place{node: items[maxVolumes]}, "volumes", "a task has at most %d volumes, this one has %d", maxVolumes, len(items))
		return nil
	}
	for _, item := range items {
		var v volumeNode
		volumeTable.decode(p, &v, place{}, item)
		at := place{node: item}
		switch {
		case v.Name == "":
			p.errorf(at, "volumes", "a volume needs a name")
		case !volumeName.MatchString(v.Name):
			p.errorf(at, "volumes", "volume name %q has other characters than letters, digits, _ and -", p.clip(v.Name))
		case seen[v.Name]:
			p.errorf(at, "volumes", "volume name %q is used twice", p.clip(v.Name))
		case !v.declared:
			p.errorf(at, "volumes", "volume %q needs a secret with at least one file", p.clip(v.Name))
		}
		seen[v.Name] = true
		list = append(list, v.Volume)
	}
	return list
}

// volumeFiles decodes the files of a volume, file name to base64 text, and reports whether any are written.
func (p *parser) volumeFiles(n *yaml.Node) (files map[string][]byte, written bool) {
	files = map[string][]byte{}
	for _, f := range p.fields(place{}, "volumes.secret", n) {
		written = true
		if !fileName.MatchString(f.name) || f.name == "." || f.name == ".." {
			p.errorf(place{node: f.key}, "volumes.secret", "file name %q has other characters than letters, digits, _ . and -", p.clip(f.name))
			continue
		}
		data, err := base64.StdEncoding.DecodeString(p.str(place{}, "volumes.secret", f.value))
		if err != nil {
			p.errorf(place{node: f.value}, "volumes.secret", "the content of %q is not base64; write {{... | b64enc}}", p.clip(f.name))
			continue
		}
		files[f.name] = data
	}
	return files, written || p.failed() && n.Kind != yaml.MappingNode
}

// A mountNode is a mount and where it stands.
type mountNode struct {
	Mount
	node *yaml.Node
}

func (p *parser) mountList(s *rawStep, n *yaml.Node) []mountNode {
	var list []mountNode
	for _, item := range p.items(s.at(nil), "volumeMounts", n) {
		m := mountNode{node: item}
		mountTable.decode(p, &m, s.at(nil), item)
		list = append(list, m)
	}
	return list
}

// checkMounts checks the mounts of a step and sets Mounts.
func (p *parser) checkMounts(t *Task, s *rawStep) {
	if len(s.mounts) == 0 {
		return
	}
	if s.Kind == KindPush {
		p.errorf(s.at(s.mounts[0].node), "volumeMounts", "only cmd and build steps can mount volumes")
		return
	}
	names := make([]string, len(t.Volumes))
	for i, v := range t.Volumes {
		names[i] = v.Name
	}
	paths := map[string]bool{}
	for _, m := range s.mounts {
		at := s.at(m.node)
		switch {
		case m.Volume == "":
			p.errorf(at, "volumeMounts", "a mount needs a name")
		case m.Path == "":
			p.errorf(at, "volumeMounts", "a mount needs a mountPath")
		case !slices.Contains(names, m.Volume) && p.full():
		case !slices.Contains(names, m.Volume):
			p.errorf(at, "volumeMounts", "mount name, %s, does not correspond to a volume%s", p.clip(m.Volume), didYouMean(m.Volume, names))
		case paths[m.Path]:
			p.errorf(at, "volumeMounts", "mountPath %q is used twice", p.clip(m.Path))
		}
		paths[m.Path] = true
		s.Mounts = append(s.Mounts, m.Mount)
	}
}
