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
	s.Cmd = c
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
		c.Interactively = c.Interactively || f.value == "true"
		if f.value == "true" {
			p.warnf(at, "cmd", "docker run option --%s has no effect here: a step has neither a terminal nor standard input", f.name)
		}
	case "name":
		p.warnf(at, "cmd", "docker run option --name has no effect here: other steps reach this one by its id")
	case "init":
		if f.value == "true" {
			p.warnf(at, "cmd", "docker run option --init has no effect here: the program is process 1 of its container")
		}
	case "pull":
		c.Pull = c.Pull || f.value == "always"
	case "rm", "quiet", "sig-proxy", "log-driver", "log-opt": // nothing to be done differently
	default:
		p.warnf(at, "cmd", "docker run option --%s has no effect here", f.name)
	}
}

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
