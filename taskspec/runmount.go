package taskspec

import (
	"encoding/csv"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The kinds of a RunMount.
const (
	MountBind   = "bind"
	MountVolume = "volume"
	MountTmpfs  = "tmpfs"
)

// A RunMount is what -v, --mount or --tmpfs of docker run mounts.
type RunMount struct {
	Kind string
	// Source is a path of a bind, relative to the directory where docker would be called, or the name of a volume;
	// without one a volume is the container's own.
	Source   string
	Path     string // absolute and clean
	ReadOnly bool
	NoCopy   bool     // a volume begins without what the image has at Path
	Create   bool     // the source of a bind is made if it is not there
	Options  []string // of tmpfs: size=65536, mode=0755
}

const maxMounts = 32 // of a container

var (
	validVolume   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)
	dockerSockets = []string{"/var/run/docker.sock", "/run/docker.sock"}
)

// runMountOption applies an option that mounts something.
func (p *parser) runMountOption(at place, o *RunOptions, f option) bool {
	switch f.name {
	case "volume":
		p.runVolume(at, o, f)
	case "mount":
		p.runMount(at, o, f)
	case "tmpfs":
		dir, options, _ := strings.Cut(f.value, ":")
		m := RunMount{Kind: MountTmpfs, Path: dir}
		p.tmpfsOptions(at, &m, f, strings.Split(options, ","))
		p.addMount(at, o, f, m)
	case "volume-driver":
		if f.value != "local" {
			p.refuseRun(at, f, "a volume is a directory of the run; leave it out")
		}
	default:
		return false
	}
	return true
}

// runVolume understands SOURCE:PATH[:OPTIONS] and PATH.
func (p *parser) runVolume(at place, o *RunOptions, f option) {
	parts := strings.Split(f.value, ":")
	m := RunMount{Kind: MountVolume, Path: parts[0]}
	if len(parts) > 1 {
		m.Source, m.Path, m.Create = parts[0], parts[1], true
		if m.Source == "" || len(parts) > 3 {
			p.refuseRun(at, f, "want SOURCE:PATH or SOURCE:PATH:ro")
			return
		}
	}
	if strings.HasPrefix(m.Source, ".") || strings.Contains(m.Source, "/") {
		m.Kind = MountBind
	}
	for _, name := range strings.Split(strings.Join(parts[min(2, len(parts)):], ""), ",") {
		switch name {
		case "ro", "readonly":
			m.ReadOnly = true
		case "nocopy":
			m.NoCopy = true
		case "", "rw", "z", "Z", "copy", "cached", "delegated", "consistent", "shared", "rshared", "slave", "rslave", "private", "rprivate":
		default:
			p.refuseRun(at, f, "the option "+strconv.Quote(p.clip(name))+" is not possible here; leave it out")
		}
	}
	p.addMount(at, o, f, m)
}

// runMount understands type=bind,source=PATH,target=PATH,readonly and the like.
func (p *parser) runMount(at place, o *RunOptions, f option) {
	fields, err := csv.NewReader(strings.NewReader(f.value)).Read()
	if err != nil {
		p.refuseRun(at, f, "want NAME=VALUE, several with commas between them")
		return
	}
	m := RunMount{Kind: MountVolume}
	var options []string
	for _, field := range fields {
		name, value, _ := strings.Cut(field, "=")
		switch strings.ToLower(name) {
		case "type":
			m.Kind = value
		case "source", "src":
			m.Source = value
		case "target", "dst", "destination":
			m.Path = value
		case "readonly", "ro":
			m.ReadOnly = value == "" || value == "true" || value == "1"
		case "volume-nocopy":
			m.NoCopy = value == "" || value == "true" || value == "1"
		case "tmpfs-size":
			options = append(options, "size="+value)
		case "tmpfs-mode":
			options = append(options, "mode="+value)
		case "bind-create-src":
			m.Create = true
		case "bind-propagation", "bind-nonrecursive", "bind-recursive", "consistency", "volume-label": // nothing to be done differently
		default:
			p.refuseRun(at, f, strconv.Quote(p.clip(field))+" is not possible here; leave it out")
		}
	}
	switch {
	case m.Kind != MountBind && m.Kind != MountVolume && m.Kind != MountTmpfs:
		p.refuseRun(at, f, "the type is bind, volume or tmpfs here")
		return
	case m.Kind == MountBind && m.Source == "":
		p.refuseRun(at, f, "a bind needs a source")
		return
	}
	p.tmpfsOptions(at, &m, f, options)
	p.addMount(at, o, f, m)
}

// tmpfsOptions checks the options of a directory in memory.
func (p *parser) tmpfsOptions(at place, m *RunMount, f option, options []string) {
	for _, option := range options {
		name, value, _ := strings.Cut(option, "=")
		ok := true
		switch name {
		case "", "rw", "exec", "nosuid", "suid", "dev", "atime", "noatime", "relatime", "strictatime", "diratime", "nodiratime", "sync", "async":
			ok = value == ""
		case "ro":
			m.ReadOnly = true
		case "noexec", "nodev":
			m.Options = append(m.Options, name)
		case "size":
			var bytes int64
			if bytes, ok = parseSize(value); ok {
				m.Options = append(m.Options, "size="+strconv.FormatInt(bytes, 10))
			}
		case "mode":
			_, err := strconv.ParseUint(value, 8, 12)
			ok = err == nil
			m.Options = append(m.Options, option)
		case "uid", "gid", "nr_inodes":
			_, err := strconv.ParseUint(value, 10, 31)
			ok = err == nil
			m.Options = append(m.Options, option)
		default:
			ok = false
		}
		if !ok {
			p.refuseRun(at, f, strconv.Quote(p.clip(option))+" is no option of a directory in memory; these have size, mode, uid, gid, nr_inodes, ro, noexec and nodev")
		}
	}
}

// addMount adds a mount if it is one that a step may have.
func (p *parser) addMount(at place, o *RunOptions, f option, m RunMount) {
	if m.Source != "" && m.Source == p.opt.Run.SharedVolume {
		m.Kind, m.Source = MountBind, workspace
	}
	if slices.Contains(dockerSockets, m.Source) {
		o.DockerSocket = true
		return
	}
	absolute := path.IsAbs(m.Path)
	m.Path = path.Clean(m.Path)
	needed := m.Path == workspace || m.Path == homeDir
	switch {
	case !absolute || m.Path == "/":
		p.refuseRun(at, f, "want an absolute path in the container")
	case m.Kind == MountVolume && m.Source != "" && !validVolume.MatchString(m.Source):
		p.refuseRun(at, f, "the name of a volume has letters, digits, _ . and -; a path begins with . or /")
	case needed && m.Kind == MountBind && path.Clean(m.Source) == m.Path:
		return // it is there anyway
	case needed:
		p.refuseRun(at, f, m.Path+" is needed for the run; mount it elsewhere")
	case slices.ContainsFunc(o.Mounts, func(other RunMount) bool { return other.Path == m.Path }):
		p.refuseRun(at, f, "something is mounted at "+p.clip(m.Path)+" already")
	case len(o.Mounts) == maxMounts:
		p.refuse(at, "cmd", "a container has at most %d mounts", maxMounts)
	case len(o.Mounts) < maxMounts:
		o.Mounts = append(o.Mounts, m)
	}
}

// checkBinds refuses binds of a step to what is not the run's. A relative path begins where the run's files are.
func (p *parser) checkBinds(at place, o *RunOptions) {
	for i, m := range o.Mounts {
		if m.Kind != MountBind {
			continue
		}
		source := path.Clean(m.Source)
		if !path.IsAbs(source) {
			source = path.Join(workspace, source)
		}
		if !inside(source, workspace) && !inside(source, homeDir) {
			p.refuse(at, "cmd", "docker run option -v %s:%s: the directories of the worker's host are not for a step; what is in %s can be mounted, or a volume by its name",
				p.clip(m.Source), p.clip(m.Path), workspace)
		}
		o.Mounts[i].Source = source
	}
}

// inside reports whether a clean path is a directory or below it.
func inside(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
