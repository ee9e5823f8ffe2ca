package taskspec

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// loadValues returns .Values: the values file overlaid with the K=V settings.
func (p *parser) loadValues() map[string]any {
	values := map[string]any{}
	if len(p.opt.Values) > 0 {
		file := newParser(p.opt.Values, &Options{File: p.opt.ValuesFile})
		file.readValues(values)
		p.errs = append(p.errs, file.errs...)
		p.warns = append(p.warns, file.warns...)
	}
	for _, kv := range p.opt.Set {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			p.fail("set: a value is written NAME=VALUE; there is no NAME or no \"=\"")
			continue
		}
		values[k] = v
	}
	return values
}

// readValues decodes the parser's document into values.
func (p *parser) readValues(values map[string]any) {
	switch {
	case len(p.doc.s) > maxSource:
		p.doc = &text{}
		p.fail("the values file has more than %d bytes", maxSource)
		return
	case !utf8.ValidString(p.doc.s):
		p.failAt(invalidUTF8(p.doc.s), "the values file is not valid UTF-8 here")
		return
	}
	if root := p.parseYAML(); root != nil {
		for _, f := range p.fields(place{}, "", root) {
			values[f.name] = p.value(f.value, 0)
		}
	}
}

// value decodes a node for templates. What a template prints is what the author wrote: a number is a
// number only if it would be printed the same way.
func (p *parser) value(n *yaml.Node, depth int) any {
	if depth > maxDepth {
		p.errorf(place{node: n}, "", "nested more than %d deep", maxDepth)
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for _, f := range p.fields(place{}, "", n) {
			if p.failed() {
				return nil
			}
			m[f.name] = p.value(f.value, depth+1)
		}
		return m
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range p.items(place{}, "", n) {
			if p.failed() {
				return nil
			}
			list = append(list, p.value(item, depth+1))
		}
		return list
	}
	return scalarValue(n)
}

// scalarValue resolves a scalar as YAML 1.1 does, but keeps as text what would change when printed,
// and the single letters y and n.
func scalarValue(n *yaml.Node) any {
	if isNull(n) {
		return nil
	}
	if !plain(n) {
		return n.Value
	}
	if v, ok := yamlBool(n.Value); ok && len(n.Value) > 1 {
		return v
	}
	if v, err := strconv.Atoi(n.Value); err == nil && strconv.Itoa(v) == n.Value {
		return v
	}
	if v, err := strconv.ParseFloat(n.Value, 64); err == nil && strconv.FormatFloat(v, 'g', -1, 64) == n.Value {
		return v
	}
	return n.Value
}
