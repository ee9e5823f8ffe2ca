package registry

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
)

// target is a manifest that a tag names.
type target struct {
	repository string
	repo       int64
	manifest   int64
	digest     string
	mediaType  string
	locks      locks // of the manifest and its repository
}

// origin says what moves a tag. The zero value is an ordinary push.
type origin struct {
	run     string
	attempt int
	step    string
	unique  bool
}

// moveTag makes a tag name a manifest and reports whether it did not before.
func (t *tx) moveTag(tag string, to target, by origin) (moved bool, err error) {
	var (
		current   int64
		digest    string
		protected bool
		l         locks
	)
	exists, err := t.row(`SELECT t.manifest, m.digest, t.protected, t.locks FROM tag t JOIN manifest m ON m.id = t.manifest
		WHERE t.repo = ? AND t.name = ?`, []any{to.repo, tag}, &current, &digest, &protected, &l)
	if err != nil {
		return false, err
	}
	if !exists { // a unique tag that was deleted keeps its meaning
		protected, err = t.row(`SELECT digest FROM retired_tag WHERE repo = ? AND name = ?`, []any{to.repo, tag}, &digest)
		if err != nil {
			return false, err
		}
		exists = protected && digest != to.digest
	}
	switch {
	case exists && current == to.manifest:
		if by.unique && !protected {
			return false, t.exec(`UPDATE tag SET protected = 1 WHERE repo = ? AND name = ?`, to.repo, tag)
		}
		return false, nil
	case exists && by.run != "" && (by.unique || protected):
		return false, fmt.Errorf("%w: %s:%s is %s, not %s", ErrTagExists, to.repository, tag, digest, to.digest)
	case exists && protected:
		return false, fmt.Errorf("%w: %s:%s is the unique tag of a run and stays %s: push to another tag", ErrTagProtected, to.repository, tag, digest)
	case exists:
		if err := l.locked(lockWrite, imageName(to.repository, tag)); err != nil {
			return false, err
		}
	}
	err = t.exec(`INSERT INTO tag (repo, name, manifest, protected, created, updated) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (repo, name) DO UPDATE SET manifest = excluded.manifest, updated = excluded.updated`,
		to.repo, tag, to.manifest, by.unique || protected, t.millis(), t.millis())
	if err != nil {
		return false, err
	}
	if err := t.remember(tag, to, to.digest, by); err != nil {
		return false, err
	}
	return true, t.record(OutboxEvent{Type: ImagePushed, Repository: to.repository, Tag: tag, Digest: to.digest,
		MediaType: to.mediaType, Run: by.run, Attempt: by.attempt, Step: by.step})
}

// removeTag deletes a tag that names to. A unique tag is retired if that is allowed: its name never means
// anything else.
func (t *tx) removeTag(tag string, to target, retire bool) error {
	var protected bool
	var l locks
	if _, err := t.row(`SELECT protected, locks FROM tag WHERE repo = ? AND name = ?`, []any{to.repo, tag}, &protected, &l); err != nil {
		return err
	}
	if protected && !retire {
		return fmt.Errorf("%w: %s:%s is the unique tag of a run: only an administrator deletes it (kiln tag untag)", ErrTagProtected, to.repository, tag)
	}
	if err := (l | to.locks).locked(keeps, imageName(to.repository, tag)); err != nil {
		return err
	}
	if protected {
		err := t.exec(`INSERT INTO retired_tag (repo, name, digest) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`, to.repo, tag, to.digest)
		if err != nil {
			return err
		}
	}
	if err := t.exec(`DELETE FROM tag WHERE repo = ? AND name = ?`, to.repo, tag); err != nil {
		return err
	}
	if err := t.remember(tag, to, nil, origin{}); err != nil {
		return err
	}
	return t.record(OutboxEvent{Type: ImageDeleted, Repository: to.repository, Tag: tag, Digest: to.digest, MediaType: to.mediaType})
}

// remember writes the history of a tag; a nil digest says that it was deleted. Nobody asks for that of
// kiln's own repositories.
func (t *tx) remember(tag string, to target, digest any, by origin) error {
	if isReserved(to.repository) {
		return nil
	}
	return t.exec(`INSERT INTO tag_history (repo, tag, digest, at, run, attempt, step) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		to.repo, tag, digest, t.millis(), by.run, by.attempt, by.step)
}

// DeleteTag deletes a tag; its manifest stays. A protected or locked tag is refused.
func (s *Store) DeleteTag(ctx context.Context, repository, tag string) error {
	return s.untag(ctx, repository, tag, false)
}

// Untag is DeleteTag for administrators: it also retires unique tags of runs.
func (s *Store) Untag(ctx context.Context, repository, tag string) error {
	return s.untag(ctx, repository, tag, true)
}

func (s *Store) untag(ctx context.Context, repository, tag string, retire bool) error {
	return s.write.do(ctx, func(t *tx) error {
		to := target{repository: repository}
		ok, err := t.row(`SELECT r.id, r.locks, m.id, m.digest, m.media_type FROM repository r
			JOIN tag t ON t.repo = r.id
			JOIN manifest m ON m.id = t.manifest
			WHERE r.name = ? AND t.name = ?`, []any{repository, tag}, &to.repo, &to.locks, &to.manifest, &to.digest, &to.mediaType)
		if err != nil {
			return err
		}
		if !ok {
			return manifestUnknown(repository, tag)
		}
		if err := t.removeTag(tag, to, retire); err != nil {
			return err
		}
		// Retention counts from when it lost its tag.
		return t.exec(`UPDATE manifest SET touched = max(touched, ?) WHERE id = ?`, t.millis(), to.manifest)
	})
}

// Tags returns up to n tags of a repository in the order of their bytes, those after the given one.
func (s *Store) Tags(ctx context.Context, repository, after string, n int) ([]string, error) {
	var repo int64
	var l locks
	ok, err := s.row(ctx, `SELECT id, locks FROM repository WHERE name = ?`, []any{repository}, &repo, &l)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, repositoryUnknown(repository)
	}
	if err := l.locked(lockList, repository); err != nil {
		return nil, err
	}
	// They come as one text, joined by what is in no tag: ten thousand rows would take several times as long.
	var names sql.NullString
	_, err = s.row(ctx, `SELECT group_concat(name, ' ') FROM
		(SELECT name FROM tag WHERE repo = ? AND name > ? AND locks & ? = 0 ORDER BY name LIMIT ?)`, []any{repo, after, lockList, n}, &names)
	if err != nil || names.String == "" {
		return nil, err
	}
	return strings.Split(names.String, " "), nil
}

// Repositories returns up to n repositories in the order of their bytes, those after the given one.
// It leaves out those without a manifest, those with the lock list and kiln's own.
func (s *Store) Repositories(ctx context.Context, after string, n int) ([]string, error) {
	rows, err := s.rows(ctx, `SELECT name FROM repository r
		WHERE name > ? AND internal = 0 AND locks & ? = 0 AND manifests > 0
		ORDER BY name LIMIT ?`, after, lockList, n)
	if err != nil {
		return nil, err
	}
	return collectStrings(rows)
}
