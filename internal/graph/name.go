package graph

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// maxName bounds the length of a reference in bytes.
const maxName = 512

// Aliases are other names of registries: the beginning of a reference, a host or host/path, to what it
// stands for. "server:7070" -> "localhost:7070" is a second name of a registry, "cache.example/hub" ->
// "docker.io" a mirror. The longest that fits counts; they are applied once.
type Aliases map[string]string

// A Name is an image in its canonical form: registry/repository with :tag, @digest or both, such as
// docker.io/library/node:22. Names are compared with ==.
type Name string

// Canonical returns the canonical name of a reference as people write it: node is
// docker.io/library/node:latest.
func Canonical(ref string, aliases Aliases) (Name, error) {
	if len(ref) > maxName {
		return "", fmt.Errorf("the reference %q... has %d bytes, more than %d", ref[:40], len(ref), maxName)
	}
	for _, other := range []string{"index.docker.io/", "registry-1.docker.io/", "registry.hub.docker.com/"} {
		if rest, ok := strings.CutPrefix(ref, other); ok {
			ref = "docker.io/" + rest
		}
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("%q is no image reference: %w", ref, err)
	}
	full := named.String()
	if to, ok := aliases.apply(full); ok {
		if named, err = reference.ParseNormalizedNamed(to); err != nil {
			return "", fmt.Errorf("%q stands for %q, which is no image reference: %w", ref, to, err)
		}
	}
	return Name(reference.TagNameOnly(named).String()), nil
}

// apply replaces the longest alias that a full reference begins with.
func (a Aliases) apply(full string) (string, bool) {
	best := ""
	for from := range a {
		rest, ok := strings.CutPrefix(full, from)
		if ok && from != "" && strings.HasPrefix(rest, "/") && len(from) > len(best) {
			best = from
		}
	}
	if best == "" {
		return "", false
	}
	return strings.TrimSuffix(a[best], "/") + full[len(best):], true
}

// Digest returns the digest that the name is pinned to, or "".
func (n Name) Digest() string {
	_, digest, _ := strings.Cut(string(n), "@")
	return digest
}

// Repository returns the name without tag and digest.
func (n Name) Repository() string {
	s, _, _ := strings.Cut(string(n), "@")
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i]
	}
	return s
}
