package worker

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"kiln/internal/solve"
	"kiln/taskspec"
)

// optionsOf returns what the docker run options of a step make of its container.
func optionsOf(o *taskspec.RunOptions) solve.Options {
	out := solve.Options{ReadOnly: o.ReadOnly, Hostname: o.Hostname, Names: o.Names, Nameservers: o.DNS, Search: o.DNSSearch, Resolver: o.DNSOptions,
		ShmSize: o.ShmSize, Groups: o.Groups, Capabilities: o.Capabilities(), NoNewPrivileges: o.NoNewPrivileges, Platform: o.Platform,
		StopSignal: o.StopSignal, StopTimeout: o.StopTimeout, Pids: o.PIDs, CPUShares: o.CPUShares, MemorySwap: o.MemorySwap,
		CPUSet: o.CPUSet, NodeSet: o.NodeSet, Sysctls: o.Sysctls}
	for _, u := range o.Ulimits {
		out.Ulimits = append(out.Ulimits, solve.Ulimit(u))
	}
	return out
}

// unfitRun are mistakes in docker run options of a step that is not allowed to have what they say, or says
// opposite things.
func unfitRun(s *taskspec.Step, allowed privileges) []finding {
	o := &s.Cmd.Options
	memory, _ := parseMemory(s.Memory)
	return []finding{
		{len(o.Privileges) > 0 && allowed.refusal() != "", "cmd: " + strings.Join(o.Privileges, ", "), allowed.refusal()},
		{o.MemorySwap > 0 && o.MemorySwap < memory, "cmd: --memory-swap", "it is memory and swap together, so it cannot be less than --memory"},
	}
}

// mount gives a container what -v, --mount and --tmpfs of its step say. Relative paths begin in dir; volumes of the
// task are those of mounts.
func (a *attempt) mount(c *solve.Container, list []taskspec.RunMount, dir string, mounts []taskspec.Mount) error {
	for _, m := range list {
		if err := a.mountOne(c, m, dir, mounts); err != nil {
			return fmt.Errorf("-v %s: %w", clip(m.Source, 200), err)
		}
	}
	return nil
}

func (a *attempt) mountOne(c *solve.Container, m taskspec.RunMount, dir string, mounts []taskspec.Mount) error {
	if m.Kind == taskspec.MountTmpfs {
		c.Tmpfs = append(c.Tmpfs, solve.Tmpfs{Path: m.Path, Options: m.Options, ReadOnly: m.ReadOnly})
		return nil
	}
	source := m.Source
	if m.Kind == taskspec.MountBind {
		if source = path.Clean(source); !path.IsAbs(source) {
			source = path.Join(dir, source)
		}
	}
	for _, has := range mounts {
		if source == has.Volume || source == path.Clean(has.Path) {
			c.Volumes = append(c.Volumes, solve.Volume{Path: m.Path, Files: volume(a.task, has.Volume)})
			return nil
		}
	}
	switch {
	case m.Kind == taskspec.MountBind && source != workspace && source != home && !within(source, workspace) && !within(source, home):
		return fmt.Errorf("only what is in %s, in %s or in a volume that the step mounts can be mounted", workspace, home)
	case m.Kind == taskspec.MountBind:
		c.Binds = append(c.Binds, solve.Bind{Source: source, Path: m.Path, ReadOnly: m.ReadOnly, Create: m.Create})
	case slices.ContainsFunc(a.task.Volumes, func(v taskspec.Volume) bool { return v.Name == source }):
		return errors.New("it is a volume of the task that the step does not mount; add it to the step's volumeMounts")
	default:
		c.Shares = append(c.Shares, solve.Share{Name: source, Path: m.Path, ReadOnly: m.ReadOnly, Empty: m.NoCopy})
	}
	return nil
}

// ownMounts are the volumes that a step may mount by -v: all of its task.
func (a *attempt) ownMounts() []taskspec.Mount {
	var mounts []taskspec.Mount
	for _, v := range a.task.Volumes {
		mounts = append(mounts, taskspec.Mount{Volume: v.Name})
	}
	return mounts
}
