package taskspec

import (
	"slices"
	"strings"
	"unicode"
)

// dockerImage is the image of a cmd step that is a docker command: there is no daemon that it could talk
// to, so it is understood here. An alias of that name brings an image of the operator's choice instead.
const dockerImage = "docker"

// A Docker is a docker command that a worker executes by itself. Those that build and push are steps of
// these kinds.
type Docker struct {
	// Command is images, inspect, login, logout, pull, tag or version.
	Command string
	// Args are those that are no options: references with a tag, or the host of a registry.
	Args               []string
	Username, Password string // of login
	PasswordStdin      bool   // the password is what standard input has, only in a script
}

// A DockerCall is what a docker command does: one of its fields is set, or, of a build that pushes, Build and
// Push.
type DockerCall struct {
	Build  *Build
	Push   []string
	Run    *DockerRun
	Docker *Docker
}

// ParseDocker understands the arguments of a docker command that a script calls in an environment of
// NAME=VALUE entries. The error is an [Errors].
func ParseDocker(args, env []string) (*DockerCall, Warnings, error) {
	p := newParser(nil, &Options{})
	call := p.docker(place{}, args, env, true)
	if p.failed() {
		return nil, p.warns, p.err()
	}
	return call, p.warns, nil
}

// CallsDocker reports whether the container of a step is to have a docker program: whether the step's author
// names it in the command or the environment. It is not given to others, because it can push.
func (s *Step) CallsDocker() bool {
	if s.Cmd == nil || !s.Cmd.InContainer() {
		return false
	}
	return s.Cmd.Options.DockerSocket || slices.ContainsFunc(slices.Concat([]string{s.Cmd.Image}, s.Cmd.Args, s.Cmd.EntryPoint, s.Env), namesDocker)
}

// namesDocker reports whether text has docker as a word of its own, as DOCKER_BUILDKIT has, but not docker.io or
// Dockerfile.
func namesDocker(text string) bool {
	text = strings.ReplaceAll(text, "docker.io", "")
	return slices.ContainsFunc(strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }),
		func(word string) bool { return strings.EqualFold(word, "docker") })
}

// dockerCommand says what a docker command may have.
type dockerCommand struct {
	flags    flagSet
	min, max int    // arguments that are no options
	what     string // they are
	images   bool   // they are image references
	refused  map[string]string
}

const (
	oneImage      = "an image"
	passwordStdin = "password-stdin"
	noStdin       = "there is nobody to type a password; the task's credentials, or -u and -p with a secret, sign in"
)

var dockerCommands = map[string]*dockerCommand{
	"images": {flags: newFlagSet("docker images", "filter/f format", "all/a digests no-trunc quiet/q tree"),
		refused: map[string]string{"filter": "leave it out: all images of the run are listed", "format": "leave it out: nobody reads the list but people"}},
	"inspect": {flags: newFlagSet("docker inspect", "format/f type platform", "size/s"), min: 1, max: 64, what: "images", images: true,
		refused: map[string]string{"format": "leave it out: the whole description is printed", "platform": "leave it out"}},
	"login": {flags: newFlagSet("docker login", "username/u password/p", passwordStdin), max: 1, what: "a registry",
		refused: map[string]string{passwordStdin: noStdin}},
	"logout": {flags: newFlagSet("docker logout", "", ""), max: 1, what: "a registry"},
	"pull": {flags: newFlagSet("docker pull", "platform", "all-tags/a disable-content-trust quiet/q"), min: 1, max: 1, what: oneImage, images: true,
		refused: map[string]string{"all-tags": "name the tag", "platform": "leave it out: the worker's own is executed, and all of them are pushed"}},
	"push": {flags: newFlagSet("docker push", "platform", "all-tags/a disable-content-trust quiet/q"), min: 1, max: 1, what: oneImage, images: true,
		refused: map[string]string{"all-tags": "name each tag in a push step", "platform": "leave it out: what was built is pushed"}},
	"tag":     {flags: newFlagSet("docker tag", "", ""), min: 2, max: 2, what: "an image and its new name", images: true},
	"version": {flags: newFlagSet("docker version", "format/f", ""), refused: map[string]string{"format": "leave it out"}},
}

// dockerRemedies say what to do instead of a docker command that needs a daemon.
var dockerRemedies = map[string]string{
	"run":     "write the image and its arguments as the step's cmd, without docker run",
	"create":  "write the image and its arguments as the step's cmd",
	"compose": "write each service as a step with detach: true",
	"exec":    "write what is to be executed as a step of its own",
	"ps":      "leave it out: the containers of a run are its steps", "logs": "leave it out: the log of each step is the run's",
	"stop": "leave it out: steps with detach end with the run", "kill": "leave it out: steps with detach end with the run",
	"rm": "leave it out: nothing of a run stays", "rmi": "leave it out: nothing of a run stays", "system": "leave it out: nothing of a run stays",
	"save": "push the image, and pull it where it is needed", "load": "push the image, and pull it here", "import": "build the image with ADD",
	"cp": "write to /workspace, which all steps share", "commit": "build the image from a Dockerfile",
	"network": "list networks in the task", "volume": "list volumes in the task; /workspace is shared by all steps",
	"buildx": "leave it out: every build is BuildKit's", "builder": "leave it out: the cache is the server's",
	"manifest": "build for several platforms with --platform, which makes an index", "info": "see docker version",
}

// finishDocker makes of a cmd step that is a docker command what the command does.
func (p *parser) finishDocker(s *rawStep) {
	if !p.opt.DockerCommands || s.Kind != KindCmd || s.Cmd == nil || s.Cmd.Image != dockerImage || s.Cmd.EntryPoint != nil {
		return
	}
	call := p.docker(s.at(s.cmd.node), s.Cmd.Args, s.Env, false)
	switch {
	case call == nil:
	case call.Build != nil:
		s.Build, s.Cmd, s.Kind = call.Build, nil, KindBuild
	case call.Push != nil:
		s.Step = Step{ID: s.ID, Kind: KindPush, Push: call.Push, Timeout: s.Timeout, StartDelay: s.StartDelay, Retries: s.Retries, RetryDelay: s.RetryDelay,
			RetryOn: s.RetryOn, Repeat: s.Repeat, IgnoreErrors: s.IgnoreErrors, WorkingDirectory: s.WorkingDirectory, Line: s.Line}
	default:
		s.Cmd.Docker = call.Docker
	}
}

// docker understands a docker command, of a step or, which may do more, of a script. It returns nil after an
// error that leaves nothing to be done.
func (p *parser) docker(at place, words, env []string, script bool) *DockerCall {
	command, args := dockerWords(words)
	if command == "build" {
		return p.dockerBuild(at, args, env, script)
	}
	if command == "run" && script {
		return p.dockerRun(at, args, env)
	}
	known := dockerCommands[command]
	if known == nil {
		p.refuseDocker(at, command)
		return nil
	}
	flags, rest, err := known.flags.parse(args, true)
	if err != nil {
		p.refuse(at, "cmd", "%v", err)
		return nil
	}
	for _, f := range flags {
		if why, ok := known.refused[f.name]; ok && f.value != "false" && !(script && f.name == passwordStdin) {
			p.refuse(at, "cmd", "docker %s --%s is not possible here; %s", command, f.name, why)
		}
	}
	if !p.dockerArgs(at, command, known, rest) {
		return nil
	}
	if command == "push" {
		return &DockerCall{Push: rest}
	}
	d := &Docker{Command: command, Args: rest}
	if command == "login" {
		p.dockerLogin(at, d, flags)
	}
	return &DockerCall{Docker: d}
}

// dockerArgs checks the arguments of a command that are no options, and completes references.
func (p *parser) dockerArgs(at place, command string, known *dockerCommand, rest []string) bool {
	switch n := len(rest); {
	case known.max == 0 && n > 0:
		p.refuse(at, "cmd", "docker %s takes no arguments here, this has %s", command, p.quoteWords(rest))
		return false
	case n == 0 && known.min > 0:
		p.refuse(at, "cmd", "docker %s takes %s, this has none", command, known.what)
		return false
	case n < known.min || n > known.max:
		p.refuse(at, "cmd", "docker %s takes %s, this has %s", command, known.what, p.quoteWords(rest))
		return false
	}
	if known.images {
		for i, ref := range rest {
			rest[i] = p.reference(at, "cmd", ref)
		}
	}
	return true
}

// dockerWords returns the command, of those that docker has under two names the short one, and its
// arguments.
func dockerWords(words []string) (command string, args []string) {
	if len(words) == 0 {
		return "", nil
	}
	if command, args = words[0], words[1:]; command == "--version" || command == "-v" {
		command = "version"
	}
	if len(args) == 0 || !slices.Contains([]string{"image", "buildx", "builder", "container"}, command) {
		return command, args
	}
	second := args[0]
	switch {
	case second == "build":
		return second, args[1:]
	case command == "container" && second == "run":
		return second, args[1:]
	case command != "image":
	case second == "ls" || second == "list":
		return "images", args[1:]
	case dockerCommands[second] != nil && dockerCommands[second].images:
		return second, args[1:]
	}
	return command + " " + second, args[1:]
}

// dockerBuild understands docker build. Only a script can have the image pushed by it: a step does one thing.
func (p *parser) dockerBuild(at place, args, env []string, script bool) *DockerCall {
	flags, contexts, err := buildFlags.parse(args, true)
	if err != nil {
		p.refuse(at, "cmd", "%v", err)
		return nil
	}
	pushes := slices.ContainsFunc(flags, func(f option) bool { return f.name == "push" && f.value == "true" })
	flags = slices.DeleteFunc(flags, func(f option) bool { return f.name == "push" })
	call := &DockerCall{Build: p.build(at, args, flags, contexts, env)}
	switch {
	case pushes && !script:
		p.refuse(at, "cmd", "docker build --push is not possible here; leave it out and add a push step")
	case pushes && len(call.Build.Tags) == 0:
		p.refuse(at, "cmd", "docker build --push needs a name to push, which -t gives")
	case pushes:
		call.Push = call.Build.Tags
	}
	return call
}

func (p *parser) dockerLogin(at place, d *Docker, flags []option) {
	for _, f := range flags {
		switch f.name {
		case "username":
			d.Username = f.value
		case "password":
			d.Password = f.value
		case passwordStdin:
			d.PasswordStdin = f.value == "true"
		}
	}
	if d.Username == "" || d.Password == "" && !d.PasswordStdin {
		p.refuse(at, "cmd", "docker login needs -u and -p here: %s", noStdin)
	}
	if len(d.Args) == 0 {
		d.Args = []string{"docker.io"}
	}
}

// refuseDocker refuses a docker command by its name.
func (p *parser) refuseDocker(at place, command string) {
	first, _, _ := strings.Cut(command, " ")
	remedy := dockerRemedies[first]
	switch {
	case command == "":
		p.refuse(at, "cmd", "docker needs a command; kiln has build, %s", strings.Join(keys(dockerCommands), ", "))
	case remedy != "":
		p.refuse(at, "cmd", "docker %s needs a Docker daemon, which steps do not have; %s", p.clip(command), remedy)
	default:
		p.refuse(at, "cmd", "docker %s is not known here; kiln has build, %s", p.clip(command), strings.Join(keys(dockerCommands), ", "))
	}
}

// Renames returns the reference that a docker tag gives to an image, empty for another step.
func (s *Step) Renames() string {
	if s.Cmd == nil || s.Cmd.Docker == nil || s.Cmd.Docker.Command != "tag" {
		return ""
	}
	return s.Cmd.Docker.Args[1]
}
