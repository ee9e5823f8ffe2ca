package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
)

var (
	errCut    = errors.New("JSON ends early")
	errSyntax = errors.New("not JSON")
	errType   = errors.New("a value of another type than documented")
)

// A parser moves through one JSON value. After an error it does not move.
type parser struct {
	src []byte
	// all is src as one string, which decoded strings are parts of; empty if src is large.
	all string
	pos int
	err error
}

// sharedText is the size up to which the strings of a body share one copy of it.
const sharedText = 64 << 10

func newParser(src []byte) parser {
	p := parser{src: src}
	if len(src) <= sharedText {
		p.all = string(src)
	}
	return p
}

// fail notes an error, unless there is one.
func (p *parser) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// next skips white space and returns the byte there; zero after an error, which the end is.
func (p *parser) next() byte {
	for ; p.err == nil && p.pos < len(p.src); p.pos++ {
		switch c := p.src[p.pos]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	p.fail(errCut)
	return 0
}

// end checks that nothing follows the value.
func (p *parser) end() {
	if len(bytes.TrimLeft(p.src[p.pos:], " \t\r\n")) > 0 {
		p.fail(errSyntax)
	}
}

// open moves behind the bracket that a compound value must begin with.
func (p *parser) open(bracket byte) bool {
	if p.next() != bracket {
		p.fail(errType)
		return false
	}
	p.pos++
	return true
}

// close moves behind a closing bracket, if there is one.
func (p *parser) close(bracket byte) bool {
	if p.next() != bracket {
		return false
	}
	p.pos++
	return true
}

// comma moves behind what follows a member: a comma, and then there are more, or the closing bracket.
func (p *parser) comma(bracket byte) (more bool) {
	switch p.next() {
	case ',':
		p.pos++
		return true
	case bracket:
		p.pos++
	default:
		p.fail(errSyntax)
	}
	return false
}

func (p *parser) literal(word string) {
	if !bytes.HasPrefix(p.src[p.pos:], []byte(word)) {
		p.fail(errType)
		return
	}
	p.pos += len(word)
}

// text decodes the string that must begin here.
func (p *parser) text() string {
	if p.src[p.pos] != '"' {
		p.fail(errType)
		return ""
	}
	from := p.pos
	p.skipString()
	if p.err != nil {
		return ""
	}
	raw := p.src[from:p.pos]
	for _, c := range raw {
		if c < ' ' || c == '\\' || c >= 0x80 {
			var s string
			if json.Unmarshal(raw, &s) != nil {
				p.fail(errSyntax)
			}
			return s
		}
	}
	if p.all != "" {
		return p.all[from+1 : p.pos-1]
	}
	return string(raw[1 : len(raw)-1])
}

// skip moves behind the value that begins here. Of a compound value it looks at nesting and strings.
func (p *parser) skip() {
	if p.err != nil {
		return
	}
	switch p.src[p.pos] {
	case '"':
		p.skipString()
	case '{', '[':
		p.skipNested()
	case '}', ']', ',', ':':
		p.fail(errSyntax)
	default:
		for p.pos < len(p.src) && strings.IndexByte(" \t\r\n,:]}", p.src[p.pos]) < 0 {
			p.pos++
		}
	}
}

func (p *parser) skipNested() {
	for depth := 0; p.pos < len(p.src); {
		switch p.src[p.pos] {
		case '"':
			if p.skipString(); p.err != nil {
				return
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		p.pos++
		if depth == 0 {
			return
		}
	}
	p.fail(errCut)
}

// skipString moves behind the string that begins here.
func (p *parser) skipString() {
	for i := p.pos + 1; ; {
		n := bytes.IndexByte(p.src[i:], '"')
		if n < 0 {
			p.fail(errCut)
			return
		}
		i += n
		slashes := 0
		for p.src[i-1-slashes] == '\\' {
			slashes++ // ends at the opening quote at the latest
		}
		i++
		if slashes%2 == 0 {
			p.pos = i
			return
		}
	}
}
