package worker

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"kiln/internal/solve"
	"kiln/taskspec"
)

// caches sets where a build's results are looked for and kept besides on the build daemon.
func (a *attempt) caches(s *taskspec.Step, req *solve.Build) error {
	from, to := s.Build.CacheFrom, s.Build.CacheTo
	if s.Build.Cache {
		if ref := taskspec.CacheRef(s, a.images.registry, a.run.Task); ref != "" {
			from, to = append(slices.Clone(from), ref), append(slices.Clone(to), "type=registry,mode=max,ignore-error=true,ref="+ref)
		}
	}
	for _, option := range from {
		c, err := parseCache(option)
		if err == nil {
			c.Ref, err = a.cachePlace(s, c.Ref, false)
		}
		if err != nil {
			return fmt.Errorf("--cache-from %s: %w", option, err)
		}
		if c.Ref != "" {
			req.CacheFrom = append(req.CacheFrom, c)
		}
	}
	for _, option := range to {
		c, err := parseCache(option)
		inline := c.Ref == ""
		if err == nil && !inline {
			c.Ref, err = a.cachePlace(s, c.Ref, true)
		}
		if err != nil {
			return fmt.Errorf("--cache-to %s: %w", option, err)
		}
		if inline || c.Ref != "" {
			req.CacheTo = append(req.CacheTo, c)
		}
	}
	return nil
}

// cachePlace returns where a cache is, empty if it is not used. Those of the co-located registry are kept
// beside what is staged, where no event tells of them. A restricted run uses none of those, which it could
// read or change for others, and writes no cache at all.
func (a *attempt) cachePlace(s *taskspec.Step, ref string, write bool) (string, error) {
	if ref == "" {
		return "", errors.New("it names no reference of a registry")
	}
	named, err := a.images.canonical(ref)
	if err != nil {
		return "", err
	}
	host := reference.Domain(named)
	ours := a.images.ours(host)
	if a.run.Spec.Restricted && (write || ours) {
		a.logs.say(s.ID, "the cache %s is left out: this run is of a pull request from outside of the repository", ref)
		return "", nil
	}
	if write && !a.declared(host, s.Build.Tags) {
		return "", fmt.Errorf("the run has no login for %s, and its image is not meant for it; add one with kiln task credential add", host)
	}
	if !ours {
		return named.String(), nil
	}
	if built, ok := a.images.find(ref); ok && !write {
		return built.output.Ref, nil // its cache is inline
	}
	tagged, ok := named.(reference.Tagged)
	if !ok {
		return named.String(), nil // one image, whose cache is inline
	}
	return host + "/" + StagingRoot + reference.Path(named) + ":" + tagged.Tag(), nil
}

// declared reports whether the run may write to a registry: the co-located one, one that it has a login for,
// or one that the build's image is meant for.
func (a *attempt) declared(host string, tags []string) bool {
	if user, password := a.credentials(host); user != "" || password != "" {
		return true
	}
	return slices.ContainsFunc(tags, func(tag string) bool {
		ref, err := a.images.canonical(tag)
		return err == nil && reference.Domain(ref) == host
	})
}

// parseCache understands a value of --cache-from or --cache-to.
func parseCache(option string) (solve.Cache, error) {
	if !strings.Contains(option, "=") {
		return solve.Cache{Ref: option}, nil // the old form: an image
	}
	fields, err := parseFields(option)
	if err != nil {
		return solve.Cache{}, err
	}
	if kind := fields["type"]; kind != "registry" && kind != "inline" {
		return solve.Cache{}, fmt.Errorf("type %q is not supported: caches are kept in registries, and no file of a worker outlives its run; write type=registry,ref=... or type=inline", kind)
	}
	c := solve.Cache{Ref: fields["ref"], Max: fields["mode"] == "max", Ignore: fields["ignore-error"] == "true"}
	switch inline := fields["type"] == "inline"; {
	case inline && c.Ref != "":
		return c, errors.New("an inline cache is in the image itself and has no ref")
	case !inline && c.Ref == "":
		return c, errors.New("type=registry needs ref=REGISTRY/REPOSITORY:TAG")
	}
	return c, nil
}
