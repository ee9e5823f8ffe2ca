package taskspec

import (
	"sort"
	"strings"
	"unicode/utf8"
)

// A text is the document after some stage, with the way back to the stage before.
type text struct {
	s     string
	prev  *text  // what it was made from; nil for the author's source
	spans []span // by ascending out; empty when prev has the same bytes
}

// A span says where the bytes from out up to the next span came from: copied from src on, or made in
// place of what is at src.
type span struct {
	out, src int
	copied   bool
}

// origin returns the offset in the author's source of the byte at off.
func (t *text) origin(off int) int {
	for ; t.prev != nil; t = t.prev {
		i := sort.Search(len(t.spans), func(i int) bool { return t.spans[i].out > off }) - 1
		if i < 0 {
			continue
		}
		sp := t.spans[i]
		if sp.copied {
			off = sp.src + off - sp.out
		} else {
			off = sp.src
		}
	}
	return off
}

// source returns the author's text.
func (t *text) source() string {
	for t.prev != nil {
		t = t.prev
	}
	return t.s
}

// A rewriter makes the next stage's text.
type rewriter struct {
	b     strings.Builder
	spans []span
}

// copy appends s, which stands at src in the text before.
func (w *rewriter) copy(s string, src int) {
	if s == "" {
		return
	}
	out := w.b.Len()
	if n := len(w.spans); n == 0 || !w.spans[n-1].copied || w.spans[n-1].src+out-w.spans[n-1].out != src {
		w.spans = append(w.spans, span{out, src, true})
	}
	w.b.WriteString(s)
}

// insert appends s, which replaces something at src in the text before.
func (w *rewriter) insert(s string, src int) {
	if s == "" {
		return
	}
	w.spans = append(w.spans, span{w.b.Len(), src, false})
	w.b.WriteString(s)
}

// text returns what was written as the successor of prev.
func (w *rewriter) text(prev *text) *text {
	return &text{s: w.b.String(), prev: prev, spans: w.spans}
}

// A lineIndex finds offsets by line and lines by offset.
type lineIndex struct {
	s      string
	starts []int                        // offset of each line
	last   struct{ line, col, off int } // what offset found last; columns of one line are asked for in order
}

// indexLines splits s at \n and \r\n, the way an editor counts.
func indexLines(s string) *lineIndex {
	x := &lineIndex{s: s, starts: make([]int, 1, 1+strings.Count(s, "\n"))}
	for i := 0; ; {
		n := strings.IndexByte(s[i:], '\n')
		if n < 0 {
			return x
		}
		i += n + 1
		x.starts = append(x.starts, i)
	}
}

// indexYAMLLines splits s at every line break YAML knows, the way yaml.v3 counts.
func indexYAMLLines(s string) *lineIndex {
	if strings.IndexByte(s, '\r') < 0 && !strings.Contains(s, "\u0085") && !strings.Contains(s, "\u2028") && !strings.Contains(s, "\u2029") {
		return indexLines(s)
	}
	x := &lineIndex{s: s, starts: []int{0}}
	for i, r := range s {
		switch r {
		case '\r':
			if i+1 < len(s) && s[i+1] == '\n' {
				continue
			}
			x.starts = append(x.starts, i+1)
		case '\n', '\u0085', '\u2028', '\u2029':
			x.starts = append(x.starts, i+utf8.RuneLen(r))
		}
	}
	return x
}

// offset returns the offset of a 1-based line and column, the column counted in characters.
func (x *lineIndex) offset(line, col int) int {
	if line < 1 {
		return 0
	}
	if line > len(x.starts) {
		return len(x.s)
	}
	at := x.last
	if at.line != line || at.col > col {
		at.line, at.col, at.off = line, 1, x.starts[line-1]
	}
	for ; at.col < col && at.off < len(x.s) && x.s[at.off] != '\n'; at.col++ {
		_, n := utf8.DecodeRuneInString(x.s[at.off:])
		at.off += n
	}
	x.last = at
	return at.off
}

// line returns the 1-based line of an offset.
func (x *lineIndex) line(off int) int { return sort.SearchInts(x.starts, off+1) }

// position returns the 1-based line and column of an offset.
func (x *lineIndex) position(off int) (line, col int) {
	off = max(0, min(off, len(x.s)))
	line = x.line(off)
	start := x.starts[line-1]
	return line, 1 + utf8.RuneCountInString(strings.TrimPrefix(x.s[start:off], "\ufeff"))
}
