package taskspec

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// maxPlain is the length up to which a reference is understood by plainReference.
const maxPlain = 63

// plainReference understands the references that people write: lower case names, a tag perhaps, nothing
// unusual. It returns the reference with registry and namespace, and whether it has a tag. Not ok means
// that the reference is not of this kind, and may be valid or not.
func plainReference(ref string) (full string, tagged, ok bool) {
	if len(ref) > maxPlain {
		return "", false, false
	}
	name, prefix := ref, ""
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		if tagged = true; !isPlainTag(ref[i+1:]) {
			return "", false, false
		}
		name = ref[:i]
	}
	host, path, more := strings.Cut(name, "/")
	switch {
	case !more:
		path, prefix = host, "docker.io/library/"
	case host == "localhost" || strings.ContainsAny(host, ".:"):
		if !isPlainHost(host) {
			return "", false, false
		}
	default:
		path, prefix = name, "docker.io/"
	}
	for part, rest, more := "", path, true; more; {
		if part, rest, more = strings.Cut(rest, "/"); !isPlainPart(part) {
			return "", false, false
		}
	}
	return prefix + ref, tagged, true
}

func isPlainTag(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlpha(c) && !isDigit(c) && c != '_' && (i == 0 || c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}

// isPlainHost reports whether s is a host name with a port perhaps, and not a name of Docker Hub.
func isPlainHost(s string) bool {
	if strings.HasSuffix(s, "docker.io") {
		return false
	}
	host, port, has := strings.Cut(s, ":")
	for i := range len(port) {
		if !isDigit(port[i]) {
			return false
		}
	}
	return isPlainPart(host) && strings.IndexByte(host, '_') < 0 && (port != "") == has
}

// isPlainPart reports whether s is letters and digits, with single separators between them.
func isPlainPart(s string) bool {
	separated := true
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z' || isDigit(c):
			separated = false
		case (c == '.' || c == '-' || c == '_') && !separated:
			separated = true
		default:
			return false
		}
	}
	return !separated
}

// reference checks an image reference and gives it the tag latest if it has neither tag nor digest.
// The name stays as written: docker.io and library are not added, because a bare name also means an
// image that an earlier step of the run has built.
func (p *parser) reference(at place, property, ref string) string {
	if p.checkReference(at, property, ref) {
		return ref
	}
	return ref + ":latest"
}

// checkReference reports a reference that no registry would take. It returns whether it has a tag or
// digest.
func (p *parser) checkReference(at place, property, ref string) (tagged bool) {
	if _, tagged, ok := plainReference(ref); ok {
		return tagged
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err == nil {
		return !reference.IsNameOnly(named)
	}
	hint := ""
	switch {
	case strings.HasPrefix(ref, "/"):
		hint = "; the part before the first / is empty: is a value or the registry not set?"
	case strings.Contains(ref, "$"), strings.Contains(ref, "{{"):
		hint = "; something in it was not replaced"
	case strings.HasSuffix(ref, ":"):
		hint = "; the tag is empty: is a value not set?"
	}
	p.refuse(at, property, "%q is no image reference: %s%s", p.clip(ref), strings.TrimPrefix(err.Error(), "invalid reference format: "), hint)
	return strings.ContainsAny(ref, ":@")
}

// finishPush checks and normalises the references of a push step.
func (p *parser) finishPush(s *rawStep) {
	seen := make(map[string]bool, len(s.push))
	s.Push = make([]string, 0, len(s.push))
	for _, it := range s.push {
		ref := p.reference(s.at(it.node), "push", it.text)
		if !seen[ref] {
			seen[ref] = true
			s.Push = append(s.Push, ref)
		}
	}
}

func (p *parser) quoteWords(words []string) string {
	quoted := make([]string, 0, len(words))
	for _, w := range words[:min(len(words), 5)] {
		quoted = append(quoted, fmt.Sprintf("%q", p.clip(w)))
	}
	return strings.Join(quoted, " ")
}
