package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"kiln/internal/apiclient"
)

const (
	collectBatch = 64                  // rows that one transaction of a collection deletes
	cacheAge     = 30 * 24 * time.Hour // since a build cache was last used
	contextAge   = 7 * 24 * time.Hour  // since an uploaded context was last used
	contextsRepo = reserved + "contexts"
)

// A Collection says how garbage is collected.
type Collection struct {
	DryRun bool // only count
	// Contexts returns the tags in the repository of contexts that runs need which have not ended. Nil
	// means none.
	Contexts func(context.Context) (map[string]bool, error)
}

// A collector is one collection. Each of its steps deletes in small transactions and is complete after each
// of them, so a collection may end at any moment: the next one goes on.
type collector struct {
	s     *Store
	opt   Collection
	stale int64 // what was not looked at since is garbage if nothing refers to it; Unix milliseconds
	out   apiclient.Collected
}

// Collect frees the space of what nothing refers to: staged images that no run needs, build caches and
// contexts that were not used for long, what is said about manifests that are gone, and then blobs. Pushes,
// pulls and publications go on meanwhile. Whoever has uploaded, mounted or found a blob has the time of
// Options.Grace to refer to it. Only one collection goes on at a time.
func (s *Store) Collect(ctx context.Context, opt Collection) (apiclient.Collected, error) {
	if !s.collecting.TryLock() {
		return apiclient.Collected{}, errCollecting
	}
	defer s.collecting.Unlock()
	c := &collector{s: s, opt: opt, stale: time.Now().Add(-s.opt.Grace).UnixMilli(), out: apiclient.Collected{DryRun: opt.DryRun}}
	begin := time.Now()
	steps := []func(context.Context) error{c.caches, c.contexts, c.staged, c.referrers, c.links, c.blobs, c.files}
	if opt.DryRun {
		steps = []func(context.Context) error{c.count}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return c.out, fmt.Errorf("collect garbage: %w", err)
		}
	}
	c.out.Took = time.Since(begin)
	return c.out, nil
}

// batches calls f in transactions of their own until it has deleted nothing, and adds up what it did.
func (c *collector) batches(ctx context.Context, sum *int64, f func(*tx) (int64, error)) error {
	for {
		var n int64
		err := c.s.gently(ctx, func(t *tx) (err error) {
			n, err = f(t)
			return err
		})
		if err != nil || n == 0 {
			return err
		}
		*sum += n
	}
}

// caches untags build caches that were not used for long. Then they are staged images that nobody needs.
func (c *collector) caches(ctx context.Context) error {
	return c.batches(ctx, &c.out.Caches, func(t *tx) (int64, error) {
		return t.change(`DELETE FROM tag WHERE (repo, name) IN (SELECT t.repo, t.name FROM repository r JOIN tag t ON t.repo = r.id
			JOIN manifest m ON m.id = t.manifest WHERE r.internal = 1 AND r.name <> ? AND m.touched < ? LIMIT ?)`,
			contextsRepo, t.now.Add(-cacheAge).UnixMilli(), collectBatch)
	})
}

const staleContexts = `SELECT m.id, (SELECT json_group_array(name) FROM tag WHERE manifest = m.id) FROM repository r JOIN manifest m ON m.repo = r.id
	WHERE r.name = ? AND m.id > ? AND m.touched < ? ORDER BY m.id LIMIT ?`

// contexts deletes uploaded contexts that were not used for long, but those of runs that have not ended.
func (c *collector) contexts(ctx context.Context) error {
	ids, err := c.staleContexts(ctx)
	if err != nil {
		return err
	}
	for len(ids) > 0 {
		n := min(len(ids), collectBatch/4)
		err := c.s.gently(ctx, func(t *tx) error {
			for _, id := range ids[:n] {
				// A run may have come to use it meanwhile.
				old, err := t.row(`SELECT 1 FROM manifest WHERE id = ? AND touched < ?`, []any{id, t.now.Add(-contextAge).UnixMilli()}, new(int))
				if err != nil {
					return err
				}
				if !old {
					continue
				}
				if err := t.exec(`DELETE FROM tag WHERE manifest = ?`, id); err != nil {
					return err
				}
				if err := t.deleteManifest(id); err != nil {
					return err
				}
				c.out.Contexts++
			}
			return nil
		})
		if err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

func (c *collector) staleContexts(ctx context.Context) (ids []int64, err error) {
	needed := map[string]bool{}
	if c.opt.Contexts != nil {
		if needed, err = c.opt.Contexts(ctx); err != nil {
			return nil, err
		}
	}
	limit := time.Now().Add(-contextAge).UnixMilli()
	for last, more := int64(0), true; more; {
		rows, err := c.s.rows(ctx, staleContexts, contextsRepo, last, limit, checkPage)
		if err != nil {
			return nil, err
		}
		n := 0
		err = each(rows, func() error {
			var list []byte
			var tags []string
			if err := rows.Scan(&last, &list); err != nil {
				return err
			}
			if err := json.Unmarshal(list, &tags); err != nil {
				return err
			}
			n++
			for _, tag := range tags {
				if needed[tag] {
					return nil
				}
			}
			ids = append(ids, last)
			return nil
		})
		if err != nil {
			return nil, err
		}
		more = n == checkPage
	}
	return ids, nil
}

// staleStaged selects staged images that nothing names and no run needs. A run that goes on may use what it
// has found since its fence was raised; finding something renews its lease.
const staleStaged = `SELECT m.id FROM repository r JOIN manifest m ON m.repo = r.id
	WHERE r.internal = 1 AND r.name <> ? AND m.held = 0 AND m.subject IS NULL
	AND m.touched < min(?, coalesce((SELECT min(created) FROM fence) - ?, ?)) LIMIT ?`

func (c *collector) stagedArgs(limit int) []any {
	return []any{contextsRepo, c.stale, c.s.renewal().Milliseconds(), c.stale, limit}
}

func (c *collector) staged(ctx context.Context) error {
	return c.batches(ctx, &c.out.Staged, func(t *tx) (int64, error) {
		return t.deleteManifests(staleStaged, c.stagedArgs(collectBatch)...)
	})
}

// staleReferrers selects what is said about manifests that are gone.
const staleReferrers = `SELECT m.id FROM manifest m JOIN repository r ON r.id = m.repo
	WHERE m.subject IS NOT NULL AND m.held = 0 AND m.touched < ? AND (m.locks | r.locks) & ? = 0
	AND NOT EXISTS (SELECT 1 FROM manifest s WHERE s.repo = m.repo AND s.digest = m.subject) LIMIT ?`

func (c *collector) referrers(ctx context.Context) error {
	// The search may read much, so it is not part of a write.
	for {
		rows, err := c.s.rows(ctx, staleReferrers, c.stale, keeps, idBatch)
		if err != nil {
			return err
		}
		ids, err := collectIntegers(rows)
		if err != nil || len(ids) == 0 {
			return err
		}
		for len(ids) > 0 {
			n := min(len(ids), collectBatch)
			list, err := json.Marshal(ids[:n])
			if err != nil {
				return err
			}
			ids = ids[n:]
			err = c.s.gently(ctx, func(t *tx) error {
				n, err := t.deleteManifests(`SELECT m.id FROM manifest m WHERE m.id IN (SELECT value FROM json_each(?)) AND m.held = 0
					AND NOT EXISTS (SELECT 1 FROM manifest s WHERE s.repo = m.repo AND s.digest = m.subject)`, string(list))
				c.out.Referrers += n
				return err
			})
			if err != nil {
				return err
			}
		}
	}
}

// deleteManifests deletes the manifests that a query selects, without an event, and returns how many.
func (t *tx) deleteManifests(query string, args ...any) (int64, error) {
	ids, err := t.integers(query, args...)
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if err := t.deleteManifest(id); err != nil {
			return 0, err
		}
	}
	return int64(len(ids)), nil
}

// links takes blobs from repositories whose manifests do not need them.
func (c *collector) links(ctx context.Context) error {
	return c.batches(ctx, new(int64), func(t *tx) (int64, error) {
		return t.change(`DELETE FROM repo_blob WHERE (repo, blob) IN
			(SELECT repo, blob FROM repo_blob WHERE refs = 0 AND touched < ? ORDER BY touched LIMIT ?)`, c.stale, collectBatch)
	})
}

// blobs deletes blobs that no repository has. The files of the large ones are noted, and go when that is
// committed.
func (c *collector) blobs(ctx context.Context) error {
	return c.batches(ctx, &c.out.Blobs, func(t *tx) (int64, error) {
		ids, err := t.integers(`SELECT id FROM blob WHERE links = 0 LIMIT ?`, collectBatch)
		if err != nil || len(ids) == 0 {
			return 0, err
		}
		b, err := json.Marshal(ids)
		if err != nil {
			return 0, err
		}
		var size int64
		list := string(b)
		if _, err := t.row(`SELECT coalesce(sum(size), 0) FROM blob WHERE id IN (SELECT value FROM json_each(?))`, []any{list}, &size); err != nil {
			return 0, err
		}
		for _, q := range []string{
			`INSERT INTO doomed (key, size) SELECT key, size FROM blob WHERE id IN (SELECT value FROM json_each(?)) AND key IS NOT NULL`,
			`DELETE FROM blob_data WHERE blob IN (SELECT value FROM json_each(?))`,
			`DELETE FROM blob WHERE id IN (SELECT value FROM json_each(?))`,
		} {
			if err := t.exec(q, list); err != nil {
				return 0, err
			}
		}
		c.out.Freed += size
		return int64(len(ids)), nil
	})
}

// files deletes the content of blobs whose rows are gone.
func (c *collector) files(ctx context.Context) error {
	for {
		rows, err := c.s.rows(ctx, `SELECT key FROM doomed LIMIT ?`, collectBatch)
		if err != nil {
			return err
		}
		keys, err := collectStrings(rows)
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			return c.s.blobs.tidy(ctx)
		}
		begin := time.Now()
		if err := c.s.blobs.remove(ctx, keys...); err != nil {
			return err
		}
		if !sleep(ctx, min(gentlePause*time.Since(begin), maxPause)) {
			return ctx.Err()
		}
		list, err := json.Marshal(keys)
		if err != nil {
			return err
		}
		err = c.s.gently(ctx, func(t *tx) error {
			return t.exec(`DELETE FROM doomed WHERE key IN (SELECT value FROM json_each(?))`, string(list))
		})
		if err != nil {
			return err
		}
	}
}

// count tells what a collection would do now. What it would untag first is not followed further.
func (c *collector) count(ctx context.Context) error {
	contexts, err := c.staleContexts(ctx)
	if err != nil {
		return err
	}
	all := contexts
	for _, q := range []struct {
		sum   *int64
		query string
		args  []any
	}{
		{&c.out.Staged, staleStaged, c.stagedArgs(maxCounted)},
		{&c.out.Referrers, staleReferrers, []any{c.stale, keeps, maxCounted}},
	} {
		rows, err := c.s.rows(ctx, q.query, q.args...)
		if err != nil {
			return err
		}
		ids, err := collectIntegers(rows)
		if err != nil {
			return err
		}
		*q.sum = int64(len(ids))
		all = append(all, ids...)
	}
	c.out.Contexts = int64(len(contexts))
	if c.out.Freed, err = c.s.frees(ctx, all, c.stale); err != nil {
		return err
	}
	var blobs, size int64
	_, err = c.s.row(ctx, `SELECT count(*), coalesce(sum(b.size), 0) FROM blob b WHERE b.links =
		(SELECT count(*) FROM repo_blob l WHERE l.blob = b.id AND l.refs = 0 AND l.touched < ?1)
		AND (b.links = 0 OR b.id IN (SELECT blob FROM repo_blob WHERE refs = 0 AND touched < ?1))`, []any{c.stale}, &blobs, &size)
	c.out.Blobs, c.out.Freed = blobs, c.out.Freed+size
	return err
}

const maxCounted = 100_000 // manifests that a dry run counts
