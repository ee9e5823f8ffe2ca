package worker

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/distribution/reference"

	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/taskspec"
)

// checkPushes refuses a task that says that it pushes to where its author may not. What it calls the registry by
// another name is seen when it is published.
func checkPushes(t *taskspec.Task, l *run.Limits, host string) error {
	if t == nil || l == nil {
		return nil
	}
	for _, s := range t.Steps {
		for _, name := range s.Push {
			ref, err := reference.ParseNormalizedNamed(name)
			if err != nil || reference.Domain(ref) != host {
				continue
			}
			if err := l.MayPush(reference.Path(ref)); err != nil {
				return fmt.Errorf("step %s: %w", s.ID, err)
			}
		}
	}
	return nil
}

// CheckTags refuses, with an error that wraps run.ErrLimit, a publication in a repository that is not the author's to
// push to, or of an image that is not its to read, whatever the names were made of.
func CheckTags(l *run.Limits, tags []registry.Tag) error {
	for _, tag := range tags {
		err := l.MayPush(tag.Repository)
		if err == nil && tag.Source != "" && !strings.HasPrefix(tag.Source, StagingRoot) {
			err = l.MayPull(tag.Source)
		}
		if err != nil {
			return fmt.Errorf("tag %s:%s: %w", tag.Repository, tag.Tag, err)
		}
	}
	return nil
}

// limitVault refuses the secret at a location, https://VAULT/secrets/NAME, that is not the author's to use.
func limitVault(l *run.Limits, location string) error {
	u, err := url.Parse(location)
	if err != nil {
		return fmt.Errorf("%q is no URL of a secret", location)
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if len(parts) < 2 {
		return fmt.Errorf("%s does not name a secret", location)
	}
	return l.MayUse(parts[1])
}
