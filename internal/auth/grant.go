package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"kiln/internal/event"
)

// own is how the names of kiln's own repositories begin. A pattern that is less than that does not stand
// for them: who may read everything reads no uploaded sources.
const own = "kiln/"

// Bounds of what one token may have.
const (
	maxGrants  = 64
	maxPattern = 255 // bytes, as of a repository's name
)

// sets are short for the permissions that belong together.
var sets = map[event.Permission][]event.Permission{
	"pull": {event.ContentRead, event.MetadataRead},
	"push": {event.ContentRead, event.ContentWrite, event.MetadataRead},
	"all":  event.Permissions(),
}

// ParseGrant reads PATTERN=PERMISSION,...: a repository, or the beginning of names with a "*" or "/" at
// its end, and permissions, or pull, push or all.
func ParseGrant(s string) (event.Grant, error) {
	pattern, list, ok := strings.Cut(s, "=")
	if !ok {
		return event.Grant{}, fmt.Errorf("%q: want REPOSITORY=PERMISSION,..., such as 'team/*=content/read,content/write'", s)
	}
	g := event.Grant{Repository: pattern}
	for p := range strings.SplitSeq(list, ",") {
		g.Permissions = append(g.Permissions, event.Permission(strings.TrimSpace(p)))
	}
	return Normalize(g)
}

// Normalize returns a grant as it is stored: sets written out, each permission once, in order. It refuses
// one that means nothing.
func Normalize(g event.Grant) (event.Grant, error) {
	pattern, err := normalPattern(g.Repository)
	if err != nil {
		return g, err
	}
	var has []event.Permission
	for _, p := range g.Permissions {
		switch set, ok := sets[p]; {
		case ok:
			has = append(has, set...)
		case slices.Contains(event.Permissions(), p):
			has = append(has, p)
		default:
			return g, fmt.Errorf("%s: %q is no permission: want some of %s, or pull, push or all", pattern, p, words(event.Permissions()))
		}
	}
	if len(has) == 0 {
		return g, fmt.Errorf("%s: no permission: want some of %s, or pull, push or all", pattern, words(event.Permissions()))
	}
	return event.Grant{Repository: pattern, Permissions: inOrder(has)}, nil
}

// NormalizeAll is Normalize of all grants of a token.
func NormalizeAll(grants []event.Grant) ([]event.Grant, error) {
	if len(grants) == 0 || len(grants) > maxGrants {
		return nil, fmt.Errorf("%d repositories or patterns, want 1 to %d", len(grants), maxGrants)
	}
	out := make([]event.Grant, len(grants))
	var errs []error
	for i, g := range grants {
		var err error
		out[i], err = Normalize(g)
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// AnonymousPull is what everybody may do if the repositories below each of the prefixes, and one of that
// very name, are for everybody to pull. A prefix may also be a pattern that ends in "*" or "/".
func AnonymousPull(prefixes []string) ([]event.Grant, error) {
	var grants []event.Grant
	for _, p := range prefixes {
		patterns := []string{p}
		if !strings.HasSuffix(p, "*") && !strings.HasSuffix(p, "/") {
			patterns = append(patterns, p+"/")
		}
		for _, pattern := range patterns {
			g, err := Normalize(event.Grant{Repository: pattern, Permissions: sets["pull"]})
			if err != nil {
				return nil, err
			}
			grants = append(grants, g)
		}
	}
	return grants, nil
}

// normalPattern checks a pattern, and writes a prefix that ends in a slash with a star behind.
func normalPattern(s string) (string, error) {
	pattern := s
	if strings.HasSuffix(pattern, "/") {
		pattern += "*"
	}
	name := pattern
	if prefix, open := strings.CutSuffix(pattern, "*"); open {
		name = prefix + "x" // any name that begins so has to be one
	}
	n, err := reference.WithName("registry.invalid/" + name)
	switch {
	case len(s) > maxPattern:
		return "", fmt.Errorf("repository %.40q...: longer than %d bytes", s, maxPattern)
	case err != nil || reference.Path(n) != name:
		return "", fmt.Errorf("%q is no repository: want lower-case letters, digits and . _ - in components separated by /, and at most one * at the end", s)
	case strings.HasPrefix(name, own):
		return "", fmt.Errorf("%s: repositories below %s are kiln's own", s, own)
	}
	return pattern, nil
}

// covers reports whether a pattern stands for a repository.
func covers(pattern, repository string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	if !open {
		return pattern == repository
	}
	return strings.HasPrefix(repository, prefix) && (!strings.HasPrefix(repository, own) || strings.HasPrefix(prefix, own))
}

// allowed reports whether one of the grants has the permission for the repository.
func allowed(grants []event.Grant, p event.Permission, repository string) bool {
	return slices.ContainsFunc(grants, func(g event.Grant) bool {
		return covers(g.Repository, repository) && slices.Contains(g.Permissions, p)
	})
}

// inOrder returns each permission of the list once, in the order of event.Permissions.
func inOrder(list []event.Permission) []event.Permission {
	var out []event.Permission
	for _, p := range event.Permissions() {
		if slices.Contains(list, p) {
			out = append(out, p)
		}
	}
	return out
}

func words(list []event.Permission) string {
	var b strings.Builder
	for i, p := range list {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(p))
	}
	return b.String()
}
