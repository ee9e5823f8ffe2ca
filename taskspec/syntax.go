package taskspec

import (
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// parseYAML parses the rendered text into its root node; nil means an empty document.
func (p *parser) parseYAML() *yaml.Node {
	if off, what, ok := tooManyNodes(p.doc.s); ok {
		p.failAt(off, "the document has more than %s", what)
		return nil
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(p.doc.s), &doc); err != nil {
		p.syntaxError(err)
		return nil
	}
	if len(doc.Content) == 0 {
		return nil
	}
	return deref(doc.Content[0])
}

// tooManyNodes estimates the number of nodes from the characters that separate them, and counts the words
// of texts, so that a document with too many is not parsed at all. Block scalars do not count.
func tooManyNodes(s string) (off int, what string, ok bool) {
	if len(s) < maxNodes {
		return 0, "", false
	}
	var block blockScalar
	nodes, blanks := 0, 0
	for off := 0; off < len(s); {
		line := s[off : off+lineLen(s[off:])]
		if !block.next(line) {
			nodes++
			for i := range len(line) {
				switch line[i] {
				case ' ':
					if i > 0 && line[i-1] != ' ' {
						blanks++
					}
				case ',', '[', '{':
					nodes++
				case ':', '-', '?':
					if i+1 < len(line) && line[i+1] == ' ' {
						nodes++
					}
				}
			}
			switch {
			case nodes > maxNodes:
				return off, strconv.Itoa(maxNodes) + " YAML nodes", true
			case blanks > maxBlanks:
				return off, strconv.Itoa(maxBlanks) + " words; write long texts as block scalars, with |", true
			}
		}
		off += len(line)
	}
	return 0, "", false
}

// syntaxError reports what yaml.v3 could not parse, where it means.
func (p *parser) syntaxError(err error) {
	if p.docLines == nil {
		p.docLines = indexYAMLLines(p.doc.s)
	}
	if off, ok := p.tabIndent(); ok {
		p.failAt(off, "the line is indented with a tab; YAML allows only spaces there, so replace it by as many as the lines around have")
		return
	}
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if n, after, ok := strings.Cut(rest, ": "); ok {
			line, _ = strconv.Atoi(n)
			msg = after
		}
	}
	switch {
	case countsFromZero(msg):
		line++
	case strings.Contains(msg, "unexpected end of stream") && line >= len(p.docLines.starts):
		line = 1 // where yaml.v3 cannot say that something begins
	}
	off := p.docLines.offset(line, 1)
	text := p.doc.s[off : off+lineLen(p.doc.s[off:])]
	at, msg := explainYAML(msg, text)
	switch {
	case strings.HasPrefix(msg, "control characters"):
		off, at = max(0, strings.IndexFunc(p.doc.s, isControl)), 0
	case strings.HasPrefix(msg, "unknown anchor"):
		name := strings.Trim(strings.TrimSuffix(strings.TrimPrefix(msg, "unknown anchor "), " referenced"), "'")
		off, at = max(0, strings.Index(p.doc.s, "*"+name)), 0
	case at < 0:
		at = len(text) - len(strings.TrimLeft(text, " "))
	}
	if line, _ := p.place(off + at); p.undefined[line] != "" {
		msg = p.undefined[line] + " is not defined, and without it the line is not valid YAML: " + msg
	} else {
		msg = "not valid YAML: " + msg
	}
	p.failAt(off+at, "%s", msg)
}

// countsFromZero reports whether a message comes from the part of yaml.v3 that counts lines from zero.
func countsFromZero(msg string) bool {
	rest, ok := strings.CutPrefix(msg, "did not find expected ")
	if !ok {
		return false
	}
	for _, what := range []string{"key", "'-' indicator", "',' or", "node content", "<"} {
		if strings.HasPrefix(rest, what) {
			return true
		}
	}
	return false
}

// explainYAML turns a message of the YAML parser about a line into one that names the usual cause, and
// finds the place in the line, -1 if it cannot.
func explainYAML(msg, line string) (at int, explained string) {
	switch {
	case strings.Contains(msg, "unexpected end of stream"):
		return strings.IndexAny(line, `"'`), "a quote that is opened here is never closed"
	case strings.Contains(msg, "mapping values are not allowed"):
		first := strings.Index(line, ": ")
		if second := strings.Index(line[first+1:], ": "); first >= 0 && second >= 0 {
			return first + 1 + second, `": " inside a text begins a map; put the whole text in quotes`
		}
		return -1, "there can be no key here; the line is indented more than the key above it"
	case strings.Contains(msg, "cannot start any token"):
		return strings.IndexAny(line, "@`%\t"), "a text cannot begin with this character; put it in quotes"
	case strings.Contains(msg, "could not find expected ':'"):
		return -1, `this is neither "key: value" nor a part of the line before; check its indentation and the ":"`
	case strings.Contains(msg, "unknown escape character"):
		return strings.IndexByte(line, '\\'), `unknown escape; in double quotes write \\ for a backslash, or use single quotes`
	case strings.Contains(msg, "expected ',' or"):
		return strings.IndexAny(line, "[{"), "a bracket that is opened here is never closed, or a comma is missing"
	case strings.Contains(msg, "did not find expected key"), strings.Contains(msg, "did not find expected '-' indicator"):
		return -1, msg + "; check the indentation, quotes and brackets of this and the next lines"
	}
	return -1, msg
}

// isControl reports whether YAML does not allow a character.
func isControl(r rune) bool {
	return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r >= 0x7f && r < 0xa0 && r != 0x85 || r == 0xfffe || r == 0xffff
}

// tabIndent finds the first line that is indented with a tab.
func (p *parser) tabIndent() (off int, ok bool) {
	var block blockScalar
	s := p.doc.s
	for off := 0; off < len(s); {
		line := s[off : off+lineLen(s[off:])]
		indent := len(line) - len(strings.TrimLeft(line, " \t"))
		blank := strings.TrimSpace(line) == ""
		inBlock := block.next(line)
		if i := strings.IndexByte(line[:indent], '\t'); i >= 0 && !blank && !inBlock {
			return off + i, true
		}
		off += len(line)
	}
	return 0, false
}
