package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"kiln/internal/apiclient"
)

// TagList describes up to n tags of a repository in the order of their names, those after the given one.
func (s *Store) TagList(ctx context.Context, repository, after string, n int) (apiclient.Tags, error) {
	out := apiclient.Tags{Tags: []apiclient.Tag{}}
	if _, err := s.Repository(ctx, repository); err != nil {
		return out, err
	}
	n = min(max(n, 1), apiclient.MaxImagePage)
	rows, err := s.rows(ctx, `SELECT t.name, m.digest, t.created, t.updated, t.protected, t.locks FROM repository r
		JOIN tag t ON t.repo = r.id JOIN manifest m ON m.id = t.manifest
		WHERE r.name = ? AND t.name > ? ORDER BY t.name LIMIT ?`, repository, after, n+1)
	if err != nil {
		return out, err
	}
	err = each(rows, func() error {
		t, err := scanTag(rows.Scan)
		out.Tags = append(out.Tags, t)
		return err
	})
	if err == nil && len(out.Tags) > n {
		out.Tags = out.Tags[:n]
		out.Next = out.Tags[n-1].Name
	}
	return out, err
}

func scanTag(scan func(...any) error) (apiclient.Tag, error) {
	var t apiclient.Tag
	var created, updated int64
	var l locks
	err := scan(&t.Name, &t.Digest, &created, &updated, &t.Unique, &l)
	t.Created, t.Updated, t.Locks = moment(created), moment(updated), l.names()
	return t, err
}

// TagDetails describes a tag, also one that was deleted.
func (s *Store) TagDetails(ctx context.Context, repository, tag string) (apiclient.TagDetails, error) {
	out := apiclient.TagDetails{Repository: repository, History: []apiclient.TagMove{}}
	if err := checkTag(tag); err != nil {
		return out, err
	}
	q, err := s.read.get(`SELECT t.name, m.digest, t.created, t.updated, t.protected, t.locks FROM repository r
		JOIN tag t ON t.repo = r.id JOIN manifest m ON m.id = t.manifest WHERE r.name = ? AND t.name = ?`)
	if err != nil {
		return out, s.readError(err)
	}
	out.Tag, err = scanTag(q.QueryRowContext(ctx, repository, tag).Scan)
	gone := errors.Is(err, sql.ErrNoRows)
	if err != nil && !gone {
		return out, s.readError(err)
	}
	out.Name = tag
	rows, err := s.rows(ctx, `SELECT h.at, coalesce(h.digest, ''), h.run, h.step,
			EXISTS (SELECT 1 FROM manifest m WHERE m.repo = h.repo AND m.digest = h.digest)
		FROM repository r JOIN tag_history h ON h.repo = r.id WHERE r.name = ? AND h.tag = ?
		ORDER BY h.id DESC LIMIT ?`, repository, tag, apiclient.MaxTagHistory)
	if err != nil {
		return out, err
	}
	err = each(rows, func() error {
		var m apiclient.TagMove
		var at int64
		err := rows.Scan(&at, &m.Digest, &m.Run, &m.Step, &m.Exists)
		m.Time = moment(at)
		out.History = append(out.History, m)
		return err
	})
	if err == nil && gone && len(out.History) == 0 {
		err = manifestUnknown(repository, tag)
	}
	return out, err
}

// Rollback moves a tag to another manifest that it named: to dgst or, if that is empty, to the one before
// the present one. Unique tags never move. It returns the digests it moved from and to.
func (s *Store) Rollback(ctx context.Context, repository, tag, dgst string) (from, to string, err error) {
	if err := checkTag(tag); err != nil {
		return "", "", err
	}
	err = s.write.do(ctx, func(t *tx) error {
		repo, err := t.repository(repository)
		if err != nil {
			return err
		}
		ok, err := t.row(`SELECT m.digest FROM tag t JOIN manifest m ON m.id = t.manifest WHERE t.repo = ? AND t.name = ?`, []any{repo, tag}, &from)
		if err != nil {
			return err
		}
		if !ok && dgst == "" {
			// It was deleted: what it named last is what comes back.
			if ok, err = t.row(`SELECT 1 FROM tag_history WHERE repo = ? AND tag = ? LIMIT 1`, []any{repo, tag}, new(int)); err != nil {
				return err
			}
		}
		if !ok && dgst == "" {
			return manifestUnknown(repository, tag)
		}
		move := target{repository: repository, repo: repo}
		ok, err = t.row(`SELECT m.id, m.digest, m.media_type FROM tag_history h JOIN manifest m ON m.repo = h.repo AND m.digest = h.digest
			WHERE h.repo = ?1 AND h.tag = ?2 AND h.digest <> ?3 AND (?4 = '' OR h.digest = ?4) ORDER BY h.id DESC LIMIT 1`,
			[]any{repo, tag, from, dgst}, &move.manifest, &move.digest, &move.mediaType)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%w: %s has named no other manifest that is still here (kiln tag show)", ErrManifestUnknown, imageName(repository, tag))
		}
		if _, err := t.createRepository(repository); err != nil { // which refuses what is locked
			return err
		}
		to = move.digest
		_, err = t.moveTag(tag, move, origin{})
		return err
	})
	return from, to, err
}
