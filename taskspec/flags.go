package taskspec

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// An option is one option of docker build or docker run as it was written.
type option struct {
	name  string // long name
	value string // "true" or "false" for a boolean
}

// A flagSet knows the options of a command: long names with whether they take a value, and the short
// names for some of them.
type flagSet struct {
	command string
	long    map[string]bool // true: takes a value
	short   map[byte]string
}

// parse splits words into options and positional words by the rules of docker's command line: --flag
// value, --flag=value, -f value, -fvalue, -f=value, bundles of boolean short options, and "--". With
// interspersed, options may follow positional words; otherwise the first positional word ends them,
// and rest has everything from it on.
func (fs *flagSet) parse(words []string, interspersed bool) (flags []option, rest []string, err error) {
	for len(words) > 0 {
		w := words[0]
		words = words[1:]
		switch {
		case w == "--":
			return flags, append(rest, words...), nil
		case len(w) < 2 || w[0] != '-':
			rest = append(rest, w)
			if !interspersed {
				return flags, append(rest, words...), nil
			}
		case strings.HasPrefix(w, "--"):
			flags, words, err = fs.parseLong(flags, w[2:], words)
		default:
			flags, words, err = fs.parseShort(flags, w[1:], words)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return flags, rest, nil
}

// A flagError says what is wrong with the options of a command whose words are known.
type flagError struct{ error }

// parseCommand splits a command string into words and these into options and the rest. Shell variables in
// its first literal bytes are kept as they are.
func parseCommand(fs *flagSet, s string, literal int, interspersed bool) (w words, opts []option, rest []string, err error) {
	if w, err = splitLiteral(s, literal); err != nil {
		return w, nil, nil, err
	}
	if opts, rest, err = fs.parse(w.list, interspersed); err != nil {
		err = flagError{err}
	}
	return w, opts, rest, err
}

// commandError reports why a command string cannot be understood. A message that shows a part of it is
// made from the string without its secrets.
func (p *parser) commandError(at place, property string, fs *flagSet, s string, err error) {
	if hidden := p.redact(s); hidden != s {
		if _, _, _, err = parseCommand(fs, hidden, 0, fs == &buildFlags); err == nil {
			p.errorf(at, property, "the value of a secret cannot stand here as it is; put it in single quotes, or pass it in env")
			return
		}
	}
	if _, ok := errors.AsType[flagError](err); ok {
		p.refuse(at, property, "%v", err)
		return
	}
	p.errorf(at, property, "%v", err)
}

func (fs *flagSet) parseLong(flags []option, w string, words []string) ([]option, []string, error) {
	name, value, has := strings.Cut(w, "=")
	takes, ok := fs.long[name]
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("%s has no option %q%s", fs.command, "--"+clip(name), fs.suggest(name))
	case takes && !has:
		if len(words) == 0 {
			return nil, nil, fmt.Errorf("option --%s needs a value", name)
		}
		return append(flags, option{name, words[0]}), words[1:], nil
	case !takes && has:
		v, err := strconv.ParseBool(value)
		if err != nil {
			return nil, nil, fmt.Errorf("option --%s takes true or false, not %q", name, clip(value))
		}
		return append(flags, option{name, strconv.FormatBool(v)}), words, nil
	case !takes:
		value = "true"
	}
	return append(flags, option{name, value}), words, nil
}

func (fs *flagSet) parseShort(flags []option, w string, words []string) ([]option, []string, error) {
	for i := 0; i < len(w); i++ {
		name, ok := fs.short[w[i]]
		if !ok {
			return nil, nil, fmt.Errorf("%s has no option %q%s", fs.command, "-"+clip(w[i:]), fs.suggest(w))
		}
		if !fs.long[name] {
			flags = append(flags, option{name, "true"})
			continue
		}
		if value := w[i+1:]; value != "" {
			return append(flags, option{name, strings.TrimPrefix(value, "=")}), words, nil
		}
		if len(words) == 0 {
			return nil, nil, fmt.Errorf("option -%c needs a value", w[i])
		}
		return append(flags, option{name, words[0]}), words[1:], nil
	}
	return flags, words, nil
}

func (fs *flagSet) suggest(name string) string {
	if fs == &buildFlags && name == "image" {
		return ` (did you mean "--tag"?)`
	}
	return strings.Replace(didYouMean(name, keys(fs.long)), `"`, `"--`, 1)
}

// newFlagSet makes a flag set. Each list has names separated by blanks, a short one after a slash.
func newFlagSet(command, valued, boolean string) flagSet {
	fs := flagSet{command: command, long: map[string]bool{}, short: map[byte]string{}}
	for takes, list := range map[bool]string{true: valued, false: boolean} {
		for _, names := range strings.Fields(list) {
			long, short, ok := strings.Cut(names, "/")
			fs.long[long] = takes
			if ok {
				fs.short[short[0]] = long
			}
		}
	}
	return fs
}

var buildFlags = newFlagSet("docker build", `
	add-host allow annotation attest build-arg build-context builder cache-from cache-to call cgroup-parent
	cpu-period cpu-quota cpu-shares/c cpuset-cpus cpuset-mems file/f iidfile isolation label memory/m memory-swap
	metadata-file network no-cache-filter output/o platform policy progress provenance sbom secret security-opt
	shm-size ssh tag/t target ulimit`, `
	check compress debug/D disable-content-trust force-rm load no-cache pull push quiet/q rm squash`)

var runFlags = newFlagSet("docker run", `
	add-host annotation attach/a blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile
	cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares/c cpus cpuset-cpus
	cpuset-mems detach-keys device device-cgroup-rule device-read-bps device-read-iops device-write-bps
	device-write-iops dns dns-opt dns-option dns-search domainname entrypoint env/e env-file expose gpus group-add
	health-cmd health-interval health-retries health-start-interval health-start-period health-timeout hostname/h
	io-maxbandwidth io-maxiops ip ip6 ipc isolation kernel-memory label/l label-file link link-local-ip log-driver
	log-opt mac-address memory/m memory-reservation memory-swap memory-swappiness mount name net net-alias network
	network-alias oom-score-adj pid pids-limit platform publish/p pull restart runtime security-opt shm-size
	stop-signal stop-timeout storage-opt sysctl tmpfs ulimit user/u userns uts volume/v volume-driver volumes-from
	workdir/w`, `
	detach/d disable-content-trust help init interactive/i no-healthcheck oom-kill-disable privileged
	publish-all/P quiet/q read-only rm sig-proxy tty/t use-api-socket`)
