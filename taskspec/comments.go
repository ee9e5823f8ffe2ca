package taskspec

import "strings"

// stripComments drops the lines whose first non-blank character is "#", so that what stands in a
// comment is neither rendered nor expanded. Lines inside a block scalar are content and stay.
func stripComments(t *text) *text {
	if !strings.Contains(t.s, "#") {
		return t
	}
	var w rewriter
	var block blockScalar
	for off := 0; off < len(t.s); {
		end := off + lineLen(t.s[off:])
		line := t.s[off:end]
		inBlock := block.next(line)
		if inBlock || !strings.HasPrefix(strings.TrimSpace(line), "#") {
			w.copy(line, off)
		}
		off = end
	}
	return w.text(t)
}

// lineLen returns the length of the first line of s, its line break included.
func lineLen(s string) int {
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		return i + 1
	}
	return len(s)
}

// A blockScalar follows a document line by line and knows which lines are the content of a literal
// or folded block scalar. It looks at indentation and indicators only, so it also works on a document
// that is still a template.
type blockScalar struct {
	open   bool
	parent int // column of the key or dash that the scalar belongs to
	indent int // column of the content; -1 until its first line
}

// next takes the next line and reports whether it is content of a block scalar.
func (b *blockScalar) next(line string) bool {
	body := strings.TrimRight(line, " \t\r\n")
	if b.open {
		if body == "" {
			return true
		}
		indent := len(body) - len(strings.TrimLeft(body, " "))
		if b.indent < 0 && indent > b.parent {
			b.indent = indent
		}
		if b.indent >= 0 && indent >= b.indent {
			return true
		}
		b.open = false
	}
	if parent, ok := opensBlockScalar(body); ok {
		*b = blockScalar{open: true, parent: parent, indent: -1}
	}
	return false
}

// opensBlockScalar reports whether a line ends in a block scalar's indicator, and the column of the
// node that the scalar belongs to.
func opensBlockScalar(line string) (parent int, ok bool) {
	if i := strings.Index(line, " #"); i >= 0 {
		line = strings.TrimRight(line[:i], " \t")
	}
	head := strings.TrimRight(line, "+-0123456789")
	if len(line)-len(head) > 2 || head == "" {
		return 0, false
	}
	if c := head[len(head)-1]; c != '|' && c != '>' {
		return 0, false
	}
	head = strings.TrimRight(head[:len(head)-1], " \t")
	col := 0
	for col < len(head) && (head[col] == ' ' || head[col] == '-' && (col+1 == len(head) || head[col+1] == ' ')) {
		if head[col] == '-' {
			parent = col
		}
		col++
	}
	switch {
	case col == len(head): // "- |"
		return parent, col > 0
	case strings.HasSuffix(head, ":"):
		return col, true
	}
	return 0, false
}
