package render

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLine bounds the bytes of a line held back until its end; a longer one is broken.
const maxLine = 64 << 10

// A cleaner removes what could take over a terminal: control characters and escape sequences, tab,
// newline, carriage return and colours (SGR) excepted. It remembers a sequence that a chunk cuts.
type cleaner struct {
	seq []byte // an escape sequence so far
}

const maxSeq = 64 // bytes of an escape sequence; a longer one is none

// clean appends what may be shown of b to dst.
func (c *cleaner) clean(dst, b []byte) []byte {
	for _, x := range b {
		switch {
		case len(c.seq) > 0:
			dst = c.sequence(dst, x)
		case x == 0x1b:
			c.seq = append(c.seq[:0], x)
		case x == '\t' || x == '\n' || x == '\r' || x >= ' ' && x != 0x7f:
			dst = append(dst, x)
		}
	}
	return dst
}

// sequence takes the next byte of an escape sequence. See ECMA-48, 5.4: ESC [, parameters and
// intermediates (0x20-0x3f), a final byte (0x40-0x7e). Strings (ESC ], P, X, ^, _) end at BEL or ESC \.
func (c *cleaner) sequence(dst []byte, x byte) []byte {
	second := byte(0)
	if len(c.seq) > 1 {
		second = c.seq[1]
	}
	if len(c.seq) < maxSeq {
		c.seq = append(c.seq, x)
	}
	switch {
	case second == 0:
		if !bytes.ContainsRune([]byte("[]PX^_"), rune(x)) {
			c.seq = c.seq[:0] // two bytes, neither shown
			if x == '\n' {
				dst = append(dst, x)
			}
		}
	case second == '[':
		switch {
		case x >= 0x40 && x <= 0x7e:
			if x == 'm' && len(c.seq) < maxSeq {
				dst = append(dst, c.seq...)
			}
			c.seq = c.seq[:0]
		case x < 0x20:
			c.seq = c.seq[:0] // broken off
			if x == '\n' || x == '\r' {
				dst = append(dst, x)
			}
		}
	case x == 0x07 || x == '\n' || x == 0x9c || x == '\\':
		c.seq = c.seq[:0]
		if x == '\n' {
			dst = append(dst, x)
		}
	}
	return dst
}

// Clean returns what may be shown of s as one line: no control characters, no escape sequences but
// colours, no line breaks.
func Clean(s string) string {
	if !strings.ContainsFunc(s, hidden) {
		return s
	}
	var c cleaner
	return string(visible(c.clean(nil, []byte(s))))
}

func hidden(r rune) bool { return unicode.IsControl(r) || r == utf8.RuneError }

// visible makes a cleaned line valid UTF-8 without C1 controls and line breaks.
func visible(line []byte) []byte {
	return bytes.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r':
			return ' '
		case r >= 0x80 && r < 0xa0:
			return -1
		}
		return r
	}, bytes.ToValidUTF8(line, []byte("\uFFFD")))
}

// A liner turns chunks of output into lines. A carriage return starts a line over, as a progress bar
// means it: only its last state is shown.
type liner struct {
	cleaner
	buf []byte
	cr  bool // a carriage return is waiting for what follows it
}

// write takes a chunk and hands every line that is complete to emit.
func (l *liner) write(b []byte, emit func(string)) {
	for _, x := range l.clean(nil, b) {
		switch {
		case x == '\n':
			l.end(emit)
			continue
		case x == '\r':
			l.cr = true
			continue
		case l.cr:
			l.buf, l.cr = l.buf[:0], false
		}
		if len(l.buf) >= maxLine && utf8.RuneStart(x) {
			l.end(emit)
		}
		l.buf = append(l.buf, x)
	}
}

// end hands over the line as it is.
func (l *liner) end(emit func(string)) {
	emit(string(visible(l.buf)))
	l.buf, l.cr = l.buf[:0], false
}

// flush hands over a line that has no end.
func (l *liner) flush(emit func(string)) {
	if len(l.buf) > 0 {
		l.end(emit)
	}
}
