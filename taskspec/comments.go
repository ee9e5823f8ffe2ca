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
		if inBlock || !isComment(line) {
			w.copy(line, off)
		}
		off = end
	}
	return w.text(t)
}

// isComment reports whether the first character of a line that is not blank is "#".
func isComment(line string) bool {
	for i := range len(line) {
		switch line[i] {
		case ' ', '\t', '\r':
		case '#':
			return true
		case '\v', '\f', 0xc2, 0xe1, 0xe2, 0xe3: // perhaps another blank
			return strings.HasPrefix(strings.TrimSpace(line[i:]), "#")
		default:
			return false
		}
	}
	return false
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
	b.opens(body)
	return false
}

// opens begins a block scalar if a line ends in its indicator.
func (b *blockScalar) opens(line string) {
	if strings.IndexByte(line, '|') < 0 && strings.IndexByte(line, '>') < 0 {
		return
	}
	if i := strings.Index(line, " #"); i >= 0 {
		line = strings.TrimRight(line[:i], " \t")
	}
	head := strings.TrimRight(line, "+-123456789")
	modifiers := line[len(head):]
	if len(modifiers) > 2 || head == "" {
		return
	}
	if c := head[len(head)-1]; c != '|' && c != '>' {
		return
	}
	head = strings.TrimRight(head[:len(head)-1], " \t")
	for { // a tag and an anchor may stand between the key and the indicator
		i := strings.LastIndexByte(head, ' ')
		if i < 0 || i+1 == len(head) || head[i+1] != '&' && head[i+1] != '!' {
			break
		}
		head = strings.TrimRight(head[:i], " \t")
	}
	if parent, ok := scalarParent(head); ok {
		*b = blockScalar{open: true, parent: parent, indent: -1}
		if i := strings.IndexAny(modifiers, "123456789"); i >= 0 {
			b.indent = parent + int(modifiers[i]-'0')
		}
	}
}

// scalarParent returns the column of the key or dash at the end of head, which a block scalar belongs to.
func scalarParent(head string) (parent int, ok bool) {
	col := 0
	for col < len(head) && (head[col] == ' ' || head[col] == '-' && (col+1 == len(head) || head[col+1] == ' ')) {
		if head[col] == '-' {
			parent = col
		}
		col++
	}
	if col == len(head) { // "- |"
		return parent, col > 0
	}
	return col, strings.HasSuffix(head, ":")
}
