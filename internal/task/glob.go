package task

import (
	"fmt"
	"strings"
)

// Globs are patterns of names with / between their parts. In a part, * stands for any text and ? for one
// character; a part ** stands for any number of parts; a pattern that ends in / means all below it. A name
// matches if it matches a pattern and none that begins with !. If all begin with !, everything else matches.
type Globs []string

// maxGlob bounds the length of a pattern in bytes.
const maxGlob = 256

// Match reports whether a name matches. No patterns match nothing.
func (g Globs) Match(name string) bool {
	matched, positive := false, false
	for _, p := range g {
		if not, ok := strings.CutPrefix(p, "!"); ok {
			if matchGlob(not, name) {
				return false
			}
			continue
		}
		positive = true
		matched = matched || matchGlob(p, name)
	}
	return matched || !positive && len(g) > 0
}

// MatchAny reports whether one of the names matches.
func (g Globs) MatchAny(names []string) bool {
	for _, n := range names {
		if g.Match(n) {
			return true
		}
	}
	return false
}

// matchGlob compares part by part. It goes back to the last ** only, so the time is bounded by the
// product of the lengths.
func matchGlob(pattern, name string) bool {
	if strings.HasSuffix(pattern, "/") {
		pattern += "**"
	}
	parts, names := strings.Split(pattern, "/"), strings.Split(name, "/")
	p, n, star, from := 0, 0, -1, 0
	for n < len(names) {
		switch {
		case p < len(parts) && parts[p] == "**":
			star, from = p, n
			p++
		case p < len(parts) && matchPart(parts[p], names[n]):
			p++
			n++
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	for p < len(parts) && parts[p] == "**" {
		p++
	}
	return p == len(parts)
}

// matchPart compares one part, in the same way.
func matchPart(pattern, name string) bool {
	ps, ns := []rune(pattern), []rune(name)
	p, n, star, from := 0, 0, -1, 0
	for n < len(ns) {
		switch {
		case p < len(ps) && ps[p] == '*':
			star, from = p, n
			p++
		case p < len(ps) && (ps[p] == '?' || ps[p] == ns[n]):
			p++
			n++
		case star >= 0:
			from++
			p, n = star+1, from
		default:
			return false
		}
	}
	for p < len(ps) && ps[p] == '*' {
		p++
	}
	return p == len(ps)
}

// checkGlob says what is wrong with a pattern.
func checkGlob(p string) error {
	body := strings.TrimPrefix(p, "!")
	switch {
	case body == "":
		return fmt.Errorf("the pattern is empty")
	case len(p) > maxGlob:
		return fmt.Errorf("the pattern has %d bytes, more than %d", len(p), maxGlob)
	case strings.HasPrefix(body, "/") || strings.HasPrefix(body, "./"):
		return fmt.Errorf("%q: patterns begin at the top, without / or ./", p)
	case strings.ContainsAny(body, "[]{}\\"):
		return fmt.Errorf("%q: only *, ? and ** are special; write several patterns instead of [], {} or \\", p)
	}
	for part := range strings.SplitSeq(body, "/") {
		if strings.Contains(part, "**") && part != "**" {
			return fmt.Errorf("%q: ** must stand alone between slashes", p)
		}
	}
	return nil
}
