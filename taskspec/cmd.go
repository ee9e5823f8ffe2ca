package taskspec

import (
	"slices"
	"strings"
)

// finishCmd understands the cmd string of a step.
func (p *parser) finishCmd(s *rawStep) {
	at := s.at(s.cmd.node)
	text, literal := p.expandImage(s.cmd.text)
	w, flags, rest, err := parseCommand(&runFlags, text, literal, false)
	if err != nil {
		p.warnWords(at, "cmd", text, w)
		p.commandError(at, "cmd", &runFlags, text, err)
		s.Cmd = &Cmd{Flags: w.list}
		return
	}
	p.warnWords(at, "cmd", text, w)
	if p.nodes += len(w.list); p.nodes >= maxNodes {
		p.errorf(at, "cmd", "the commands of the task have too many words; with its YAML nodes they are more than %d", maxNodes)
		return
	}
	c := &Cmd{Pull: s.pull, PullRetries: max(s.pullRetries, 0), PullDelay: s.pullDelay}
	if len(rest) == 0 {
		p.refuse(at, "cmd", "there is no image in %q", p.clip(s.cmd.text))
	} else {
		c.Image = rest[0]
		p.checkReference(at, "cmd", c.Image)
	}
	if len(rest) > 1 {
		c.Args = rest[1:]
	}
	if n := len(w.list) - len(rest); n > 0 {
		c.Flags = w.list[:n:n]
	}
	if s.entryPoint.text != "" {
		if e := p.oneWord(s.at(nil), "entryPoint", s.entryPoint.node); e != "" {
			c.EntryPoint = []string{e}
		}
	}
	for _, f := range flags {
		p.runFlag(at, s, c, f)
	}
	p.finishRun(at, s, c, flags)
	p.checkBinds(at, &c.Options)
	if c.Options.DockerSocket {
		p.warnf(at, "cmd", "there is no Docker daemon, and no socket of one that could be mounted; the step has kiln's own docker program instead")
	}
	s.Cmd = c
}

// finishRun concludes the options of docker run from what all of them say.
func (p *parser) finishRun(at place, s *rawStep, c *Cmd, flags []option) {
	o := &c.Options
	o.raised()
	if s.Privileged { // has more than that
		o.Privileges, o.CapAdd, o.CapDrop = nil, nil, nil
	}
	p.quota(at, s, o, slices.ContainsFunc(flags, func(f option) bool { return f.name == "cpus" }))
	if o.MemorySwap != 0 && s.Memory == "" {
		p.warnf(at, "cmd", "docker run option --memory-swap has no effect without --memory")
		o.MemorySwap = 0
	}
}

// expandImage replaces the text before the first blank if it is the name of an alias. It returns the
// length of what has replaced it, in which nothing more is expanded.
func (p *parser) expandImage(cmd string) (text string, replaced int) {
	cmd = strings.TrimSpace(cmd)
	first, rest, more := strings.Cut(cmd, " ")
	image, ok := p.aliases.image(first)
	switch {
	case !ok:
		return cmd, 0
	case more:
		return image + " " + rest, len(image)
	}
	return image, len(image)
}

// runFlag applies one docker run option, which overrides the step's property.
func (p *parser) runFlag(at place, s *rawStep, c *Cmd, f option) {
	switch f.name {
	case "env":
		p.setEnv(at, s, f.value)
	case "env-file":
		if c.EnvFiles = append(c.EnvFiles, f.value); len(c.EnvFiles) == maxEnvFiles+1 {
			p.refuse(at, "cmd", "a step has at most %d files of --env-file", maxEnvFiles)
		}
	case "entrypoint":
		c.EntryPoint = []string{f.value}
	case "workdir":
		s.WorkingDirectory = p.workdir(at, f.value)
		s.KeepImageWorkdir = false
	case "user":
		s.User = f.value
	case "network", "net":
		s.Network = f.value
	case "publish":
		s.Ports = append(s.Ports, f.value)
	case "expose":
		s.Expose = append(s.Expose, f.value)
	case "cpus":
		s.CPUs = f.value
	case "memory":
		s.Memory = f.value
	case "isolation":
		s.Isolation = f.value
	case "privileged":
		s.Privileged = f.value == "true"
	case "detach":
		s.Detach = f.value == "true"
	case "add-host":
		c.AddHosts = append(c.AddHosts, f.value)
	case "interactive", "tty":
		if f.value == "true" {
			c.Interactively = true
			p.warnf(at, "cmd", "docker run option --%s has no effect here: %s", f.name, noTerminal)
		}
	case "pull":
		c.Pull = c.Pull || f.value == "always"
	default:
		if p.runOption(at, &c.Options, f) || slices.Contains(harmlessFlags, f.name) || f.value == "false" {
			return
		}
		why := withoutEffect[f.name]
		if why != "" {
			why = ": " + why
		}
		p.warnf(at, "cmd", "docker run option --%s has no effect here%s", f.name, why)
	}
}

// harmlessFlags change nothing of a container that lives as long as its step, in whose log its output is.
var harmlessFlags = strings.Fields(`rm quiet sig-proxy log-driver log-opt label label-file annotation attach detach-keys
	disable-content-trust no-healthcheck health-cmd health-interval health-retries health-start-interval health-start-period health-timeout`)

// withoutEffect says why an option of docker run changes nothing.
var withoutEffect = map[string]string{
	"link":    "other steps are reached by their ids, and by the names that --network-alias gives them",
	"init":    "the program is process 1 of its container",
	"restart": "retries start a step again", "publish-all": "nothing is published on the worker's host",
	"cidfile": "a container has no other name than its step's id", "domainname": "write it behind the name in --hostname",
	"ip": ownAddress, "ip6": ownAddress, "link-local-ip": ownAddress, "mac-address": ownAddress,
	"memory-reservation": "write --memory to limit the step", "kernel-memory": "it is part of --memory", "memory-swappiness": "write --memory-swap",
	"cpu-count": forWindows, "cpu-percent": forWindows, "io-maxbandwidth": forWindows, "io-maxiops": forWindows,
	"cgroup-parent": "a container is in a cgroup of its own", "runtime": "every container is executed by the worker's runtime",
	"storage-opt": "the disk is the worker's", "oom-score-adj": "write --memory to limit the step", "oom-kill-disable": "a process that wants more memory than its step has is killed",
}

const (
	noTerminal = "a step has neither a terminal nor standard input"
	ownAddress = "a container has an address of the run's network"
	forWindows = "it is for Windows"
)

// setEnv adds an entry that overrides the step's environment. One without a value keeps what is there.
func (p *parser) setEnv(at place, s *rawStep, entry string) {
	k, _, ok := strings.Cut(entry, "=")
	i := slices.IndexFunc(s.Env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
	switch {
	case k == "":
		p.refuse(at, "cmd", "-e takes NAME=VALUE")
	case !ok && i < 0:
		p.warnf(at, "cmd", "-e %s has no effect, as the step's environment has no value of it; write -e %s=VALUE", p.clip(k), p.clip(k))
	case ok && i >= 0:
		s.Env[i] = entry
	case ok:
		s.Env = append(s.Env, entry)
	}
}
