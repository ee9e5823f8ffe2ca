package taskspec

import "strings"

// substitute executes a document whose actions all are plain references, like {{.Run.ID}}: the most
// frequent kind, for which the template machinery is not needed. It reports whether the document is of
// this kind; if not, nothing has happened. The result is the same as that of text/template.
func (p *parser) substitute(data map[string]any) bool {
	var refs []plainRef
	for off := 0; ; {
		i := strings.Index(p.doc.s[off:], "{{")
		if i < 0 {
			break
		}
		ref, ok := parsePlainRef(p.doc.s, off+i)
		if !ok {
			return false
		}
		if ref.value, ref.defined, ok = plainValue(data[ref.scope], ref.name); !ok {
			return false
		}
		refs = append(refs, ref)
		off = ref.end
	}
	var w rewriter
	w.b.Grow(len(p.doc.s))
	pos := 0
	for _, ref := range refs {
		w.copy(p.doc.s[pos:ref.start], pos)
		w.insert(ref.value, ref.start)
		if w.b.Len() > maxRendered {
			p.fail("%v", errTooLong)
			return true
		}
		if !ref.defined && len(p.warns) < maxErrors {
			p.warnUndefinedAt(ref.dot, data, ref.scope, ref.name)
		}
		pos = ref.end
	}
	if w.copy(p.doc.s[pos:], pos); w.b.Len() > maxRendered {
		p.fail("%v", errTooLong)
		return true
	}
	p.doc = w.text(p.doc)
	return true
}

// A plainRef is an action of the form {{.Scope.Name}}.
type plainRef struct {
	start, dot, end int // of the action, of the name's dot, after the action
	scope, name     string
	value           string
	defined         bool
}

// parsePlainRef reads the action at start.
func parsePlainRef(s string, start int) (plainRef, bool) {
	ref := plainRef{start: start}
	pos := skipBlanks(s, start+2)
	ref.scope, pos = plainField(s, pos)
	ref.dot = pos
	ref.name, pos = plainField(s, pos)
	pos = skipBlanks(s, pos)
	ref.end = pos + 2
	return ref, ref.scope != "" && ref.name != "" && strings.HasPrefix(s[pos:], "}}")
}

func skipBlanks(s string, pos int) int {
	for pos < len(s) && s[pos] == ' ' {
		pos++
	}
	return pos
}

// plainField reads a dot and an identifier; the identifier is empty if there is none.
func plainField(s string, pos int) (name string, end int) {
	if pos >= len(s) || s[pos] != '.' {
		return "", pos
	}
	n := nameLen(s[pos+1:])
	return s[pos+1 : pos+1+n], pos + 1 + n
}

// plainValue returns the text that a reference prints; ok is false if that is not obvious.
func plainValue(scope any, name string) (text string, defined, ok bool) {
	m, ok := scope.(map[string]any)
	if !ok {
		return "", false, false
	}
	v, defined := m[name]
	if v == nil {
		return noValue, defined, true
	}
	text, ok = v.(string)
	return text, defined, ok
}
