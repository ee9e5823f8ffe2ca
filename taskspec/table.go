package taskspec

import "gopkg.in/yaml.v3"

// A property is a key of the language: how it is written, what it means and how it is decoded.
type property[T any] struct {
	name string
	form form
	doc  string // what it means, in one sentence
	// set decodes the value into what the property belongs to. Nil means that it is known, but ignored.
	set func(p *parser, into *T, at place, f field)
	// on lists the kinds of step that it has an effect on; empty means all.
	on []Kind
	// ignored says why it is ignored, for those that are.
	ignored string
	// check finds mistakes in the value of one that is ignored.
	check func(p *parser, at place, property string, n *yaml.Node)
	path  string // the name in messages, set by newTable
}

// A table has the properties of one part of a document. The parser, the warnings about unknown keys and
// the published schema are all made from it.
type table[T any] struct {
	path       string // in messages: "" for a task and a step, else the property that it is the value of
	doc        string
	properties []property[T]
	byName     map[string]*property[T]
	names      []string // of those that are not ignored
}

func newTable[T any](path, doc string, properties []property[T]) *table[T] {
	t := &table[T]{path: path, doc: doc, properties: properties, byName: make(map[string]*property[T], len(properties))}
	for i := range properties {
		prop := &properties[i]
		prop.path = prop.name
		if path != "" {
			prop.path = path + "." + prop.name
		}
		t.byName[prop.name] = prop
		if prop.set != nil {
			t.names = append(t.names, prop.name)
		}
	}
	return t
}

// decode sets the properties that a mapping has and warns of those that the language does not have.
func (t *table[T]) decode(p *parser, into *T, at place, n *yaml.Node) {
	t.decodeFields(p, into, at, p.fields(at, t.path, n))
}

func (t *table[T]) decodeFields(p *parser, into *T, at place, fields []field) {
	for _, f := range fields {
		prop := t.byName[f.name]
		switch {
		case prop == nil:
			p.unknown(at, f, t.path, t.names)
		case prop.set == nil:
			p.warnf(place{at.step, f.key}, prop.path, "%s", prop.ignored)
			if prop.check != nil {
				prop.check(p, at, prop.path, f.value)
			}
		default:
			f.name = prop.path
			prop.set(p, into, at, f)
		}
	}
}
