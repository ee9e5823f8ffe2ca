package git

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"
)

const (
	maxChanged = 20_000 // paths; more are not told
	maxDepth   = 256    // directories in each other
)

// errUnknown ends a comparison that would be too long, or whose older side cannot be read.
var errUnknown = errors.New("differences are not known")

// ChangedFiles returns the paths, sorted, at which two commits differ. It is not known when a commit
// cannot be had any more (after a forced push, say) or holds what no context may hold, when from is
// empty, or when the changes are very many; who filters by path takes that for a match.
func (m *Mirrors) ChangedFiles(ctx context.Context, url, from, to string, cred Credential) (paths []string, known bool, err error) {
	r, cred, err := m.target(url, cred)
	if err != nil {
		return nil, false, err
	}
	if !isCommit(to) {
		return nil, false, r.fail(ctx, cred, to, fmt.Errorf("%w: give all 40 digits of the commit", ErrRefNotFound))
	}
	if !isCommit(from) || plumbing.NewHash(from).IsZero() {
		return nil, false, nil
	}
	ctx, cancel := context.WithCancel(ctx) // unpins
	defer cancel()
	next, err := m.open(ctx, r, Ref{Commit: to, Base: from}, cred)
	if err != nil {
		return nil, false, r.fail(ctx, cred, to, err)
	}
	prev, err := m.open(ctx, r, Ref{Commit: from}, cred)
	if unusable(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, r.fail(ctx, cred, from, err)
	}
	d := differ{from: prev, to: next}
	switch err := d.trees(ctx, prev.root, next.root, "", 0); {
	case errors.Is(err, errUnknown):
		return nil, false, nil
	case err != nil:
		return nil, false, r.fail(ctx, cred, to, err)
	}
	slices.Sort(d.paths)
	return d.paths, true, nil
}

// unusable reports whether a commit is gone or beyond what is allowed, for good.
func unusable(err error) bool {
	return errors.Is(err, ErrRefNotFound) || errors.Is(err, ErrBadTree) || errors.Is(err, ErrTooLarge)
}

// A differ lists the differences of two commits.
type differ struct {
	from, to *snapshot
	paths    []string
}

func (d *differ) trees(ctx context.Context, a, b plumbing.Hash, dir string, depth int) error {
	if a == b {
		return nil
	}
	if depth > maxDepth {
		return errUnknown
	}
	left, err := list(ctx, d.from, a)
	if unusable(err) {
		return errUnknown
	}
	if err != nil {
		return err
	}
	right, err := list(ctx, d.to, b)
	if err != nil {
		return err
	}
	for len(left) > 0 || len(right) > 0 {
		var l, r entry
		if len(right) == 0 || len(left) > 0 && left[0].name <= right[0].name {
			l = left[0]
		}
		if len(left) == 0 || len(right) > 0 && right[0].name <= left[0].name {
			r = right[0]
		}
		if l.name != "" {
			left = left[1:]
		}
		if r.name != "" {
			right = right[1:]
		}
		if err := d.entries(ctx, l, r, dir, depth); err != nil {
			return err
		}
	}
	return nil
}

// entries compares what two commits have under one name; the zero entry is nothing.
func (d *differ) entries(ctx context.Context, l, r entry, dir string, depth int) error {
	if l == r {
		return nil
	}
	name := path.Join(dir, max(l.name, r.name))
	lt, rt := subtree(l), subtree(r)
	if l.name != "" && lt.IsZero() || r.name != "" && rt.IsZero() {
		if len(d.paths) >= maxChanged {
			return errUnknown
		}
		d.paths = append(d.paths, name)
	}
	return d.trees(ctx, lt, rt, name, depth+1)
}

// subtree returns the directory that an entry is, or zero.
func subtree(e entry) plumbing.Hash {
	if e.mode.IsDir() && !e.link {
		return e.id
	}
	return plumbing.ZeroHash
}

func list(ctx context.Context, sn *snapshot, h plumbing.Hash) ([]entry, error) {
	if h.IsZero() {
		return nil, nil
	}
	return sn.tree(ctx, h)
}

// verify checks that all of a commit is in the generation, given that all of the haves is. It reads the
// directories that differ and no more.
func (g *generation) verify(ctx context.Context, commit plumbing.Hash, haves []plumbing.Hash) error {
	root, err := g.root(ctx, commit)
	if err != nil {
		return err
	}
	seen := map[plumbing.Hash]bool{}
	base, err := g.root(ctx, haves[0])
	if err != nil {
		return err
	}
	return g.verifyTree(ctx, root, base, seen, 0)
}

func (g *generation) verifyTree(ctx context.Context, h, base plumbing.Hash, seen map[plumbing.Hash]bool, depth int) error {
	if h == base || seen[h] {
		return nil
	}
	if depth > maxDepth {
		return fmt.Errorf("%w: more than %d directories in each other", ErrBadTree, maxDepth)
	}
	seen[h] = true
	entries, err := g.list(ctx, h)
	if err != nil {
		return err
	}
	olds, err := g.list(ctx, base)
	if err != nil && !errors.Is(err, ErrBadTree) { // what is wrong with another commit is not this one's fault
		return err
	}
	for _, e := range entries {
		old, _ := find(olds, e.name)
		err = nil
		switch {
		case e.id == old.id || e.link:
		case e.mode.IsDir():
			err = g.verifyTree(ctx, e.id, subtree(old), seen, depth+1)
		case !seen[e.id]:
			seen[e.id] = true
			_, err = g.readers.size(ctx, e.id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *generation) list(ctx context.Context, h plumbing.Hash) ([]entry, error) {
	if h.IsZero() {
		return nil, nil
	}
	b, err := g.readers.read(ctx, plumbing.TreeObject, h, maxTreeObject)
	if err != nil {
		return nil, err
	}
	return decodeTree(b)
}

func (g *generation) root(ctx context.Context, commit plumbing.Hash) (plumbing.Hash, error) {
	_, c, err := peel(commit, func(h plumbing.Hash) ([]byte, error) {
		return g.readers.read(ctx, plumbing.AnyObject, h, maxCommit)
	})
	return plumbing.NewHash(c.Tree), err
}
