package taskspec

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// reference checks an image reference and gives it the tag latest if it has neither tag nor digest.
// The name stays as written: docker.io and library are not added, because a bare name also means an
// image that an earlier step of the run has built.
func (p *parser) reference(at place, property, ref string) (string, bool) {
	named, ok := p.checkReference(at, property, ref)
	if ok && reference.IsNameOnly(named) {
		return ref + ":latest", true
	}
	return ref, ok
}

// checkReference reports a reference that no registry would take.
func (p *parser) checkReference(at place, property, ref string) (reference.Named, bool) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err == nil {
		return named, true
	}
	hint := ""
	switch {
	case strings.HasPrefix(ref, "/"):
		hint = "; the part before the first / is empty: is a value or the registry not set?"
	case strings.HasSuffix(ref, ":"):
		hint = "; the tag is empty: is a value not set?"
	}
	p.errorf(at, property, "%q is no image reference: %s%s", p.clip(ref), strings.TrimPrefix(err.Error(), "invalid reference format: "), hint)
	return nil, false
}

// finishPush checks and normalises the references of a push step.
func (p *parser) finishPush(s *rawStep) {
	seen := make(map[string]bool, len(s.push))
	s.Push = make([]string, 0, len(s.push))
	for _, it := range s.push {
		named, ok := p.checkReference(s.at(it.node), "push", it.text)
		if !ok {
			continue
		}
		ref, full := it.text, named.String()
		if reference.IsNameOnly(named) {
			ref, full = ref+":latest", full+":latest"
		}
		if !seen[full] {
			seen[full] = true
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
