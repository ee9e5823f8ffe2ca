package runnet

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const hostsPath = "/etc/hosts"

// A hostsFile is a container's /etc/hosts. It is changed in place while the container sees it.
type hostsFile struct {
	file  *os.File
	size  int64
	lines map[*endpoint]int64 // where each container's line begins
}

// addHosts gives a container a hosts file that follows the coming and going of the run's other
// containers.
func (p *Provider) addHosts(e *endpoint, s *specs.Spec) error {
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == hostsPath })
	if i < 0 {
		return nil
	}
	base, err := os.ReadFile(s.Mounts[i].Source)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(p.cfg.Dir, e.port+".hosts"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	h := &hostsFile{file: f, lines: map[*endpoint]int64{}}
	e.hosts = h
	// The file that BuildKit made has the whole name, with the network's key.
	base = bytes.ReplaceAll(base, []byte(e.step+"."+e.bridge.run), []byte(s.Hostname))
	// Containers may run as any user, whatever this process's umask is.
	err = errors.Join(f.Chmod(0o644), h.append(base))
	for m := range e.bridge.members {
		err = errors.Join(err, h.add(m))
		if m != e && m.hosts != nil {
			err = errors.Join(err, m.hosts.add(e))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	s.Mounts[i].Source = f.Name()
	return nil
}

// removeHost makes the others forget a container. The provider's mutex is held.
func (b *bridge) removeHost(e *endpoint) {
	for m := range b.members {
		if m != e && m.hosts != nil {
			m.hosts.remove(e)
		}
	}
	if e.hosts != nil {
		_ = e.hosts.file.Close() // nothing is buffered
		_ = os.Remove(e.hosts.file.Name())
		e.hosts = nil
	}
}

func (h *hostsFile) add(e *endpoint) error {
	if _, ok := h.lines[e]; ok {
		return nil
	}
	h.lines[e] = h.size
	names := e.step
	if label := hostLabel(e.step); label != e.step {
		names += " " + label
	}
	for _, name := range e.names {
		names += " " + name
	}
	return h.append(fmt.Appendf(nil, "%s\t%s\n", e.addr, names))
}

// hostLabel returns a step's name as host names are written: lower case, no underscores, and not longer
// than is usual.
func hostLabel(step string) string {
	label := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(step))
	return strings.Trim(label[:min(len(label), maxHostname)], "-.")
}

func (h *hostsFile) append(b []byte) error {
	n, err := h.file.WriteAt(b, h.size)
	h.size += int64(n)
	return err
}

// remove turns a line into a comment: a reader sees the line or the comment, never anything between.
func (h *hostsFile) remove(e *endpoint) {
	at, ok := h.lines[e]
	if !ok {
		return
	}
	delete(h.lines, e)
	_, _ = h.file.WriteAt([]byte("#"), at) // a stale line misleads only those who ask for the dead
}
