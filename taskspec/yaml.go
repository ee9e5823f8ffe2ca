package taskspec

import (
	"fmt"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// The language is YAML 1.1 as its first implementation read it, so scalars are resolved here and not
// by yaml.v3, which follows YAML 1.2 in part: yes and on are booleans and 010 is eight.

// A place is where messages about a part of a step or of the task point.
type place struct {
	step string
	node *yaml.Node
}

// errorf records an error about a property.
func (p *parser) errorf(at place, property, format string, args ...any) {
	if !p.full() {
		p.report(p.message(at, property, format, args))
	}
}

// refuse records what a run cannot do: an error, or a warning if the document is only to be shown.
func (p *parser) refuse(at place, property, format string, args ...any) {
	if p.opt.Lenient {
		p.warnf(at, property, format+"; a run is refused", args...)
		return
	}
	p.errorf(at, property, format, args...)
}

// warnf records a warning about a property.
func (p *parser) warnf(at place, property, format string, args ...any) {
	if len(p.warns) < maxErrors {
		p.warn(p.message(at, property, format, args))
	}
}

func (p *parser) message(at place, property, format string, args []any) *Error {
	e := &Error{Step: at.step, Property: property, Message: fmt.Sprintf(format, args...)}
	if at.node != nil {
		e.Line, e.Col = p.place(p.nodeOffset(at.node))
	}
	return e
}

// nodeOffset returns the offset of a node in the rendered text.
func (p *parser) nodeOffset(n *yaml.Node) int {
	if p.docLines == nil {
		p.docLines = indexYAMLLines(p.doc.s)
	}
	return p.docLines.offset(n.Line, n.Column)
}

// line returns the author's line of a node.
func (p *parser) line(n *yaml.Node) int {
	off := p.doc.origin(p.nodeOffset(n))
	if p.sourceLines == nil {
		p.sourceLines = indexLines(p.doc.source())
	}
	return p.sourceLines.line(off)
}

// count charges one YAML node, so that a document which repeats itself through aliases stays bounded.
func (p *parser) count(n *yaml.Node) bool {
	p.nodes++
	if p.nodes == maxNodes {
		p.errorf(place{node: n}, "", "the document has more than %d YAML nodes, aliases included", maxNodes)
	}
	return p.nodes < maxNodes
}

// deref follows an alias to its anchor.
func deref(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

// A field is one key of a mapping with its value, aliases followed.
type field struct {
	name       string
	key, value *yaml.Node
}

// fields returns the fields of a mapping, those that "<<" brings in at its place: a later one overrides an
// earlier one of its name. It reports anything else than a mapping; null is an empty one.
func (p *parser) fields(at place, property string, n *yaml.Node) []field {
	n = deref(n)
	switch {
	case n.Kind == yaml.MappingNode:
		return p.appendFields(nil, at, n, 0)
	case !isNull(n):
		p.errorf(place{at.step, n}, property, "%s where a map of properties is needed", p.describe(n))
	}
	return nil
}

func (p *parser) appendFields(fs []field, at place, n *yaml.Node, depth int) []field {
	if depth > 10 {
		p.errorf(place{at.step, n}, "<<", "merges are nested more than 10 deep")
		return fs
	}
	own := make([]field, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		if isMerge(n.Content[i]) {
			before := len(fs)
			fs = p.merge(fs, at, n.Content[i+1], depth)
			p.warnMerged(at, n.Content[i], own, fs[before:])
			continue
		}
		key := deref(n.Content[i])
		if !p.count(key) {
			continue
		}
		if key.Kind != yaml.ScalarNode {
			p.errorf(place{at.step, key}, "", "%s where a property name is needed", p.describe(key))
			continue
		}
		if hasField(own, key.Value) {
			p.warnf(place{at.step, key}, key.Value, "is written twice; the last one counts")
		}
		f := field{key.Value, key, deref(n.Content[i+1])}
		own, fs = append(own, f), append(fs, f)
	}
	return fs
}

// hasField reports whether one of the first fields has a name.
func hasField(fs []field, name string) bool {
	for _, f := range fs[:min(len(fs), 64)] {
		if f.name == name {
			return true
		}
	}
	return false
}

// warnMerged warns of properties that a "<<" below them overrides.
func (p *parser) warnMerged(at place, key *yaml.Node, own, merged []field) {
	merged = merged[:min(len(merged), 64)]
	for i, f := range merged {
		if hasField(own, f.name) && !hasField(merged[:i], f.name) {
			p.warnf(place{at.step, key}, "<<", "overrides the %s above it; write << first to keep that", p.clip(f.name))
		}
	}
}

func isMerge(key *yaml.Node) bool {
	return key.Kind == yaml.ScalarNode && key.Value == "<<" && key.Style == 0
}

// merge adds the fields that a "<<" key brings in. Of several maps the first has precedence.
func (p *parser) merge(fs []field, at place, n *yaml.Node, depth int) []field {
	n = deref(n)
	switch n.Kind {
	case yaml.MappingNode:
		return p.appendFields(fs, at, n, depth+1)
	case yaml.SequenceNode:
		for i := len(n.Content) - 1; i >= 0; i-- {
			m := deref(n.Content[i])
			if m.Kind != yaml.MappingNode {
				p.errorf(place{at.step, m}, "<<", "%s where a map is needed", p.describe(m))
			} else if p.count(m) {
				fs = p.appendFields(fs, at, m, depth+1)
			}
		}
		return fs
	}
	p.errorf(place{at.step, n}, "<<", "%s where a map or a list of maps is needed", p.describe(n))
	return fs
}

// items returns the elements of a list, aliases followed. It reports anything else; null is empty.
func (p *parser) items(at place, property string, n *yaml.Node) []*yaml.Node {
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		p.errorf(place{at.step, n}, property, "%s where a list is needed", p.describe(n))
		return nil
	}
	list := make([]*yaml.Node, 0, len(n.Content))
	for _, item := range n.Content {
		if !p.count(item) {
			break
		}
		list = append(list, deref(item))
	}
	return list
}

// texts is items for a list of texts.
func (p *parser) texts(at place, property string, n *yaml.Node) []*yaml.Node {
	if n.Kind == yaml.ScalarNode && !isNull(n) {
		p.errorf(place{at.step, n}, property, "a list is needed, even for a single entry; write %s: [%q]", property, p.clip(p.written(n)))
		return nil
	}
	return p.items(at, property, n)
}

// written returns a scalar as its author wrote it, before aliases and templates changed it.
func (p *parser) written(n *yaml.Node) string {
	if !plain(n) {
		return n.Value
	}
	src := p.doc.source()
	off := min(p.doc.origin(p.nodeOffset(n)), len(src))
	line, _, _ := strings.Cut(src[off:off+lineLen(src[off:])], " #")
	if line = strings.TrimSpace(line); line == "" || !strings.ContainsAny(line, "${") {
		return n.Value
	}
	return line
}

// stringList decodes a list of strings.
func (p *parser) stringList(at place, property string, n *yaml.Node) []string {
	items := p.texts(at, property, n)
	if len(items) == 0 {
		return nil
	}
	list := make([]string, 0, len(items))
	for _, item := range items {
		list = append(list, p.str(at, property, item))
	}
	return list
}

// describe says what a node is, for a message that needed something else.
func (p *parser) describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	if isNull(n) {
		return "nothing"
	}
	if plain(n) {
		return p.clip(n.Value)
	}
	return "the text " + strconv.Quote(p.clip(n.Value))
}

// clip hides secrets in a text and shortens it, for a message.
func (p *parser) clip(s string) string { return clip(p.redact(s)) }

// clip shortens a text for a message.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
