package registry

import (
	"context"
	"fmt"
)

// target is a manifest that a tag names.
type target struct {
	repository string
	repo       int64
	manifest   int64
	digest     string
	mediaType  string
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
	)
	exists, err := t.row(`SELECT t.manifest, m.digest, t.protected FROM tag t JOIN manifest m ON m.id = t.manifest
		WHERE t.repo = ? AND t.name = ?`, []any{to.repo, tag}, &current, &digest, &protected)
	if err != nil {
		return false, err
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
	}
	err = t.exec(`INSERT INTO tag (repo, name, manifest, protected, created, updated) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (repo, name) DO UPDATE SET manifest = excluded.manifest, updated = excluded.updated`,
		to.repo, tag, to.manifest, by.unique, t.millis(), t.millis())
	if err != nil {
		return false, err
	}
	if err := t.remember(tag, to, to.digest, by); err != nil {
		return false, err
	}
	return true, t.record(OutboxEvent{Type: ImagePushed, Repository: to.repository, Tag: tag, Digest: to.digest,
		MediaType: to.mediaType, Run: by.run, Attempt: by.attempt, Step: by.step})
}

// removeTag deletes a tag that names to.
func (t *tx) removeTag(tag string, to target) error {
	n, err := t.change(`DELETE FROM tag WHERE repo = ? AND name = ? AND protected = 0`, to.repo, tag)
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("%w: %s:%s is the unique tag of a run: it cannot be deleted", ErrTagProtected, to.repository, tag)
	}
	if err := t.remember(tag, to, nil, origin{}); err != nil {
		return err
	}
	return t.record(OutboxEvent{Type: ImageDeleted, Repository: to.repository, Tag: tag, Digest: to.digest, MediaType: to.mediaType})
}

// remember writes the history of a tag; a nil digest says that it was deleted.
func (t *tx) remember(tag string, to target, digest any, by origin) error {
	return t.exec(`INSERT INTO tag_history (repo, tag, digest, at, run, attempt, step) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		to.repo, tag, digest, t.millis(), by.run, by.attempt, by.step)
}

// DeleteTag deletes a tag; its manifest stays. A protected tag is refused.
func (s *Store) DeleteTag(ctx context.Context, repository, tag string) error {
	return s.write.do(ctx, func(t *tx) error {
		to := target{repository: repository}
		ok, err := t.row(`SELECT r.id, m.id, m.digest, m.media_type FROM repository r
			JOIN tag t ON t.repo = r.id
			JOIN manifest m ON m.id = t.manifest
			WHERE r.name = ? AND t.name = ?`, []any{repository, tag}, &to.repo, &to.manifest, &to.digest, &to.mediaType)
		if err != nil {
			return err
		}
		if !ok {
			return manifestUnknown(repository, tag)
		}
		return t.removeTag(tag, to)
	})
}

// Tags returns up to n tags of a repository in the order of their bytes, those after the given one.
func (s *Store) Tags(ctx context.Context, repository, after string, n int) ([]string, error) {
	var repo int64
	ok, err := s.row(ctx, `SELECT id FROM repository WHERE name = ?`, []any{repository}, &repo)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrRepositoryUnknown, repository)
	}
	rows, err := s.rows(ctx, `SELECT name FROM tag WHERE repo = ? AND name > ? ORDER BY name LIMIT ?`, repo, after, n)
	if err != nil {
		return nil, err
	}
	return collectStrings(rows)
}

// Repositories returns up to n repositories in the order of their bytes, those after the given one.
// It leaves out those without a manifest and kiln's own.
func (s *Store) Repositories(ctx context.Context, after string, n int) ([]string, error) {
	rows, err := s.rows(ctx, `SELECT name FROM repository r
		WHERE name > ? AND name NOT GLOB ? AND EXISTS (SELECT 1 FROM manifest WHERE repo = r.id)
		ORDER BY name LIMIT ?`, after, reserved+"*", n)
	if err != nil {
		return nil, err
	}
	return collectStrings(rows)
}
