package worker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"kiln/internal/solve"
	"kiln/taskspec"
)

// maxVolumeFile is what BuildKit hands over as one secret, in bytes.
const maxVolumeFile = 500 << 10

// privileges say who allows privileged containers.
type privileges struct{ worker, run, restricted bool }

// refusal says why a privileged container is refused, empty if it is not.
func (p privileges) refusal() string {
	switch {
	case p.restricted:
		return "privileged containers are never allowed to a pull request from outside of the repository"
	case !p.worker:
		return "privileged containers are not allowed on this server; its operator may start it with --allow-privileged"
	case !p.run:
		return "the task does not allow privileged containers; allow them with --allow-privileged, as option of kiln run or kiln task update"
	}
	return ""
}

// unfit are mistakes in how a step's container is to be made.
func unfit(t *taskspec.Task, s *taskspec.Step, allowed privileges) []finding {
	if s.Kind != taskspec.KindCmd {
		return nil
	}
	list := append(slices.Concat(unfitOptions(s), unfitRun(s, allowed)), finding{s.Privileged && allowed.refusal() != "", "privileged", allowed.refusal()})
	list = append(list, outsideFiles(s)...)
	for _, m := range s.Mounts {
		if why := unfitMount(t, m); why != "" {
			list = append(list, finding{true, "volumeMounts", why})
		}
	}
	return list
}

// unfitOptions are mistakes in limits and hosts of a container.
func unfitOptions(s *taskspec.Step) []finding {
	_, cpus := parseCPUs(s.CPUs)
	_, memory := parseMemory(s.Memory)
	_, hosts := hostsOf(s.Cmd.AddHosts)
	return []finding{
		{cpus != nil, "cpus", fmt.Sprint(cpus)},
		{memory != nil, "cmd: --memory", fmt.Sprint(memory)},
		{hosts != nil, "cmd: --add-host", fmt.Sprint(hosts)},
	}
}

// unfitMount says what is wrong with a mount, empty if nothing is.
func unfitMount(t *taskspec.Task, m taskspec.Mount) string {
	switch p := path.Clean(m.Path); {
	case !path.IsAbs(p):
		return fmt.Sprintf("mountPath %q is not absolute; write /%s", m.Path, p)
	case p == "/" || p == workspace || p == home:
		return fmt.Sprintf("mountPath %s is needed for the run; choose a directory below it, or another", p)
	}
	for name, data := range volume(t, m.Volume) {
		if len(data) > maxVolumeFile {
			return fmt.Sprintf("file %q of volume %q has %d bytes; at most %d are possible", name, m.Volume, len(data), maxVolumeFile)
		}
	}
	return ""
}

// home is the home directory of a run's steps.
const home = "/acb/home"

// volume returns the files of a volume.
func volume(t *taskspec.Task, name string) map[string][]byte {
	for _, v := range t.Volumes {
		if v.Name == name {
			return v.Files
		}
	}
	return nil
}

// parseCPUs reads docker run's --cpus; empty is 0, for no limit.
func parseCPUs(s string) (float64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || !(n == 0 || n >= 0.01 && n <= 1024) {
		return 0, fmt.Errorf("%q is no number of processors, such as 1.5; at least 0.01", s)
	}
	return n, nil
}

// maxHosts bounds the names that a step adds.
const maxHosts = 256

// hostsOf reads docker run's --add-host, HOST:IP or HOST=IP.
func hostsOf(list []string) (map[string]string, error) {
	if len(list) > maxHosts {
		return nil, fmt.Errorf("%d hosts; at most %d are possible", len(list), maxHosts)
	}
	hosts := map[string]string{}
	for _, h := range list {
		i := strings.IndexAny(h, ":=")
		if i <= 0 || !hostName.MatchString(h[:i]) {
			return nil, fmt.Errorf("%q: want HOST:IP", h)
		}
		addr, err := netip.ParseAddr(strings.Trim(h[i+1:], "[]"))
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("%q: %q is no IP address", h, h[i+1:])
		}
		hosts[h[:i]] = addr.String()
	}
	return hosts, nil
}

var hostName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

// minMemory is what docker run takes at least, in bytes: nothing starts with less.
const minMemory = 6 << 20

// parseMemory reads docker run's --memory: bytes, or with a unit, of which each is 1024 times the one
// before; empty is 0, for no limit.
func parseMemory(s string) (int64, error) {
	if s == "" || s == "0" {
		return 0, nil
	}
	text := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(s), "b"), "i")
	shift := 0
	if n := len(text) - 1; n > 0 {
		if unit := strings.IndexByte("kmgt", text[n]); unit >= 0 {
			text, shift = text[:n], 10*(unit+1)
		}
	}
	n, err := strconv.ParseFloat(text, 64)
	n *= float64(int64(1) << shift)
	if err != nil || !(n >= minMemory && n < 1<<60) {
		return 0, fmt.Errorf("%q is no amount of memory, such as 512m or 2g; at least 6m", s)
	}
	return int64(n), nil
}

// imageOf returns the reference of the image that a cmd step executes: the run's own of that name, or one
// of a registry. A step that pulls wants that of the registry.
func (a *attempt) imageOf(s *taskspec.Step) (string, error) {
	image := s.Cmd.Image
	built, ok := a.images.find(image)
	if ok && !s.Cmd.Pull {
		return built.output.Ref, nil
	}
	if ok && !built.pulled {
		a.logs.say(s.ID, "warning: pull has %s taken from its registry, not the image of that name that step %s has built; leave pull out for that one", image, built.step)
	}
	ref, err := a.images.canonical(image)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", image, err)
	}
	return a.pinned(ref), nil
}

// equip gives a step's container its volumes, privileges and limits. The plan has checked them; of the
// step's limits and the task's the lower ones count.
func (a *attempt) equip(c *solve.Container, s *taskspec.Step) {
	c.Hosts, _ = hostsOf(s.Cmd.AddHosts)
	c.Privileged, c.Pull = s.Privileged || len(s.Cmd.Options.Privileges) > 0, s.Cmd.Pull
	c.Options = optionsOf(&s.Cmd.Options)
	for _, m := range s.Mounts {
		c.Volumes = append(c.Volumes, solve.Volume{Path: path.Clean(m.Path), Files: volume(a.task, m.Volume)})
	}
	cpus, _ := parseCPUs(s.CPUs)
	memory, _ := parseMemory(s.Memory)
	c.CPUs, c.Memory = lower(cpus, a.run.Spec.CPU), lower(memory, a.run.Spec.Memory)
}

// lower returns the lower one of two limits, of which zero is none.
func lower[T int64 | float64](a, b T) T {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// killedCode is the exit code of a process that got SIGKILL.
const killedCode = 137

// exitError says how a step's process has ended.
func exitError(code int, c solve.Container) error {
	if code == killedCode && c.Memory > 0 {
		return fmt.Errorf("exit code %d: the process was killed; a likely reason is its limit of %d MiB of memory", code, c.Memory>>20)
	}
	return fmt.Errorf("exit code %d", code)
}

// runPatiently executes a step's container, and tries again as the step says if its image cannot be pulled.
func (a *attempt) runPatiently(ctx context.Context, s *taskspec.Step, c solve.Container) (int, error) {
	for try := 0; ; try++ {
		code, err := a.session.Run(ctx, c, a.logs.sink(s.ID))
		var failed *solve.StepError
		if !s.Cmd.Pull || !errors.As(err, &failed) || !failed.Pull || ctx.Err() != nil || try >= s.Cmd.PullRetries {
			return code, err
		}
		a.logs.say(s.ID, "%v; retry %d of %d in %s", err, try+1, s.Cmd.PullRetries, s.Cmd.PullDelay)
		if err := pause(ctx, s.Cmd.PullDelay); err != nil {
			return -1, err
		}
	}
}
