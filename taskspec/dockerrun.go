package taskspec

import (
	"path"
	"slices"
	"strings"
)

// A DockerRun is docker run in a script: a container for as long as the command lasts.
type DockerRun struct {
	// Step is the cmd step that it would be. Its environment is what the options say, its working directory
	// absolute or, for the image's own, empty. An entrypoint that is empty drops the image's.
	Step *Step
	// Input is whether the program gets the standard input of the command.
	Input bool
}

// refusedRunFlags say what to do instead of an option of docker run that a step may have and a script may not.
var refusedRunFlags = map[string]string{
	"detach": "write it as a step with detach: true, which other steps and scripts reach by its id", "tty": "there is no terminal here; leave it out",
	"privileged": "make it a step of its own with privileged: true", "publish": "nothing is published here; leave it out",
	"publish-all": "nothing is published here; leave it out",
}

// dockerRun understands docker run of a script.
func (p *parser) dockerRun(at place, args, env []string) *DockerCall {
	flags, rest, err := runFlags.parse(args, false)
	switch {
	case err != nil:
		p.refuse(at, "cmd", "%v", err)
		return nil
	case len(rest) == 0:
		p.refuse(at, "cmd", "docker run takes an image, this has none")
		return nil
	}
	s, c, r := &rawStep{}, &Cmd{Image: rest[0], Args: rest[1:]}, &DockerRun{}
	p.checkReference(at, "cmd", c.Image)
	for _, f := range flags {
		switch f.name {
		case "env":
			s.Env = append(s.Env, passedOn(f.value, env)...)
		case "interactive":
			r.Input = f.value == "true"
		case "workdir":
			if s.WorkingDirectory = path.Clean(f.value); !path.IsAbs(f.value) {
				p.refuse(at, "cmd", "docker run -w %s: want an absolute path", p.clip(f.value))
			}
		case "entrypoint":
			if c.EntryPoint = []string{f.value}; f.value == "" {
				c.EntryPoint = []string{}
			}
		case "init", "isolation", "expose": // nobody reaches it
		default:
			if why := refusedRunFlags[f.name]; why != "" {
				if f.value != "false" {
					p.refuse(at, "cmd", "docker run --%s is not possible here; %s", f.name, why)
				}
				continue
			}
			p.runFlag(at, s, c, f)
		}
	}
	p.finishRun(at, s, c, flags)
	if len(c.Options.Privileges) > 0 {
		p.refuse(at, "cmd", "docker run %s is not possible here; make it a step of its own", c.Options.Privileges[0])
	}
	if c.Options.DockerSocket {
		p.refuse(at, "cmd", "docker run -v: there is no Docker daemon, and no socket of one")
	}
	if len(s.Env) > maxEnv {
		p.refuse(at, "cmd", "docker run has at most %d variables", maxEnv)
		return nil
	}
	s.Kind, s.Cmd, r.Step = KindCmd, c, &s.Step
	return &DockerCall{Run: r}
}

// passedOn returns the entry of -e, of a name alone with its value in env, none if that has none.
func passedOn(entry string, env []string) []string {
	if strings.Contains(entry, "=") {
		return []string{entry}
	}
	for _, e := range slices.Backward(env) {
		if strings.HasPrefix(e, entry+"=") {
			return []string{e}
		}
	}
	return nil
}
