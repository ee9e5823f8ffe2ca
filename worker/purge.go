package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"kiln/internal/apiclient"
	"kiln/taskspec"
)

// purge executes acr purge, and returns what it prints. What the run may purge is the operator's to say: a task
// file is written by whoever can push to its repository.
func (a *attempt) purge(ctx context.Context, p *taskspec.Purge) (string, error) {
	own := strings.TrimSuffix(strings.TrimPrefix(p.Registry, "https://"), "/")
	switch {
	case own != "" && !a.images.ours(own):
		return "", fmt.Errorf("acr purge: registry %s is not this server's, which alone is purged here; leave out --registry", own)
	case a.w.Purge == nil || a.run.Spec.Restricted:
		return "", errors.New("acr purge: this run may not purge the registry")
	}
	done, err := a.w.Purge(ctx, a.run, apiclient.Purge{Filters: p.Filters, Ago: p.Ago, Keep: p.Keep, Untagged: p.Untagged, DryRun: p.DryRun})
	if err != nil {
		err = fmt.Errorf("acr purge: %w", err)
	}
	return a.purgeText(done), err
}

// purgeText tells of a purge in the words of the command.
func (a *attempt) purgeText(done apiclient.Purged) string {
	var text strings.Builder
	verb, counted := "Deleted", "Number of deleted %s: %d\n"
	if done.DryRun {
		verb, counted = "Would delete", "Number of %s to be deleted: %d\n"
		text.WriteString("DRY RUN: nothing is deleted\n")
	}
	for _, tag := range done.Untagged {
		fmt.Fprintf(&text, "%s: %s/%s\n", verb, a.images.registry, tag)
	}
	for _, m := range done.Manifests {
		for _, tag := range m.Tags {
			fmt.Fprintf(&text, "%s: %s/%s:%s\n", verb, a.images.registry, m.Repository, tag)
		}
		fmt.Fprintf(&text, "%s: %s/%s@%s\n", verb, a.images.registry, m.Repository, m.Digest)
	}
	for _, repository := range done.Refused {
		fmt.Fprintf(&text, "Not purged: %s: this run may not (kiln serve --allow-purge)\n", repository)
	}
	fmt.Fprintf(&text, counted, "tags", done.Tags)
	fmt.Fprintf(&text, counted, "manifests", done.Count)
	fmt.Fprintf(&text, "Kept: %d that are locked, needed or among the newest\n", done.Kept)
	return text.String()
}
