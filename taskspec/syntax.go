package taskspec

import (
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// parseYAML parses the rendered text into its root node; nil means an empty document.
func (p *parser) parseYAML() *yaml.Node {
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

// syntaxError reports what yaml.v3 could not parse, at the line it means.
func (p *parser) syntaxError(err error) {
	if p.docLines == nil {
		p.docLines = indexYAMLLines(p.doc.s)
	}
	if off, ok := p.tabIndent(); ok {
		p.failAt(off, "the line is indented with a tab; YAML allows only spaces there")
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
	off := p.docLines.offset(line, 1)
	off += len(p.doc.s[off:]) - len(strings.TrimLeft(p.doc.s[off:], " "))
	p.failAt(off, "not valid YAML: %s", explainYAML(msg))
}

// explainYAML adds the usual cause to a message of the YAML parser.
func explainYAML(msg string) string {
	switch {
	case strings.Contains(msg, "unexpected end of stream"):
		return "a quote that is opened here is never closed"
	case strings.Contains(msg, "mapping values are not allowed"):
		return `": " inside a text begins a map; put the whole text in quotes`
	case strings.Contains(msg, "cannot start any token"):
		return "a text cannot begin with this character; put it in quotes"
	case strings.Contains(msg, "could not find expected ':'"):
		return `this is neither "key: value" nor a part of the line before; check its indentation and the ":"`
	case strings.Contains(msg, "did not find expected key"), strings.Contains(msg, "did not find expected '-' indicator"):
		return msg + "; check the indentation and the quotes of this and the next lines"
	}
	return msg
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
