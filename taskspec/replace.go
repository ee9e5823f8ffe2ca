package taskspec

import (
	"strings"
	"unicode/utf8"
)

// replaceAliases replaces $NAME throughout the document, in one pass and by these rules: $$ is a $;
// a name is letters and digits; what follows the name ends it; a known name becomes its value, which
// is not looked at again, and if another $ ended the name that begins the next; an unknown name stays
// as it is together with what ended it, even if that is a $.
func (p *parser) replaceAliases() {
	s, d := p.doc.s, p.aliases.directive
	if !strings.ContainsRune(s, d) {
		return
	}
	r := replacer{p: p, s: s, dlen: utf8.RuneLen(d), directive: string(d)}
	pos := 0
	for pos < len(s) {
		i := strings.Index(s[pos:], r.directive)
		if i < 0 {
			break
		}
		r.w.copy(s[pos:pos+i], pos)
		pos = r.inside(pos + i)
		switch {
		case r.w.b.Len() > maxRendered:
			p.failAt(pos, "the document grows beyond %d bytes when its aliases are replaced", maxRendered)
			return
		case r.uses > maxAliases:
			p.failAt(pos, "the document uses aliases more than %d times", maxAliases)
			return
		}
	}
	r.w.copy(s[pos:], pos)
	p.doc = r.w.text(p.doc)
}

// A replacer is one pass over the document.
type replacer struct {
	p         *parser
	s         string
	directive string
	dlen      int
	w         rewriter
	uses      int
}

// inside handles a directive at start and the ones that follow it without a gap, and returns where
// ordinary text goes on.
func (r *replacer) inside(start int) int {
	for {
		if r.uses++; r.uses > maxAliases || r.w.b.Len() > maxRendered {
			return start
		}
		end := start + r.dlen
		for end < len(r.s) && (isAlpha(r.s[end]) || isDigit(r.s[end])) {
			end++
		}
		name := r.s[start+r.dlen : end]
		again := strings.HasPrefix(r.s[end:], r.directive)
		if name == "" && again {
			r.w.insert(r.directive, start)
			return end + r.dlen
		}
		value, known := r.p.aliases.lookup(name)
		if !known {
			return r.unknown(start, end, again)
		}
		r.w.insert(value, start)
		if !again {
			return end
		}
		start = end
	}
}

// unknown keeps a name that is no alias, and the character that ended it.
func (r *replacer) unknown(start, end int, again bool) int {
	if again {
		end += r.dlen
		next := end
		for next < len(r.s) && (isAlpha(r.s[next]) || isDigit(r.s[next])) {
			next++
		}
		if _, known := r.p.aliases.lookup(r.s[end:next]); known {
			r.p.warnAt(end-r.dlen, "%s is not replaced, because %s before it is no alias and swallows its %s",
				clip(r.s[end-r.dlen:next]), clip(r.s[start:end-r.dlen]), r.directive)
		}
	} else if inner, ok := strings.CutPrefix(r.s[end:], "{"); ok && end == start+r.dlen {
		if name, _, ok := strings.Cut(inner[:min(len(inner), 64)], "}"); ok {
			if _, known := r.p.aliases.lookup(name); known {
				r.p.warnAt(start, "%s{%s} is no alias and stays as it is; write %s%s", r.directive, name, r.directive, name)
			}
		}
	}
	r.w.copy(r.s[start:end], start)
	return end
}
