package buildkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/moby/buildkit/client"
)

// A CacheRecord is one thing that a daemon keeps to build faster.
type CacheRecord struct {
	ID          string
	Kind        string // BuildKit's: regular, source.local, source.git.checkout, exec.cachemount, frontend, internal
	Description string
	Size        int64 // bytes on disk
	InUse       bool  // a build, or a run's workspace, needs it now
	Shared      bool  // an image in use needs it too, so that removing it frees nothing
	Created     time.Time
	LastUsed    time.Time // zero if it never was
	Used        int       // times
}

// ErrFilter marks a filter that cannot be understood.
var ErrFilter = errors.New("filter not understood")

// checkFilters finds out what is wrong with filters; the daemon does not say whose mistake it is.
func checkFilters(list []string) error {
	for _, f := range list {
		if _, err := filters.Parse(f); err != nil {
			return fmt.Errorf("%w: %q: want such as type==regular or description~=npm: %w", ErrFilter, f, err)
		}
	}
	return nil
}

// Cache returns what the daemon keeps, the largest first. Of several filters, in BuildKit's syntax
// ("type==regular", "description~=npm"), one must match.
func (c *Client) Cache(ctx context.Context, matching ...string) ([]CacheRecord, error) {
	if err := checkFilters(matching); err != nil {
		return nil, err
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	infos, err := c.bk.DiskUsage(ctx, client.WithFilter(matching))
	if err != nil {
		return nil, c.engineError(ctx, err)
	}
	records := make([]CacheRecord, 0, len(infos))
	for _, i := range infos {
		r := CacheRecord{ID: i.ID, Kind: string(i.RecordType), Description: i.Description, Size: i.Size, InUse: i.InUse,
			Shared: i.Shared, Created: i.CreatedAt, Used: i.UsageCount}
		if i.LastUsedAt != nil {
			r.LastUsed = *i.LastUsedAt
		}
		records = append(records, r)
	}
	slices.SortFunc(records, func(a, b CacheRecord) int { return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.ID, b.ID)) })
	return records, nil
}

// CachePrune says what of a daemon's cache is to be removed. What is in use never is.
type CachePrune struct {
	All       bool          // also what BuildKit keeps for itself: frontends, and what images in use share
	Filters   []string      // as those of Cache
	Keep      int64         // bytes that may stay; what was not used for longest goes first
	UnusedFor time.Duration // only what was not used for so long
}

// PruneCache removes records and returns how many and their bytes. It may take minutes.
func (c *Client) PruneCache(ctx context.Context, p CachePrune) (records int, freed int64, err error) {
	if err := checkFilters(p.Filters); err != nil {
		return 0, 0, err
	}
	if err := c.ready(ctx); err != nil {
		return 0, 0, err
	}
	opts := []client.PruneOption{client.WithKeepOpt(p.UnusedFor, p.Keep, 0, 0), client.WithFilter(p.Filters)}
	if p.All {
		opts = append(opts, client.PruneAll)
	}
	if len(p.Filters) == 0 {
		c.seeds.forget("") // to be told by the daemon that a source is gone takes seconds
	}
	removed := make(chan client.UsageInfo)
	summed := make(chan struct{})
	go func() {
		defer close(summed)
		for r := range removed {
			records++
			freed += r.Size
		}
	}()
	err = c.bk.Prune(ctx, removed, opts...)
	close(removed)
	<-summed
	if err != nil {
		return records, freed, fmt.Errorf("prune: %w", c.engineError(ctx, err))
	}
	return records, freed, nil
}
