package taskspec

import (
	"errors"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

const homeDir = "/acb/home"

// An envEntry is one K=V of an environment.
type envEntry struct {
	key, value string
	bare       bool // no "=" was written: the value comes from an outer level
	level      int  // where it comes from when levels are merged: 0 is the strongest
	node       *yaml.Node
}

// envEntries decodes environment entries, removing shell quotes. Messages name the variable only: its
// value may be secret.
func (p *parser) envEntries(at place, items []item) []envEntry {
	if len(items) == 0 {
		return nil
	}
	if len(items) > maxEnv {
		p.errorf(place{at.step, items[maxEnv].node}, "env", "a list has at most %d entries, this one has %d", maxEnv, len(items))
		return nil
	}
	list := make([]envEntry, 0, len(items))
	for _, it := range items {
		name, _, _ := strings.Cut(it.text, "=")
		s, err := unquote(it.text)
		if err != nil {
			p.refuse(place{at.step, it.node}, "env", "%s: %s", p.clip(name), brief(err))
			s = it.text
		}
		k, v, ok := strings.Cut(s, "=")
		if k == "" {
			p.refuse(place{at.step, it.node}, "env", "an entry is written NAME=VALUE; this one has no name")
		}
		list = append(list, envEntry{key: k, value: v, bare: !ok, node: it.node})
	}
	return list
}

// brief returns what is wrong with an entry without showing any of it.
func brief(err error) string {
	if e, ok := errors.AsType[*wordError](err); ok {
		return e.what + e.advice
	}
	return err.Error()
}

// outerEnv returns the outermost environment. An entry may be a comma separated list; it is split only
// if every part has a name, so that a value may have commas.
func (p *parser) outerEnv() []envEntry {
	var list []envEntry
	for _, e := range p.opt.Env {
		for _, part := range splitList(e) {
			k, v, ok := strings.Cut(part, "=")
			if !ok || k == "" {
				p.fail("env: an entry of the outer environment is written NAME=VALUE; there is no NAME or no \"=\"")
				continue
			}
			list = append(list, envEntry{key: k, value: v})
		}
	}
	return list
}

func splitList(s string) []string {
	parts := strings.Split(s, ",")
	for _, part := range parts {
		if nameLen(part) == 0 || !strings.HasPrefix(part[nameLen(part):], "=") {
			return []string{s}
		}
	}
	return parts
}

// mergeEnv returns a step's environment: HOME, its own entries, then what the task and the outer
// environment add.
func (p *parser) mergeEnv(s *rawStep, task, outer []envEntry) []string {
	own := p.envEntries(s.at(nil), s.env)
	m := envMerge{list: make([]envEntry, 1, 1+len(own)+len(task)+len(outer))}
	levels := [...][]envEntry{own, task, outer}
	m.list[0] = envEntry{key: "HOME", value: homeDir, level: len(levels)}
	for level, entries := range levels {
		for _, e := range entries {
			e.level = level
			m.add(e)
		}
	}
	m.list = slices.DeleteFunc(m.list, func(e envEntry) bool {
		switch {
		case !e.bare:
			return false
		case len(task)+len(outer) == 0:
			p.warnf(place{s.ID, e.node}, "env", "%s has no value and is left out; write %s=VALUE", p.clip(e.key), p.clip(e.key))
		default:
			at := place{s.ID, e.node}
			if e.level > 0 {
				at.step = ""
			}
			p.errorf(at, "env", "%s has no value here, in the task or outside; write %s=VALUE", p.clip(e.key), p.clip(e.key))
		}
		return true
	})
	return joinEnv(m.list)
}

// An envMerge collects the entries of an environment from the strongest level to the weakest.
type envMerge struct {
	list  []envEntry
	index map[string]int // made for long lists only
}

// add appends e unless a stronger level has its name. A level may have a name several times: all of them
// stay, and the last one counts when the environment is used. An entry without a value takes that of the
// next level.
func (m *envMerge) add(e envEntry) {
	i, ok := m.find(e.key)
	switch {
	case ok && e.bare && !m.list[i].bare: // it has a value
	case ok && m.list[i].bare:
		m.list[i] = e
	case !ok || e.level <= m.list[i].level:
		if m.index != nil {
			m.index[e.key] = len(m.list)
		}
		m.list = append(m.list, e)
	}
}

func (m *envMerge) find(key string) (int, bool) {
	if m.index == nil && len(m.list) > 16 {
		m.index = make(map[string]int, 2*len(m.list))
		for i, e := range m.list {
			m.index[e.key] = i
		}
	}
	if m.index != nil {
		i, ok := m.index[key]
		return i, ok
	}
	for i := len(m.list) - 1; i >= 0; i-- {
		if m.list[i].key == key {
			return i, true
		}
	}
	return 0, false
}

func joinEnv(entries []envEntry) []string {
	if len(entries) == 0 {
		return nil
	}
	list := make([]string, len(entries))
	for i, e := range entries {
		list[i] = e.key
		if !e.bare {
			list[i] = e.key + "=" + e.value
		}
	}
	return list
}
