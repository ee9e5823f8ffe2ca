package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

const (
	// PathCache: GET ?filter=... -> Cache. Each filter is one of BuildKit's; a record must match one of them.
	PathCache = "/api/v1/cache"
	// PathCachePrune: POST CachePrune -> CachePruned, when it is done.
	PathCachePrune = "/api/v1/cache/prune"
)

// A Cache is what the build daemon keeps on disk to build faster. Sizes are bytes.
type Cache struct {
	Kinds []CacheKind `json:"kinds"`
	// Records are the largest ones, MaxCacheRecords at most.
	Records []CacheRecord `json:"records"`
	// Limits are those of the server's own daemon; zero values are not known, or not set.
	Limits CacheLimits `json:"limits"`
}

// MaxCacheRecords is how many records a Cache lists.
const MaxCacheRecords = 1000

// A CacheKind sums up the records of one kind.
type CacheKind struct {
	Kind        string `json:"kind"`
	Records     int    `json:"records"`
	Size        int64  `json:"size"`
	InUse       int64  `json:"inUse"`
	Reclaimable int64  `json:"reclaimable"` // by pruning all
}

// A CacheRecord is one thing in a cache.
type CacheRecord struct {
	ID          string    `json:"id"`
	Kind        string    `json:"kind"`
	Description string    `json:"description,omitempty"`
	Size        int64     `json:"size"`
	InUse       bool      `json:"inUse,omitempty"`
	Shared      bool      `json:"shared,omitempty"`
	Created     time.Time `json:"created"`
	LastUsed    time.Time `json:"lastUsed,omitzero"`
	Used        int       `json:"used,omitempty"`
}

// CacheLimits say when a daemon removes something by itself.
type CacheLimits struct {
	Keep    int64 `json:"keep,omitempty"`    // never less than this, however full the disk is
	MaxUsed int64 `json:"maxUsed,omitempty"` // never more than this
	MinFree int64 `json:"minFree,omitempty"` // until the disk has this left
}

// A CachePrune says what of a cache is to be removed. What is in use stays.
type CachePrune struct {
	All       bool          `json:"all,omitempty"` // also frontends and what images share
	Filters   []string      `json:"filters,omitempty"`
	Keep      int64         `json:"keep,omitempty"`      // bytes that may stay
	UnusedFor time.Duration `json:"unusedFor,omitempty"` // nanoseconds
}

// CachePruned is what was removed.
type CachePruned struct {
	Records int   `json:"records"`
	Freed   int64 `json:"freed"` // bytes
}

// pruneTimeout bounds the removal of a cache: many small files take minutes.
const pruneTimeout = 30 * time.Minute

// Cache returns what the build daemon keeps.
func (c *Client) Cache(ctx context.Context, filters []string) (Cache, error) {
	var out Cache
	path := PathCache
	if len(filters) > 0 {
		path += "?" + url.Values{"filter": filters}.Encode()
	}
	err := c.call(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

// PruneCache removes some of what the build daemon keeps, and returns when that is done.
func (c *Client) PruneCache(ctx context.Context, p CachePrune) (CachePruned, error) {
	var out CachePruned
	err := c.callFor(ctx, pruneTimeout, http.MethodPost, PathCachePrune, p, &out)
	return out, err
}
