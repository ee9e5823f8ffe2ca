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
	Binds []DockerBind
}

// A DockerBind is a -v of docker run.
type DockerBind struct {
	Source   string // a path in the container that calls docker, or the name of a volume
	Path     string // absolute and clean
	ReadOnly bool
}

// ignoredRunFlags change nothing of a container that somebody waits for and that is removed at its end.
var ignoredRunFlags = []string{"rm", "quiet", "sig-proxy", "log-driver", "log-opt", "init", "name", "attach"}

// refusedRunFlags say what to do instead of an option of docker run.
var refusedRunFlags = map[string]string{
	"detach": "write it as a step with detach: true, which other steps and scripts reach by its id", "tty": "there is no terminal here; leave it out",
	"privileged": "make it a step of its own with privileged: true", "publish": "nothing is published here; leave it out",
	"publish-all": "nothing is published here; leave it out", "mount": "write -v SOURCE:PATH", "volumes-from": "write -v SOURCE:PATH",
	"platform": "the worker's own platform is executed; leave it out",
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
		case "volume":
			r.Binds = append(r.Binds, p.dockerBind(at, f.value))
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
		case "user", "network", "net", "cpus", "memory", "add-host", "pull", "env-file":
			p.runFlag(at, s, c, f)
		default:
			if f.value != "false" && !slices.Contains(ignoredRunFlags, f.name) {
				p.refuseRunFlag(at, f.name)
			}
		}
	}
	if len(s.Env) > maxEnv || len(r.Binds) > maxBinds {
		p.refuse(at, "cmd", "docker run has at most %d variables and %d volumes", maxEnv, maxBinds)
		return nil
	}
	s.Kind, s.Cmd, r.Step = KindCmd, c, &s.Step
	return &DockerCall{Run: r}
}

const maxBinds = 32 // of a container

func (p *parser) refuseRunFlag(at place, name string) {
	why := refusedRunFlags[name]
	if why == "" {
		why = "leave it out"
	}
	p.refuse(at, "cmd", "docker run --%s is not possible here; %s", name, why)
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

// dockerBind understands SOURCE:PATH[:OPTIONS].
func (p *parser) dockerBind(at place, value string) (b DockerBind) {
	parts := strings.Split(value, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || !path.IsAbs(parts[1]) || path.Clean(parts[1]) == "/" {
		p.refuse(at, "cmd", "docker run -v %s: want SOURCE:PATH or SOURCE:PATH:ro, the path absolute", p.clip(value))
		return b
	}
	b.Source, b.Path = parts[0], path.Clean(parts[1])
	for _, option := range strings.Split(strings.Join(parts[2:], ""), ",") {
		switch option {
		case "ro", "readonly":
			b.ReadOnly = true
		case "", "rw", "z", "Z", "cached", "delegated", "consistent":
		default:
			p.refuse(at, "cmd", "docker run -v %s: the option %q is not possible here; leave it out", p.clip(value), p.clip(option))
		}
	}
	return b
}
