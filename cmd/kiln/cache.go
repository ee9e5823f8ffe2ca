package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/buildkit"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/store"
)

func newCacheCommand(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "Show and prune what the build daemon keeps",
		Long: "The build cache is what the server's build daemon keeps to build faster. The daemon removes from it by\n" +
			"itself what exceeds the limits that the server was started with.",
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newCacheShowCommand(c), newCachePruneCommand(c))
	return cmd
}

const filterHelp = "only records that match, such as type==exec.cachemount or description~=npm; of several one must; may be repeated"

func newCacheShowCommand(c *cli) *cobra.Command {
	var filters []string
	var records bool
	output := outputFlag{allowed: []string{"table", "json"}, value: "table"}
	cmd := &cobra.Command{
		Use:   "show [flags]",
		Short: "Show how much the build cache holds",
		Long: "Show the size of the build cache by kind of record, how much of it is in use, how much can be reclaimed\n" +
			"by pruning all, and when the daemon removes something by itself.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			found, err := client.Cache(cmd.Context(), filters)
			switch {
			case err != nil:
				return err
			case output.json():
				return c.printJSON(found)
			}
			showCache(c.Out, found, records, time.Now())
			return nil
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&filters, "filter", nil, filterHelp)
	f.BoolVarP(&records, "all", "a", false, fmt.Sprintf("list the records, too, the largest %d", apiclient.MaxCacheRecords))
	f.VarP(&output, "output", "o", "format")
	return cmd
}

func newCachePruneCommand(c *cli) *cobra.Command {
	var p apiclient.CachePrune
	var keep sizeFlag
	output := outputFlag{allowed: []string{"text", "json"}, value: "text"}
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove what is not in use from the build cache",
		Long: "Remove records of the build cache that nothing uses now, those that were not used for longest first. Runs\n" +
			"go on. It may take minutes.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			p.Keep = int64(keep)
			done, err := client.PruneCache(cmd.Context(), p)
			switch {
			case err != nil:
				return err
			case output.json():
				return c.printJSON(done)
			}
			fmt.Fprintf(c.Out, "%d records removed, %s freed\n", done.Records, sizeText(done.Freed))
			return nil
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&p.Filters, "filter", nil, filterHelp)
	f.Var(&keep, "keep-storage", "leave so much, such as 10GB (default nothing)")
	f.DurationVar(&p.UnusedFor, "unused-for", 0, "only what was not used for so long, such as 48h")
	f.BoolVarP(&p.All, "all", "a", false, "also remove frontends, and what other records share")
	f.VarP(&output, "output", "o", "format")
	return cmd
}

// showCache prints what a cache holds.
func showCache(out io.Writer, found apiclient.Cache, records bool, now time.Time) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprint(w, "KIND\tRECORDS\tSIZE\tIN USE\tRECLAIMABLE\n")
	total := apiclient.CacheKind{Kind: "total"}
	for _, k := range found.Kinds {
		total.Records += k.Records
		total.Size += k.Size
		total.InUse += k.InUse
		total.Reclaimable += k.Reclaimable
	}
	for _, k := range append(slices.Clip(found.Kinds), total) {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", render.Clean(k.Kind), k.Records, sizeText(k.Size), sizeText(k.InUse), sizeText(k.Reclaimable))
	}
	if l := found.Limits; l != (apiclient.CacheLimits{}) {
		fmt.Fprintf(w, "\nLimits: at most %s; %s of the disk stay free, but %s may be kept\n", sizeText(l.MaxUsed), sizeText(l.MinFree), sizeText(l.Keep))
	}
	if !records {
		return
	}
	fmt.Fprint(w, "\nID\tKIND\tSIZE\tLAST USED\tUSED\tSTATE\tDESCRIPTION\n")
	for _, r := range found.Records {
		state, used := "-", "never"
		switch {
		case r.InUse:
			state = "in use"
		case r.Shared:
			state = "shared"
		}
		if !r.LastUsed.IsZero() {
			used = now.Sub(r.LastUsed).Round(time.Second).String() + " ago"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", render.Clean(r.ID), render.Clean(r.Kind), sizeText(r.Size), used, r.Used, state, render.Clean(r.Description))
	}
}

// cache tells what the build daemon keeps.
func (b *builder) cache(ctx context.Context, filters []string) (apiclient.Cache, error) {
	records, err := b.client.Cache(ctx, filters...)
	if err != nil {
		return apiclient.Cache{}, cacheError(err)
	}
	out := apiclient.Cache{Kinds: []apiclient.CacheKind{}, Records: []apiclient.CacheRecord{}}
	if b.own != nil {
		l, err := b.daemon.Limits()
		if err != nil {
			return out, err
		}
		out.Limits = apiclient.CacheLimits{Keep: l.Reserved, MaxUsed: l.MaxUsed, MinFree: l.MinFree}
	}
	for _, r := range records {
		i := slices.IndexFunc(out.Kinds, func(k apiclient.CacheKind) bool { return k.Kind == r.Kind })
		if i < 0 {
			i, out.Kinds = len(out.Kinds), append(out.Kinds, apiclient.CacheKind{Kind: r.Kind})
		}
		k := &out.Kinds[i]
		k.Records++
		k.Size += r.Size
		if r.InUse {
			k.InUse += r.Size
		} else {
			k.Reclaimable += r.Size
		}
		if len(out.Records) < apiclient.MaxCacheRecords {
			out.Records = append(out.Records, apiclient.CacheRecord(r))
		}
	}
	return out, nil
}

// pruneCache removes some of what the build daemon keeps.
func (b *builder) pruneCache(ctx context.Context, p apiclient.CachePrune) (apiclient.CachePruned, error) {
	records, freed, err := b.client.PruneCache(ctx, buildkit.CachePrune(p))
	return apiclient.CachePruned{Records: records, Freed: freed}, cacheError(err)
}

// cacheError is what a client sees of err.
func cacheError(err error) error {
	if errors.Is(err, buildkit.ErrFilter) {
		return &apiclient.Error{Status: http.StatusUnprocessableEntity, Code: apiclient.CodeInvalid, Message: err.Error()}
	}
	return err
}

// cache tells what the build daemons of all workers keep.
func (n *node) cache(ctx context.Context, filters []string) (apiclient.Cache, error) {
	if !n.shared() && n.builder != nil {
		return n.builder.cache(ctx, filters)
	}
	all := apiclient.Cache{Kinds: []apiclient.CacheKind{}, Records: []apiclient.CacheRecord{}}
	err := n.eachWorker(ctx, func(w event.Worker) error {
		found, err := bus.Ask[apiclient.Cache](ctx, n.bus, event.AskCache(w.Instance), filters)
		for _, k := range found.Kinds {
			i := slices.IndexFunc(all.Kinds, func(o apiclient.CacheKind) bool { return o.Kind == k.Kind })
			if i < 0 {
				all.Kinds = append(all.Kinds, k)
				continue
			}
			o := &all.Kinds[i]
			o.Records, o.Size, o.InUse, o.Reclaimable = o.Records+k.Records, o.Size+k.Size, o.InUse+k.InUse, o.Reclaimable+k.Reclaimable
		}
		all.Records = append(all.Records, found.Records...)
		return err
	})
	slices.SortStableFunc(all.Records, func(a, b apiclient.CacheRecord) int { return cmp.Compare(b.Size, a.Size) })
	all.Records = all.Records[:min(len(all.Records), apiclient.MaxCacheRecords)]
	return all, err
}

// pruneCache prunes what the build daemons of all workers keep.
func (n *node) pruneCache(ctx context.Context, p apiclient.CachePrune) (apiclient.CachePruned, error) {
	if !n.shared() && n.builder != nil {
		return n.builder.pruneCache(ctx, p)
	}
	var all apiclient.CachePruned
	err := n.eachWorker(ctx, func(w event.Worker) error {
		done, err := bus.Ask[apiclient.CachePruned](ctx, n.bus, event.AskPruneCache(w.Instance), p)
		all.Records, all.Freed = all.Records+done.Records, all.Freed+done.Freed
		return err
	})
	return all, err
}

// eachWorker calls f for each worker, and goes on when it returns an error.
func (n *node) eachWorker(ctx context.Context, f func(event.Worker) error) error {
	var found []event.Worker
	err := n.store.Workers.List(ctx, func(e store.Entry[event.Worker]) bool { found = append(found, e.Value); return true })
	if err != nil {
		return err
	}
	var errs []error
	for _, w := range found {
		if err := f(w); err != nil {
			errs = append(errs, fmt.Errorf("worker %s: %w", w.Name, err))
		}
	}
	return errors.Join(errs...)
}
