package registry

import (
	"context"
	"fmt"
	"slices"
)

// Locks say what is refused about a repository, manifest or tag. Those of a repository hold for all that
// is in it.
type locks int

const (
	lockWrite  locks = 1 << iota // neither changed nor deleted
	lockDelete                   // not deleted
	lockRead                     // not pulled
	lockList                     // not listed
)

// lockNames are the locks by name, in the order of their bits.
var lockNames = []string{"write", "delete", "read", "list"}

// keeps are the locks that refuse a deletion.
const keeps = lockWrite | lockDelete

func parseLocks(names []string) (l locks, err error) {
	for _, n := range names {
		i := slices.Index(lockNames, n)
		if i < 0 {
			return 0, fmt.Errorf("%w: lock %q: want write, delete, read or list", ErrInvalid, clip(n))
		}
		l |= 1 << i
	}
	return l, nil
}

// names returns the locks that are set; none is nil.
func (l locks) names() (out []string) {
	for i, n := range lockNames {
		if l&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return out
}

// locked refuses to do something to what, for one of the locks among mask.
func (l locks) locked(mask locks, what string) error {
	if l&mask == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s has the lock %q: take that off first with kiln repo, manifest or tag unlock", ErrLocked, what, (l & mask).names()[0])
}

// Lock sets and takes off locks, named write, delete, read and list, of a repository or, with a reference,
// of a manifest (by digest) or a tag. It returns those that are set then. Kiln's own repositories have none.
func (s *Store) Lock(ctx context.Context, repository, reference string, set, unset []string) ([]string, error) {
	on, err := parseLocks(set)
	if err != nil {
		return nil, err
	}
	off, err := parseLocks(unset)
	if err != nil {
		return nil, err
	}
	if isReserved(repository) {
		return nil, fmt.Errorf("%w: %s: repositories below %s are kiln's own", ErrInvalid, repository, reserved)
	}
	var now locks
	err = s.write.do(ctx, func(t *tx) error {
		var row, repo int64
		ok, err := t.row(`SELECT id, locks FROM repository WHERE name = ?`, []any{repository}, &repo, &now)
		if err != nil {
			return err
		}
		if !ok {
			return repositoryUnknown(repository)
		}
		query, args := `UPDATE repository SET locks = ? WHERE id = ?`, []any{repo}
		switch {
		case reference == "":
		case isDigest(reference):
			ok, err = t.row(`SELECT id, locks FROM manifest WHERE repo = ? AND digest = ?`, []any{repo, reference}, &row, &now)
			query, args = `UPDATE manifest SET locks = ? WHERE id = ?`, []any{row}
		default:
			ok, err = t.row(`SELECT locks FROM tag WHERE repo = ? AND name = ?`, []any{repo, reference}, &now)
			query, args = `UPDATE tag SET locks = ? WHERE repo = ? AND name = ?`, []any{repo, reference}
		}
		if err != nil {
			return err
		}
		if !ok {
			return manifestUnknown(repository, reference)
		}
		now = now&^off | on
		return t.exec(query, append([]any{now}, args...)...)
	})
	return now.names(), err
}

func repositoryUnknown(name string) error {
	return fmt.Errorf("%w: %s", ErrRepositoryUnknown, clip(name))
}
