package taskspec

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// RunOptions are what options of docker run say that no property of a step can.
type RunOptions struct {
	ReadOnly        bool
	Hostname        string
	Names           []string // --name and --network-alias: further names of the step on its network
	DNS             []string // addresses
	DNSSearch       []string
	DNSOptions      []string
	ShmSize         int64 // bytes
	Ulimits         []Ulimit
	Groups          []string // names or numbers
	CapAdd, CapDrop []string // CAP_CHOWN; CAP_ALL is all of them
	NoNewPrivileges bool
	Platform        string // linux/arm64
	StopSignal      string // SIGINT, or a number
	StopTimeout     time.Duration
	PIDs            int64
	CPUShares       uint64
	MemorySwap      int64  // bytes of memory and swap, -1 for no limit
	CPUSet, NodeSet string // 0-3,7
	Sysctls         map[string]string
	Mounts          []RunMount
	// Privileges are the options that need the permission that privileged needs, as they are written.
	Privileges []string
	// DockerSocket says that the socket of a Docker daemon is to be mounted: the step's author expects a docker.
	DockerSocket bool

	// CPUQuota and CPUPeriod are microseconds. The step's CPUs are what follows from them.
	CPUQuota, CPUPeriod int64
}

// A Ulimit is a --ulimit; -1 is no limit.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

const (
	// maxRunOptions bounds how often an option may be given.
	maxRunOptions = 64
	// maxStopTimeout is how long a process may take to end.
	maxStopTimeout = 300
	maxShares      = 1024
	// minPIDs is what the program that starts a container needs of threads, with some room.
	minPIDs = 32
	// defaultPeriod is that of --cpu-quota, in microseconds.
	defaultPeriod = 100_000
)

var (
	validHostname = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?$`)
	validPlatform = regexp.MustCompile(`^[a-z0-9_]+(/[a-z0-9_.]+){0,2}$`)
	validSet      = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
	validWord     = regexp.MustCompile(`^[^\s#;]+$`)
	validSignal   = regexp.MustCompile(`^([1-9]|[1-5][0-9]|6[0-4]|(SIG)?(HUP|INT|QUIT|ABRT|KILL|USR1|USR2|ALRM|TERM|CONT|WINCH|PWR|IO|POLL|TSTP|TTIN|TTOU|URG|VTALRM|PROF|XCPU|XFSZ|RTMIN(\+([0-9]|[12][0-9]|30))?|RTMAX(-([0-9]|[12][0-9]|30))?))$`)
)

var validSysctl = regexp.MustCompile(`^[a-z0-9_]+([.][a-zA-Z0-9_-]+)+$`)

// ipcSysctls are the settings of shared memory, which a container has for itself, as it has net.* and fs.mqueue.*.
var ipcSysctls = strings.Fields("kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax kernel.shmmni kernel.shm_rmid_forced")

// ulimitNames are the limits that the kernel has, without those by which a process goes before others.
var ulimitNames = []string{"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nofile", "nproc", "rss", "rttime", "sigpending", "stack"}

// runOption applies an option of docker run that no property can express. It reports whether it knows it.
func (p *parser) runOption(at place, o *RunOptions, f option) bool {
	switch f.name {
	case "read-only":
		o.ReadOnly = f.value == "true"
	case "hostname":
		if o.Hostname = f.value; !validHostname.MatchString(f.value) {
			p.refuseRun(at, f, "want letters, digits, dots and hyphens, 64 at most")
		}
	case "name", "network-alias", "net-alias":
		if !isContainerName(f.value) || len(f.value) > maxID {
			p.refuseRun(at, f, "want letters, digits, _ . and -")
		}
		o.Names = p.another(at, f, o.Names)
	case "sysctl":
		p.runSysctl(at, o, f)
	case "dns":
		if _, err := netip.ParseAddr(f.value); err != nil {
			p.refuseRun(at, f, "want the IP address of a name server")
		}
		o.DNS = p.another(at, f, o.DNS)
	case "dns-search":
		o.DNSSearch = p.word(at, f, o.DNSSearch)
	case "dns-opt", "dns-option":
		o.DNSOptions = p.word(at, f, o.DNSOptions)
	case "group-add":
		o.Groups = p.word(at, f, o.Groups)
	case "ulimit":
		p.runUlimit(at, o, f)
	case "cap-add":
		o.CapAdd = append(o.CapAdd, p.capability(at, f)...)
	case "cap-drop":
		o.CapDrop = append(o.CapDrop, p.capability(at, f)...)
	case "platform":
		switch o.Platform = f.value; {
		case !validPlatform.MatchString(f.value):
			p.refuseRun(at, f, "want OS/ARCHITECTURE, such as linux/arm64")
		case strings.HasPrefix(f.value, "windows"):
			p.refuseRun(at, f, "containers are those of Linux here")
		}
	case "stop-signal":
		if o.StopSignal = strings.ToUpper(f.value); !validSignal.MatchString(o.StopSignal) {
			p.refuseRun(at, f, "want a signal, such as SIGINT")
		}
	case "cpuset-cpus":
		o.CPUSet = p.numberSet(at, f)
	case "cpuset-mems":
		o.NodeSet = p.numberSet(at, f)
	default:
		return p.runNumber(at, o, f) || p.runMountOption(at, o, f) || p.runSecurity(at, o, f)
	}
	return true
}

// runNumber applies an option whose value is a number or a size.
func (p *parser) runNumber(at place, o *RunOptions, f option) bool {
	switch f.name {
	case "shm-size":
		o.ShmSize = p.runSize(at, f)
	case "memory-swap":
		if o.MemorySwap = -1; f.value != "-1" {
			o.MemorySwap = p.runSize(at, f)
		}
	case "stop-timeout":
		n := p.runInt(at, f, -1, 1<<31)
		if n < 0 || n > maxStopTimeout {
			p.warnf(at, "cmd", "docker run option --stop-timeout %d counts as %d here, the most", n, maxStopTimeout)
			n = maxStopTimeout
		}
		if o.StopTimeout = time.Duration(n) * time.Second; n == 0 {
			o.StopTimeout = -1
		}
	case "pids-limit":
		if o.PIDs = max(p.runInt(at, f, -1, 1<<31), 0); o.PIDs > 0 && o.PIDs < minPIDs {
			p.warnf(at, "cmd", "docker run option --pids-limit %d counts as %d here: with less a container may not even start", o.PIDs, minPIDs)
			o.PIDs = minPIDs
		}
	case "cpu-shares":
		n := p.runInt(at, f, 0, 1<<18)
		if n > maxShares {
			p.warnf(at, "cmd", "docker run option --cpu-shares %d counts as %d here: that is what every other container has", n, maxShares)
		}
		o.CPUShares = uint64(min(n, maxShares))
	case "cpu-quota":
		o.CPUQuota = max(p.runInt(at, f, -1, 1<<31), 0)
	case "cpu-period":
		if o.CPUPeriod = p.runInt(at, f, 0, 1_000_000); o.CPUPeriod != 0 && o.CPUPeriod < 1000 {
			p.refuseRun(at, f, "want microseconds from 1000 to 1000000")
		}
	default:
		return false
	}
	return true
}

// quota makes of --cpu-quota and --cpu-period what --cpus would be.
func (p *parser) quota(at place, s *rawStep, o *RunOptions, cpus bool) {
	switch {
	case o.CPUQuota == 0:
	case cpus:
		p.refuse(at, "cmd", "docker run takes either --cpus or --cpu-quota")
	default:
		period := o.CPUPeriod
		if period == 0 {
			period = defaultPeriod
		}
		s.CPUs = strconv.FormatFloat(float64(o.CPUQuota)/float64(period), 'f', -1, 64)
	}
}

// refuseRun refuses the value of an option of docker run.
func (p *parser) refuseRun(at place, f option, why string) {
	p.refuse(at, "cmd", "docker run option --%s %s: %s", f.name, p.clip(f.value), why)
}

// another adds the value of an option to a list of bounded length.
func (p *parser) another(at place, f option, list []string) []string {
	if len(list) == maxRunOptions {
		p.refuse(at, "cmd", "docker run takes --%s at most %d times", f.name, maxRunOptions)
	}
	if len(list) >= maxRunOptions {
		return append(list[:maxRunOptions:maxRunOptions], f.value)
	}
	return append(list, f.value)
}

// word adds the value of an option that is a single word.
func (p *parser) word(at place, f option, list []string) []string {
	if !validWord.MatchString(f.value) {
		p.refuseRun(at, f, "want a single word")
	}
	return p.another(at, f, list)
}

func (p *parser) numberSet(at place, f option) string {
	if !validSet.MatchString(f.value) {
		p.refuseRun(at, f, "want numbers and ranges, such as 0-3,7")
	}
	return f.value
}

func (p *parser) runInt(at place, f option, low, high int64) int64 {
	n, err := strconv.ParseInt(f.value, 10, 64)
	if err != nil || n < low || n > high {
		p.refuseRun(at, f, "want a whole number from "+strconv.FormatInt(low, 10)+" to "+strconv.FormatInt(high, 10))
		return 0
	}
	return n
}

func (p *parser) runSize(at place, f option) int64 {
	n, ok := parseSize(f.value)
	if !ok {
		p.refuseRun(at, f, "want bytes, or a size such as 64m or 1g")
	}
	return n
}

// parseSize reads a size as docker writes it: a number, then b, k, m, g or t, or kb, kib and so on.
func parseSize(text string) (int64, bool) {
	text = strings.ToLower(text)
	digits := strings.TrimRight(text, "bikmgt")
	unit := strings.TrimSuffix(strings.TrimSuffix(text[len(digits):], "b"), "i")
	shift := 0
	if unit != "" {
		shift = 10 * (strings.Index("kmgt", unit) + 1)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || len(unit) > 1 || unit != "" && shift == 0 || n > (1<<60)>>shift {
		return 0, false
	}
	return n << shift, true
}

func (p *parser) runUlimit(at place, o *RunOptions, f option) {
	name, value, _ := strings.Cut(f.value, "=")
	soft, hard, two := strings.Cut(value, ":")
	if !two {
		hard = soft
	}
	u := Ulimit{Name: name}
	var err1, err2 error
	u.Soft, err1 = strconv.ParseInt(soft, 10, 64)
	u.Hard, err2 = strconv.ParseInt(hard, 10, 64)
	switch {
	case name == "rtprio" || name == "nice":
		p.refuseRun(at, f, "it would let the step's processes go before those of others; leave it out")
	case !slices.Contains(ulimitNames, name):
		p.refuseRun(at, f, "want NAME=SOFT[:HARD] with one of "+strings.Join(ulimitNames, ", "))
	case err1 != nil || err2 != nil || u.Soft < -1 || u.Hard < -1 || u.Hard >= 0 && (u.Soft > u.Hard || u.Soft == -1):
		p.refuseRun(at, f, "want NAME=SOFT[:HARD], whole numbers of which the second is not less, or -1 for no limit")
	}
	o.Ulimits = slices.DeleteFunc(o.Ulimits, func(other Ulimit) bool { return other.Name == name })
	o.Ulimits = append(o.Ulimits, u)
}

// runSysctl sets what a container has for itself. The rest of the kernel is the worker's.
func (p *parser) runSysctl(at place, o *RunOptions, f option) {
	name, value, ok := strings.Cut(f.value, "=")
	name = strings.ReplaceAll(name, "/", ".")
	switch {
	case !ok || !validSysctl.MatchString(name) || strings.ContainsAny(value, "\n\x00"):
		p.refuseRun(at, f, "want NAME=VALUE")
	case !strings.HasPrefix(name, "net.") && !strings.HasPrefix(name, "fs.mqueue.") && !slices.Contains(ipcSysctls, name):
		p.warnf(at, "cmd", "docker run option --sysctl %s has no effect here: it is a setting of the worker's kernel, not of a container", p.clip(name))
	case len(o.Sysctls) == maxRunOptions:
		p.refuse(at, "cmd", "docker run takes --sysctl at most %d times", maxRunOptions)
	case o.Sysctls == nil:
		o.Sysctls = map[string]string{name: value}
	default:
		o.Sysctls[name] = value
	}
}
