package taskspec

import (
	"slices"
	"strings"
)

// defaultCapabilities are those that a container has, as docker's.
var defaultCapabilities = strings.Fields(`CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD
	CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT`)

// otherCapabilities are those that only a privileged container has.
var otherCapabilities = strings.Fields(`CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_BLOCK_SUSPEND CAP_BPF CAP_CHECKPOINT_RESTORE
	CAP_DAC_READ_SEARCH CAP_IPC_LOCK CAP_IPC_OWNER CAP_LEASE CAP_LINUX_IMMUTABLE CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_NET_ADMIN
	CAP_NET_BROADCAST CAP_PERFMON CAP_SYSLOG CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_MODULE CAP_SYS_NICE CAP_SYS_PACCT
	CAP_SYS_PTRACE CAP_SYS_RAWIO CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_WAKE_ALARM`)

const allCapabilities = "CAP_ALL"

// capability returns the full names of capabilities.
func (p *parser) capability(at place, f option) []string {
	var list []string
	for _, name := range strings.Split(f.value, ",") {
		name = "CAP_" + strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(name)), "CAP_")
		if name != allCapabilities && !slices.Contains(defaultCapabilities, name) && !slices.Contains(otherCapabilities, name) {
			p.refuseRun(at, f, "there is no such capability"+didYouMean(name, slices.Concat(defaultCapabilities, otherCapabilities)))
			continue
		}
		list = append(list, name)
	}
	return list
}

// Capabilities returns those that the container is to have: the usual ones without those that are dropped, and with
// those that are added. Nil means that nothing is said about them.
func (o *RunOptions) Capabilities() []string {
	if len(o.CapAdd)+len(o.CapDrop)+len(o.Privileges) == 0 {
		return nil
	}
	list := slices.Clone(defaultCapabilities)
	if slices.Contains(o.CapAdd, allCapabilities) {
		list = append(list, otherCapabilities...)
	}
	if slices.Contains(o.CapDrop, allCapabilities) {
		list = list[:0]
	}
	list = slices.DeleteFunc(list, func(name string) bool { return slices.Contains(o.CapDrop, name) })
	for _, name := range o.CapAdd {
		if name != allCapabilities && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// The devices that every container has, and those of which a privileged one has more.
var (
	usualDevices      = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
	privilegedDevices = []string{"/dev/kmsg", "/dev/cuse", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/loop-control"}
)

// hostNamespaces are options by which docker gives a container a namespace of its host or of another container, with
// what to do instead.
var hostNamespaces = map[string]string{
	"pid":      "a step sees its own processes only",
	"ipc":      "a step's memory is shared with no other; hand files over in /workspace",
	"uts":      "write --hostname NAME to set the name",
	"userns":   "a step has the user IDs of its image anyway",
	"cgroupns": "write --cpus and --memory to limit the step",
}

// runSecurity applies the options on which the isolation of a container depends. What would give away the worker's
// host, or other runs, is refused, unless it is no more than what a privileged container may have and the run may
// have one: then it needs the same permission.
func (p *parser) runSecurity(at place, o *RunOptions, f option) bool {
	switch f.name {
	case "pid", "ipc", "uts", "userns", "cgroupns":
		if f.value == "host" || strings.HasPrefix(f.value, "container:") {
			p.refuseRun(at, f, "the worker's host and other containers are not for a step; leave it out: "+hostNamespaces[f.name])
		}
	case "device":
		p.runDevice(at, o, f)
	case "security-opt":
		p.securityOption(at, o, f)
	case "gpus", "device-cgroup-rule":
		p.refuseRun(at, f, "a step is given no devices of the worker's host; leave it out")
	case "volumes-from":
		p.refuseRun(at, f, "name the volume in both steps: -v NAME:PATH")
	case "use-api-socket":
		if f.value == "true" {
			p.refuse(at, "cmd", "docker run option --use-api-socket: there is no Docker daemon; a step whose command has the word docker in it has a docker program")
		}
	default:
		return false
	}
	return true
}

func (p *parser) runDevice(at place, o *RunOptions, f option) {
	host, inside, _ := strings.Cut(f.value, ":")
	inside, _, _ = strings.Cut(inside, ":")
	same := inside == "" || inside == host || !strings.HasPrefix(inside, "/") // permissions
	switch {
	case same && slices.Contains(usualDevices, host):
	case same && slices.Contains(privilegedDevices, host):
		o.needs("--device " + host)
	default:
		p.refuseRun(at, f, "a step is given no devices of the worker's host but, with the permission for privileged, "+strings.Join(privilegedDevices, ", ")+"; leave it out")
	}
}

func (p *parser) securityOption(at place, o *RunOptions, f option) {
	name, value, _ := strings.Cut(strings.Replace(f.value, ":", "=", 1), "=")
	switch {
	case name == "no-new-privileges":
		o.NoNewPrivileges = value == "" || value == "true"
	case f.value == "seccomp=builtin":
	case (name == "seccomp" || name == "systempaths") && value == "unconfined":
		o.needs("--security-opt " + name + "=" + value)
	case name == "seccomp":
		p.warnf(at, "cmd", "docker run option --security-opt %s has no effect here: a step has docker's own seccomp profile", p.clip(f.value))
	case name == "apparmor" || name == "label":
		p.warnf(at, "cmd", "docker run option --security-opt %s has no effect here: neither AppArmor nor SELinux confines a step", p.clip(f.value))
	default:
		p.refuseRun(at, f, "want no-new-privileges, seccomp=unconfined or systempaths=unconfined, the latter two with the permission for privileged")
	}
}

// raised adds the capabilities to what needs permission. One that docker's containers have anyway needs none.
func (o *RunOptions) raised() {
	for _, name := range o.CapAdd {
		if !slices.Contains(defaultCapabilities, name) {
			o.needs("--cap-add " + strings.TrimPrefix(name, "CAP_"))
		}
	}
}

// needs notes an option that needs permission.
func (o *RunOptions) needs(option string) {
	if !slices.Contains(o.Privileges, option) {
		o.Privileges = append(o.Privileges, option)
	}
}
