package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kiln/internal/apiclient"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/source"
	"kiln/internal/store"
	"kiln/taskspec"
)

const (
	tidyEvery = time.Hour
)

func newGCCommand(c *cli) *cobra.Command {
	var dryRun bool
	f := newImageFlags()
	cmd := &cobra.Command{
		Use:   "gc [flags]",
		Short: "Free the space of what nothing in the registry refers to",
		Long: "Collect the garbage of the registry now; the server does so every hour by itself. Pushes, pulls and runs go\n" +
			"on. It takes blobs that no manifest needs, what runs have staged and no run needs any more, build caches\n" +
			"and uploaded contexts that were not used for long, and what is said about manifests that are gone. What was\n" +
			"uploaded in the last 24 hours stays. If it is interrupted, the next collection goes on.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			got, err := client.Collect(cmd.Context(), dryRun)
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(got)
			}
			verb, went := "freed", "went"
			if got.DryRun {
				verb, went = "would be freed", "would go"
			}
			fmt.Fprintf(c.Out, "%s in %s %s; %s, %s, %s and %s %s\n", sizeText(got.Freed), count(got.Blobs, "blob"), verb,
				count(got.Staged, "staged manifest"), count(got.Caches, "build cache"), count(got.Contexts, "context"), count(got.Referrers, "referrer"), went)
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would be freed")
	return cmd
}

func newPurgeCommand(c *cli) *cobra.Command {
	var p apiclient.Purge
	f := newImageFlags()
	cmd := &cobra.Command{
		Use:   "purge --filter REPOSITORY:TAG [flags]",
		Short: "Delete old tags and untagged manifests",
		Long: "Delete the tags that one of the filters matches and that have not moved for the time of --ago. Both parts of\n" +
			"a filter are regular expressions: that of the repository matches its whole name, that of the tag a part of\n" +
			"it. What is locked, what a task is built on now and what a run needs stays.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(p.Filters) == 0 {
				return usagef("kiln purge --filter 'REPOSITORY:.*' --dry-run", "--filter is missing")
			}
			if err := registry.CheckPurge(p); err != nil {
				return &usageError{err: err}
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			done, err := client.Purge(cmd.Context(), p)
			switch {
			case err != nil:
				return err
			case f.output.json():
				return c.printJSON(done)
			}
			for _, t := range done.Untagged {
				fmt.Fprintf(c.Out, "%s  (the tag alone)\n", t)
			}
			c.printDeletion(done.Deletion)
			fmt.Fprintf(c.Out, "%d kept: locked, needed or among the newest\n", done.Kept)
			return nil
		},
	}
	purgeFlags(cmd.Flags(), &p)
	return f.add(cmd)
}

// purgeFlags adds the flags that say what to purge.
func purgeFlags(f *pflag.FlagSet, p *apiclient.Purge) {
	p.Ago = taskspec.DefaultPurgeAge
	f.SortFlags = false
	f.StringArrayVar(&p.Filters, "filter", nil, "`REPOSITORY:TAG` to purge, such as 'app:^pr-'; may be repeated")
	f.Var((*agoFlag)(&p.Ago), "ago", "how long ago the tag must have moved last")
	f.IntVar(&p.Keep, "keep", 0, "keep so many of the tags that would be deleted in a repository: the newest")
	f.BoolVar(&p.Untagged, "untagged", false, "also delete manifests that neither a tag nor an index names")
	f.BoolVar(&p.DryRun, "dry-run", false, "only tell what would be deleted")
}

// An agoFlag is a duration that may have days: 30d, 1d3h6m.
type agoFlag time.Duration

// Set implements pflag.Value.
func (a *agoFlag) Set(s string) error {
	d, err := taskspec.ParseAge(s)
	if err != nil {
		return err
	}
	*a = agoFlag(d)
	return nil
}

// String implements pflag.Value.
func (a *agoFlag) String() string { return (*keepAge)(a).String() }

// Type implements pflag.Value.
func (a *agoFlag) Type() string { return "AGE" }

// parseRetention reads a value of --retention: the flags of kiln purge.
func parseRetention(s string) (apiclient.Purge, error) {
	var p apiclient.Purge
	f := pflag.NewFlagSet("retention", pflag.ContinueOnError)
	f.Usage = func() {}
	purgeFlags(f, &p)
	err := f.Parse(strings.Fields(s))
	switch {
	case err != nil:
	case f.NArg() > 0:
		err = fmt.Errorf("unexpected %q", f.Arg(0))
	default:
		err = registry.CheckPurge(p)
	}
	if err != nil {
		err = fmt.Errorf("--retention %q: %w; want flags of kiln purge, such as --retention '--filter app:^pr- --ago 30d'", s, err)
	}
	return p, err
}

// collect frees space in the registry.
func (n *node) collect(ctx context.Context, dryRun bool) (apiclient.Collected, error) {
	return n.registry.Collect(ctx, registry.Collection{DryRun: dryRun, Contexts: n.neededContexts})
}

// purge deletes old images of the registry.
func (n *node) purge(ctx context.Context, p apiclient.Purge) (apiclient.Purged, error) {
	needed, err := n.neededImages(ctx)
	if err != nil {
		return apiclient.Purged{}, err
	}
	return n.registry.Purge(ctx, p, needed)
}

// purgeFor deletes old images for a run, in the repositories that its task may purge.
func (n *node) purgeFor(ctx context.Context, r run.Run, p apiclient.Purge) (apiclient.Purged, error) {
	grants := n.cfg.steps.purgeGrants(r.Task)
	if len(grants) == 0 {
		who := "runs without a task"
		if r.Task != "" {
			who = "task " + r.Task
		}
		return apiclient.Purged{}, fmt.Errorf("%s may not purge the registry: the operator allows it with kiln serve --allow-purge", who)
	}
	if err := registry.CheckPurge(p); err != nil {
		return apiclient.Purged{}, err
	}
	needed, err := n.neededImages(ctx)
	if err != nil {
		return apiclient.Purged{}, err
	}
	n.log.Info("purge of a run", "run", r.ID, "task", r.Task, "filters", p.Filters, "dryRun", p.DryRun)
	return n.registry.PurgeWithin(ctx, p, needed, func(repository string) bool {
		return r.Spec.Limits.MayPush(repository) == nil &&
			slices.ContainsFunc(grants, func(pattern string) bool { return repositoryMatches(pattern, repository) })
	})
}

// tidy purges what is past retention and frees space.
func (n *node) tidy(ctx context.Context) error {
	var errs []error
	for _, s := range n.cfg.retention {
		p, err := parseRetention(s)
		if err == nil {
			var done apiclient.Purged
			if done, err = n.purge(ctx, p); done.Tags+done.Count > 0 {
				n.log.Info("images past retention deleted", "tags", done.Tags, "manifests", done.Count)
			}
		}
		errs = append(errs, err)
	}
	got, err := n.collect(ctx, false)
	if got.Blobs > 0 {
		n.log.Info("garbage of the registry collected", "blobs", got.Blobs, "bytes", got.Freed, "took", got.Took)
	}
	return errors.Join(append(errs, err)...)
}

// eachActive calls f for each run that has not ended.
func (n *node) eachActive(ctx context.Context, f func(run.Run)) error {
	ids, err := n.index.Active(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		r, _, err := n.store.Runs.Get(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		f(r)
	}
	return nil
}

// neededContexts returns the IDs of the contexts of runs that have not ended.
func (n *node) neededContexts(ctx context.Context) (map[string]bool, error) {
	needed := map[string]bool{}
	return needed, n.eachActive(ctx, func(r run.Run) {
		if id, err := source.ParseRef(r.Spec.Context); err == nil {
			needed[id] = true
		}
	})
}

// neededImages returns the digests of images that tasks are built on now, and of those that runs which have
// not ended are built on or have made.
func (n *node) neededImages(ctx context.Context) (map[string]bool, error) {
	needed := map[string]bool{}
	names, err := n.followed(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		repository, ok := strings.CutPrefix(string(name), n.host+"/")
		if !ok {
			continue
		}
		if name.Digest() != "" {
			needed[name.Digest()] = true
			continue
		}
		at := strings.LastIndexByte(repository, ':')
		if at < 0 {
			continue
		}
		d, err := n.registry.Resolve(ctx, repository[:at], repository[at+1:])
		if err == nil {
			needed[d.Digest] = true
		} else if !errors.Is(err, registry.ErrManifestUnknown) && !errors.Is(err, registry.ErrLocked) {
			return nil, err
		}
	}
	err = n.eachActive(ctx, func(r run.Run) {
		for _, digest := range r.Spec.Pins {
			needed[digest] = true
		}
		for _, b := range r.Bases {
			needed[b.Digest] = true
		}
		for _, s := range r.Steps {
			if s.Output != nil {
				needed[s.Output.Digest] = true
			}
		}
	})
	return needed, err
}
