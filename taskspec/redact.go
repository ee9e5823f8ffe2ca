package taskspec

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// minPiece is how long a part of a secret value must be to be hidden on its own.
const minPiece = 6

// redact replaces secret values in a text, and the words of those that have several. It must see the
// text before it is shortened.
func (p *parser) redact(s string) string {
	if len(p.secrets)+len(p.opt.Redact) == 0 {
		return s
	}
	if p.hidden == nil {
		p.hidden = p.hiddenTexts()
	}
	for _, v := range p.hidden {
		s = strings.ReplaceAll(s, v, "***")
	}
	return s
}

// hiddenTexts returns what must not be shown, the longest first.
func (p *parser) hiddenTexts() []string {
	list := []string{}
	add := func(value string) {
		quoted := strconv.Quote(value)
		list = append(list, value, quoted[1:len(quoted)-1])
		for _, piece := range strings.FieldsFunc(value, isSeparator) {
			if len(piece) >= minPiece {
				list = append(list, piece)
			}
		}
	}
	for _, v := range p.secrets {
		add(v)
	}
	for _, v := range p.opt.Redact {
		add(v)
	}
	slices.SortFunc(list, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	list = slices.Compact(list)
	return slices.DeleteFunc(list, func(s string) bool { return s == "" })
}

// isSeparator reports whether a command or YAML text is split at a character.
func isSeparator(r rune) bool {
	return unicode.IsSpace(r) || strings.ContainsRune("'\"\\;&|<>()`$#,[]{}", r)
}
