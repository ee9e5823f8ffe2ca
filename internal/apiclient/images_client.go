package apiclient

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Bounds of requests that go through much of what the registry stores.
const (
	slowTimeout  = 30 * time.Minute
	checkTimeout = 24 * time.Hour // of one that reads everything
)

// Repositories lists up to n repositories after the given name; all includes kiln's own.
func (c *Client) Repositories(ctx context.Context, all bool, after string, n int) (out Repositories, err error) {
	q := url.Values{"n": {strconv.Itoa(n)}, "after": {after}}
	if all {
		q.Set("all", "1")
	}
	err = c.call(ctx, http.MethodGet, PathRepositories+"?"+q.Encode(), nil, &out)
	return out, err
}

// Repository describes a repository.
func (c *Client) Repository(ctx context.Context, name string) (out Repository, err error) {
	err = c.call(ctx, http.MethodGet, PathRepositories+"?"+url.Values{"repository": {name}}.Encode(), nil, &out)
	return out, err
}

// Manifests lists up to n manifests of a repository: the newest first, or the oldest. After is the Next of
// the page before.
func (c *Client) Manifests(ctx context.Context, repository string, oldest, untagged bool, after string, n int) (out Manifests, err error) {
	q := url.Values{"repository": {repository}, "n": {strconv.Itoa(n)}, "after": {after}, "orderby": {"time_desc"}}
	if oldest {
		q.Set("orderby", "time_asc")
	}
	if untagged {
		q.Set("untagged", "1")
	}
	err = c.call(ctx, http.MethodGet, PathManifests+"?"+q.Encode(), nil, &out)
	return out, err
}

// Manifest describes the manifest that a tag or digest names.
func (c *Client) Manifest(ctx context.Context, repository, reference string) (out ManifestDetails, err error) {
	q := url.Values{"repository": {repository}, "reference": {reference}}
	err = c.call(ctx, http.MethodGet, PathManifests+"?"+q.Encode(), nil, &out)
	return out, err
}

// Referrers lists manifests about another one, 1000 at most; an empty artifact type means all.
func (c *Client) Referrers(ctx context.Context, repository, reference, artifactType string) (out Referrers, err error) {
	q := url.Values{"repository": {repository}, "reference": {reference}, "type": {artifactType}}
	err = c.call(ctx, http.MethodGet, PathReferrers+"?"+q.Encode(), nil, &out)
	return out, err
}

// Tags lists up to n tags of a repository after the given one.
func (c *Client) Tags(ctx context.Context, repository, after string, n int) (out Tags, err error) {
	q := url.Values{"repository": {repository}, "after": {after}, "n": {strconv.Itoa(n)}}
	err = c.call(ctx, http.MethodGet, PathTags+"?"+q.Encode(), nil, &out)
	return out, err
}

// Tag describes a tag, with its history.
func (c *Client) Tag(ctx context.Context, repository, tag string) (out TagDetails, err error) {
	q := url.Values{"repository": {repository}, "tag": {tag}}
	err = c.call(ctx, http.MethodGet, PathTags+"?"+q.Encode(), nil, &out)
	return out, err
}

// Delete deletes from the registry, or tells what that would do.
func (c *Client) Delete(ctx context.Context, d Delete) (out Deletion, err error) {
	err = c.callFor(ctx, slowTimeout, http.MethodPost, PathDelete, d, &out)
	return out, err
}

// Untag deletes a tag; its manifest stays.
func (c *Client) Untag(ctx context.Context, repository, tag string) (out Deletion, err error) {
	err = c.call(ctx, http.MethodPost, PathUntag, Image{repository, tag}, &out)
	return out, err
}

// Lock sets and takes off locks, and returns those that are set then.
func (c *Client) Lock(ctx context.Context, l Lock) (out Locks, err error) {
	err = c.call(ctx, http.MethodPost, PathLock, l, &out)
	return out, err
}

// Rollback moves a tag back to what it named before.
func (c *Client) Rollback(ctx context.Context, r Rollback) (out Rollback, err error) {
	err = c.call(ctx, http.MethodPost, PathRollback, r, &out)
	return out, err
}

// Collect frees the space of what nothing refers to, or tells what that would do.
func (c *Client) Collect(ctx context.Context, dryRun bool) (out Collected, err error) {
	err = c.callFor(ctx, checkTimeout, http.MethodPost, PathCollect, Collect{DryRun: dryRun}, &out)
	return out, err
}

// Purge deletes old tags and manifests, or tells what that would do.
func (c *Client) Purge(ctx context.Context, p Purge) (out Purged, err error) {
	err = c.callFor(ctx, slowTimeout, http.MethodPost, PathPurge, p, &out)
	return out, err
}

// Import has the server copy an image, and returns when that is done.
func (c *Client) Import(ctx context.Context, im Import) (out Imported, err error) {
	err = c.callFor(ctx, slowTimeout, http.MethodPost, PathImport, im, &out)
	return out, err
}

// CheckImages verifies what the registry stores.
func (c *Client) CheckImages(ctx context.Context, quick bool) (out CheckedImages, err error) {
	err = c.callFor(ctx, checkTimeout, http.MethodPost, PathCheck, CheckImages{Quick: quick}, &out)
	return out, err
}
