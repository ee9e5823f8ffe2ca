package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"kiln/internal/apiclient"
)

const (
	maxClosure  = 2000 // manifests that go along with one
	deleteBatch = 50   // manifests deleted in one transaction
	idBatch     = 500  // rows that one query asks about
)

// doomedManifest is a manifest that is to be deleted, and why.
type doomedManifest struct {
	id     int64
	digest string
	why    string
}

type doomedManifests []doomedManifest

func (d doomedManifests) ids() []int64 {
	ids := make([]int64, len(d))
	for i := range d {
		ids[i] = d[i].id
	}
	return ids
}

// closure returns a manifest and what goes along when it is deleted: what an index alone names, and what is
// said about any of them, unless it is named by a tag or another index.
func (s *Store) closure(ctx context.Context, id int64) (doomedManifests, error) {
	out, err := s.read.closure(ctx, id)
	return out, s.readError(err)
}

func (st *statements) closure(ctx context.Context, id int64) (doomedManifests, error) {
	var first doomedManifest
	q, err := st.get(`SELECT id, digest FROM manifest WHERE id = ?`)
	if err != nil {
		return nil, err
	}
	if err := q.QueryRowContext(ctx, id).Scan(&first.id, &first.digest); err != nil {
		return nil, err
	}
	out, in, parents := doomedManifests{first}, map[int64]bool{id: true}, map[int64]int{}
	for next := 0; next < len(out); next++ {
		if len(out) > maxClosure {
			return nil, fmt.Errorf("%w: more than %d manifests belong to %s: delete some of them first (kiln manifest list-referrers)", ErrInvalid, maxClosure, first.digest)
		}
		q, err := st.get(`SELECT c.id, c.digest, c.held, 'child' FROM manifest m CROSS JOIN manifest_child e ON e.manifest = m.id
				CROSS JOIN manifest c ON c.repo = m.repo AND c.digest = e.child WHERE m.id = ?1
			UNION ALL SELECT o.id, o.digest, 0, 'referrer' FROM manifest m JOIN manifest o ON o.repo = m.repo AND o.subject = m.digest
				WHERE m.id = ?1 AND o.held = 0`)
		if err != nil {
			return nil, err
		}
		rows, err := q.QueryContext(ctx, out[next].id)
		if err != nil {
			return nil, err
		}
		err = each(rows, func() error {
			var d doomedManifest
			var held int
			if err := rows.Scan(&d.id, &d.digest, &held, &d.why); err != nil {
				return err
			}
			if held > 0 {
				parents[d.id]++
			}
			if parents[d.id] == held && !in[d.id] {
				in[d.id] = true
				out = append(out, d)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// frees returns the size of the blobs that nobody else needs when manifests are gone. Without a time it asks
// about people's repositories alone; with one, also about kiln's own, and counts only what was not looked at
// since.
func (s *Store) frees(ctx context.Context, manifests []int64, staleSince int64) (int64, error) {
	removed := map[int64]int64{}
	for len(manifests) > 0 {
		n := min(len(manifests), idBatch)
		rows, err := s.rowsOf(ctx, `SELECT blob, count(*) FROM manifest_blob WHERE manifest IN (SELECT value FROM json_each(?)) GROUP BY blob`, manifests[:n])
		if err != nil {
			return 0, err
		}
		manifests = manifests[n:]
		err = each(rows, func() error {
			var blob, refs int64
			err := rows.Scan(&blob, &refs)
			removed[blob] += refs
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	var total int64
	blobs := make([]int64, 0, idBatch)
	sum := func() error {
		n, err := s.freesBlobs(ctx, blobs, removed, staleSince)
		total, blobs = total+n, blobs[:0]
		return err
	}
	for b := range removed {
		if blobs = append(blobs, b); len(blobs) == idBatch {
			if err := sum(); err != nil {
				return 0, err
			}
		}
	}
	err := sum()
	return total, err
}

func (s *Store) freesBlobs(ctx context.Context, blobs []int64, removed map[int64]int64, staleSince int64) (total int64, err error) {
	rows, err := s.rowsOf(ctx, `SELECT l.blob, (SELECT size FROM blob WHERE id = l.blob), sum(l.refs), max(l.touched)
		FROM repo_blob l JOIN repository r ON r.id = l.repo
		WHERE l.blob IN (SELECT value FROM json_each(?)) AND (r.internal = 0 OR ?) GROUP BY l.blob`, blobs, staleSince > 0)
	if err != nil {
		return 0, err
	}
	err = each(rows, func() error {
		var blob, size, refs, touched int64
		err := rows.Scan(&blob, &size, &refs, &touched)
		if refs <= removed[blob] && (staleSince == 0 || touched < staleSince) {
			total += size
		}
		return err
	})
	return total, err
}

// rowsOf runs a query whose first argument is a list of rows.
func (s *Store) rowsOf(ctx context.Context, query string, ids []int64, args ...any) (*sql.Rows, error) {
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	return s.rows(ctx, query, append([]any{string(list)}, args...)...)
}

// Delete deletes the manifest that a reference names, with its tags and what goes along, or without one the
// whole repository. Locks refuse it. A large repository is deleted in steps: if the process ends in between,
// deleting it again deletes the rest. A dry run tells what would be deleted.
func (s *Store) Delete(ctx context.Context, repository, reference string, dryRun bool) (apiclient.Deletion, error) {
	if isReserved(repository) {
		return apiclient.Deletion{}, fmt.Errorf("%w: %s: repositories below %s are kiln's own: collection takes what no run needs (kiln gc)", ErrInvalid, clip(repository), reserved)
	}
	if reference == "" {
		return s.deleteRepository(ctx, repository, dryRun)
	}
	if err := checkReference(reference); err != nil {
		return apiclient.Deletion{}, err
	}
	id, err := s.manifestRowOf(ctx, repository, reference)
	if err != nil {
		return apiclient.Deletion{}, err
	}
	set, err := s.closure(ctx, id)
	if err != nil {
		return apiclient.Deletion{}, err
	}
	out, err := s.describe(ctx, repository, set)
	if err != nil {
		return out, err
	}
	if out.Frees, err = s.frees(ctx, set.ids(), 0); err != nil {
		return out, err
	}
	if out.DryRun = dryRun; dryRun {
		return out, s.checkDeletable(ctx, repository, set)
	}
	err = s.write.do(ctx, func(t *tx) error {
		set, err := t.st.closure(context.WithoutCancel(ctx), id)
		if err != nil {
			return err
		}
		for _, d := range set {
			if err := t.deleteWithTags(repository, d.id); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// deleteWithTags deletes a manifest and its tags, unless a lock refuses it. Unique tags are retired.
func (t *tx) deleteWithTags(repository string, id int64) error {
	to := target{repository: repository, manifest: id}
	ok, err := t.row(`SELECT m.repo, m.digest, m.media_type, r.locks | m.locks FROM manifest m JOIN repository r ON r.id = m.repo WHERE m.id = ?`,
		[]any{id}, &to.repo, &to.digest, &to.mediaType, &to.locks)
	if err != nil || !ok {
		return err
	}
	tags, err := t.strings(`SELECT name FROM tag WHERE manifest = ?`, id)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		if err := t.removeTag(tag, to, true); err != nil {
			return err
		}
	}
	return t.dropManifest(to)
}

// describe lists what is to be deleted.
func (s *Store) describe(ctx context.Context, repository string, set doomedManifests) (apiclient.Deletion, error) {
	out := apiclient.Deletion{Manifests: []apiclient.DeletedManifest{}, Count: int64(len(set))}
	for _, d := range set {
		rows, err := s.rows(ctx, `SELECT name FROM tag WHERE manifest = ? ORDER BY name`, d.id)
		if err != nil {
			return out, err
		}
		tags, err := collectStrings(rows)
		if err != nil {
			return out, err
		}
		out.Tags += int64(len(tags))
		if len(out.Manifests) < apiclient.MaxDeletedListed {
			if tags == nil {
				tags = []string{}
			}
			out.Manifests = append(out.Manifests, apiclient.DeletedManifest{Repository: repository, Digest: d.digest, Tags: tags, Why: d.why})
		}
	}
	return out, nil
}

// checkDeletable refuses what a lock keeps.
func (s *Store) checkDeletable(ctx context.Context, repository string, set doomedManifests) error {
	for ids := set.ids(); len(ids) > 0; ids = ids[min(len(ids), idBatch):] {
		var l locks
		rows, err := s.rowsOf(ctx, `SELECT r.locks | m.locks | coalesce((SELECT max(locks & ?2) FROM tag WHERE manifest = m.id), 0)
			FROM manifest m JOIN repository r ON r.id = m.repo WHERE m.id IN (SELECT value FROM json_each(?1))`, ids[:min(len(ids), idBatch)], keeps)
		if err != nil {
			return err
		}
		err = each(rows, func() error {
			if err := rows.Scan(&l); err != nil {
				return err
			}
			return l.locked(keeps, repository+" or what is in it")
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) deleteRepository(ctx context.Context, name string, dryRun bool) (apiclient.Deletion, error) {
	out := apiclient.Deletion{Manifests: []apiclient.DeletedManifest{}, DryRun: dryRun}
	r, err := s.Repository(ctx, name)
	if err != nil {
		return out, err
	}
	var repo, last int64
	var l locks
	// One manifest or tag that is locked keeps the repository: half of it would be of no use.
	_, err = s.row(ctx, `SELECT r.id, r.locks
			| coalesce((SELECT max(locks & ?2) FROM manifest WHERE repo = r.id AND locks <> 0), 0)
			| coalesce((SELECT max(locks & ?2) FROM tag WHERE repo = r.id AND locks <> 0), 0), coalesce((SELECT max(id) FROM manifest), 0)
		FROM repository r WHERE r.name = ?1`, []any{name, keeps}, &repo, &l, &last)
	if err != nil {
		return out, err
	}
	if err := l.locked(keeps, name+" or what is in it"); err != nil {
		return out, err
	}
	out.Count, out.Tags, out.Frees = r.Manifests, r.Tags, r.Unique
	if out.Count == 0 {
		return out, repositoryUnknown(name)
	}
	if dryRun {
		return out, nil
	}
	for more := true; more && err == nil; {
		err = s.gently(ctx, func(t *tx) error {
			// An index is newer than what it names, so it goes first.
			ids, err := t.integers(`SELECT id FROM manifest WHERE repo = ? AND id <= ? ORDER BY id DESC LIMIT ?`, repo, last, deleteBatch)
			for _, id := range ids {
				if err := t.deleteWithTags(name, id); err != nil {
					return err
				}
				last = id - 1
			}
			more = len(ids) == deleteBatch
			return err
		})
	}
	return out, err
}

// gently does a write that nobody waits for: it pauses afterwards for a multiple of the time that took, so
// that others get most of the disk.
func (s *Store) gently(ctx context.Context, f func(*tx) error) error {
	var took time.Duration
	err := s.write.do(ctx, func(t *tx) error {
		begin := time.Now()
		defer func() { took = time.Since(begin) }()
		return f(t)
	})
	if err != nil {
		return err
	}
	if !sleep(ctx, min(gentlePause*took, maxPause)) {
		return ctx.Err()
	}
	return nil
}

const (
	gentlePause = 4               // times as long as a write took nothing is written
	maxPause    = 2 * time.Second // but not longer
)
