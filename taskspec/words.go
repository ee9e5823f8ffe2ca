package taskspec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A wordError says why a command string cannot be split into words.
type wordError struct {
	what, advice string
	s            string // the command
	pos          int    // where in it
}

// Error returns the message with the text around the place.
func (e *wordError) Error() string {
	from, to := max(0, e.pos-12), min(len(e.s), e.pos+20)
	return fmt.Sprintf("%s at %q%s", e.what, strings.ToValidUTF8(e.s[from:to], ""), e.advice)
}

// words is what a command string splits into.
type words struct {
	list  []string
	unset []string // names of shell variables that were written, and expand to nothing
	globs bool     // an unquoted * stands in it, and stays as it is
}

// splitWords splits a command string as a POSIX shell does that has no variables: quotes, escapes,
// line continuations and comments work, $NAME expands to nothing, globs stay as written. What would
// need a shell on the worker (control operators, redirections, substitutions, a second line) is an error.
func splitWords(s string) (words, error) { return splitLiteral(s, 0) }

// splitLiteral is splitWords, except that $NAME stays as it is in the first literal bytes.
func splitLiteral(s string, literal int) (words, error) {
	sp := splitter{s: s, literal: literal}
	err := sp.split()
	return sp.out, err
}

// unquote removes the shell quoting of one K=V entry. Without quotes or escapes the entry is taken
// literally; with them, operators are still ordinary characters.
func unquote(s string) (string, error) {
	if !strings.ContainsAny(s, `'"\`) {
		return s, nil
	}
	sp := splitter{s: s, lenient: true}
	if err := sp.split(); err != nil {
		return "", err
	}
	if len(sp.out.list) != 1 {
		return "", errManyWords
	}
	return sp.out.list[0], nil
}

var errManyWords = errors.New("there is a blank outside the quotes; put quotes around the whole value: NAME='some value'")

// A splitter is the state of one pass over a command string.
type splitter struct {
	s       string
	pos     int
	lenient bool // nothing but quotes and escapes is special
	literal int  // up to where $NAME is kept
	out     words
	word    []byte
	inWord  bool
	ended   bool // a line break has ended the command
}

func (p *splitter) split() error {
	p.out.list = make([]string, 0, min(1+strings.Count(p.s, " "), maxWords))
	for p.pos < len(p.s) {
		if err := p.next(); err != nil {
			return err
		}
		if len(p.out.list) > maxWords {
			return fmt.Errorf("a command has at most %d words", maxWords)
		}
	}
	p.endWord()
	return nil
}

// next consumes one blank, quoted part or character outside of quotes.
func (p *splitter) next() error {
	c := p.s[p.pos]
	switch c {
	case ' ', '\t', '\r':
		p.endWord()
		p.pos++
		return nil
	case '\n':
		p.endWord()
		p.ended = len(p.out.list) > 0 && !p.lenient
		p.pos++
		return nil
	case '#':
		if !p.inWord && !p.lenient {
			p.skipComment()
			return nil
		}
	case '\\':
		if strings.HasPrefix(p.s[p.pos+1:], "\n") || strings.HasPrefix(p.s[p.pos+1:], "\r\n") {
			p.pos += 1 + lineLen(p.s[p.pos+1:])
			return nil
		}
	}
	if p.ended {
		return p.fail("a second command line begins", `; a step is one command: end the line before with \, fold the lines with >, or run a shell in the image: bash -c '...'`)
	}
	return p.nextInWord(c)
}

func (p *splitter) nextInWord(c byte) error {
	switch {
	case c == '\\':
		p.inWord = true
		if p.pos+1 == len(p.s) {
			p.add('\\')
			p.pos++
			return nil
		}
		p.add(p.s[p.pos+1])
		p.pos += 2
		return nil
	case c == '\'':
		return p.single()
	case c == '"':
		return p.double()
	case p.lenient:
	case c == '$' || c == '`':
		return p.dollar()
	case strings.IndexByte(";&|<>()", c) >= 0:
		return p.operator()
	case c == '*':
		p.out.globs = true
	}
	p.add(c)
	p.pos++
	return nil
}

func (p *splitter) skipComment() {
	for p.pos < len(p.s) && p.s[p.pos] != '\n' {
		p.pos++
	}
}

func (p *splitter) add(c byte) {
	p.word = append(p.word, c)
	p.inWord = true
}

func (p *splitter) endWord() {
	if p.inWord {
		p.out.list = append(p.out.list, string(p.word))
	}
	p.word, p.inWord = p.word[:0], false
}

// single consumes a part in single quotes, in which everything is literal.
func (p *splitter) single() error {
	end := strings.IndexByte(p.s[p.pos+1:], '\'')
	if end < 0 {
		return p.unterminated("'")
	}
	p.word = append(p.word, p.s[p.pos+1:p.pos+1+end]...)
	p.inWord = true
	p.pos += end + 2
	return nil
}

// double consumes a part in double quotes, in which \ and $ keep some of their meaning.
func (p *splitter) double() error {
	start := p.pos
	p.inWord = true
	for p.pos++; p.pos < len(p.s); {
		switch c := p.s[p.pos]; {
		case c == '"':
			p.pos++
			return nil
		case c == '\\' && p.pos+1 < len(p.s) && strings.IndexByte("$`\"\\\n", p.s[p.pos+1]) >= 0:
			if p.s[p.pos+1] != '\n' {
				p.add(p.s[p.pos+1])
			}
			p.pos += 2
		case (c == '$' || c == '`') && !p.lenient:
			if err := p.dollar(); err != nil {
				return err
			}
		default:
			p.add(c)
			p.pos++
		}
	}
	p.pos = start
	return p.unterminated(`"`)
}

// dollar consumes an expansion. No variable is set, so it expands to nothing.
func (p *splitter) dollar() error {
	rest := p.s[p.pos:]
	if rest[0] == '`' || strings.HasPrefix(rest, "$(") {
		return p.fail("command substitution", ": no shell runs on the worker; to run it in the image, put the script in single quotes: bash -c 'echo $(date)'")
	}
	switch n := nameLen(rest[1:]); {
	case p.pos < p.literal:
		p.add('$')
		p.pos++
	case n > 0:
		p.unset(rest[1 : 1+n])
		p.pos += 1 + n
	case strings.HasPrefix(rest, "${"):
		n := nameLen(rest[2:])
		if n == 0 || !strings.HasPrefix(rest[2+n:], "}") {
			return p.fail("parameter expansion", keepForShell)
		}
		p.unset(rest[2 : 2+n])
		p.pos += 3 + n
	case len(rest) > 1 && (isDigit(rest[1]) && rest[1] != '0' || rest[1] == '@' || rest[1] == '*'):
		p.unset(rest[1:2])
		p.pos += 2
	case len(rest) > 1 && strings.IndexByte("#?-$!0", rest[1]) >= 0:
		return p.fail("shell parameter", keepForShell)
	default:
		p.add('$')
		p.pos++
	}
	return nil
}

func (p *splitter) unset(name string) {
	const most = 20 // to warn of
	if len(p.out.unset) < most && !slices.Contains(p.out.unset, name) {
		p.out.unset = append(p.out.unset, name)
	}
}

// nameLen returns the length of the shell variable name that s begins with.
func nameLen(s string) int {
	n := 0
	for n < len(s) && (s[n] == '_' || isAlpha(s[n]) || n > 0 && isDigit(s[n])) {
		n++
	}
	return n
}

func isAlpha(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func (p *splitter) operator() error {
	op := p.s[p.pos : p.pos+1]
	for _, long := range []string{"&&", "||", ">>", "<<", ";;"} {
		if strings.HasPrefix(p.s[p.pos:], long) {
			op = long
		}
	}
	return p.fail(fmt.Sprintf("unquoted %q", op), fmt.Sprintf(": no shell runs on the worker; quote it to pass it on ('%s'), or run a shell in the image: bash -c 'a %s b'", op, op))
}

func (p *splitter) unterminated(quote string) error {
	return p.fail("the quote "+quote, " is not closed")
}

const keepForShell = ": no shell runs on the worker; put it in single quotes to keep it for a shell in the image"

func (p *splitter) fail(what, advice string) error {
	return &wordError{what: what, advice: advice, s: p.s, pos: p.pos}
}
