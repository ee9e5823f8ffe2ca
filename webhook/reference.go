package webhook

import (
	"fmt"
	"regexp"
	"strings"

	"kiln/internal/event"
)

// What the distribution specification allows, and a bound on lengths.
var (
	hostPattern   = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?|\[[0-9a-fA-F:]{2,45}\])(:[0-9]{1,5})?$`)
	namePattern   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestPattern = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)
	// referrerPattern matches the tags that stand in for the referrers of a manifest.
	referrerPattern = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{64,128}(\..+)?$`)
)

const (
	dockerHub     = "docker.io"
	maxRepository = 255
)

func referrerTag(tag string) bool { return referrerPattern.MatchString(tag) }

// splitReference splits an image's reference; without a host it is Docker Hub's. Its parts are not
// checked.
func splitReference(s string) event.RegistryPushed {
	var p event.RegistryPushed
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s, p.Digest, _ = strings.Cut(s, "@")
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		s, p.Tag = s[:i], s[i+1:]
	}
	host, rest, ok := strings.Cut(s, "/")
	switch {
	case ok && (strings.ContainsAny(host, ".:") || host == "localhost"):
		p.Registry, p.Repository = host, rest
	case s == "":
	case !ok:
		p.Registry, p.Repository = dockerHub, "library/"+s
	default:
		p.Registry, p.Repository = dockerHub, s
	}
	return p
}

// complete fills in and checks a push to a registry.
func complete(p *event.RegistryPushed, h Hook) error {
	if h.Registry != "" {
		p.Registry = h.Registry
	}
	if p.Registry == "" {
		return errNoRegistry
	}
	p.Registry = strings.ToLower(p.Registry)
	if p.Registry == "index.docker.io" || p.Registry == "registry-1.docker.io" {
		p.Registry = dockerHub
	}
	for _, part := range []struct {
		name, value string
		ok          bool
	}{
		{"registry", p.Registry, hostPattern.MatchString(p.Registry)},
		{"repository", p.Repository, len(p.Repository) <= maxRepository && namePattern.MatchString(p.Repository)},
		{"tag", p.Tag, tagPattern.MatchString(p.Tag)},
		{"digest", p.Digest, p.Digest == "" || digestPattern.MatchString(p.Digest)},
	} {
		if !part.ok {
			return fmt.Errorf("%q is not a %s", clip(part.value, maxName), part.name)
		}
	}
	p.MediaType, p.Actor = clip(p.MediaType, maxName), clip(p.Actor, maxText)
	return nil
}
