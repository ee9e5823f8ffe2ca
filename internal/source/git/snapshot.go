package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
)

// A snapshot is one commit of one mirror, pinned: what it consists of can be read. If the mirror turns
// out to be damaged, it is fetched anew while it is read.
type snapshot struct {
	m      *Mirrors
	remote remote
	cred   Credential
	head   Head
	base   plumbing.Hash // see Ref.Base; zero if it is not known
	commit Commit
	root   plumbing.Hash

	mu       sync.Mutex
	mirror   *mirror
	gen      *generation
	repaired bool
	released bool
}

// open makes a commit present and pins it until ctx ends.
func (m *Mirrors) open(ctx context.Context, r remote, ref Ref, cred Credential) (*snapshot, error) {
	mi, err := m.mirror(r)
	if err != nil {
		return nil, err
	}
	defer m.unpinMirror(mi)
	sn := &snapshot{m: m, remote: r, cred: cred, mirror: mi, head: Head{Commit: ref.Commit}}
	if isCommit(ref.Base) {
		sn.base = plumbing.NewHash(ref.Base)
	}
	if strings.HasPrefix(ref.Ref, "refs/") {
		sn.head.Ref = ref.Ref
	}
	if err := sn.obtain(ctx, ref.Ref); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, sn.release)
	id, c, err := peel(plumbing.NewHash(sn.head.Commit), func(h plumbing.Hash) ([]byte, error) {
		return sn.read(ctx, plumbing.AnyObject, h, maxCommit)
	})
	if err != nil {
		sn.release()
		return nil, err
	}
	sn.commit, sn.head.Commit, sn.root = c, id.String(), plumbing.NewHash(c.Tree)
	return sn, nil
}

// obtain finds out which commit is meant and makes it present. The server is asked, unless it accepted
// the same credential a moment ago and all is known and here.
func (sn *snapshot) obtain(ctx context.Context, ref string) (err error) {
	m := sn.m
	known := isCommit(sn.head.Commit) && m.access.proven(sn.remote, sn.cred)
	if known {
		if g, ok := m.pin(sn.mirror, plumbing.NewHash(sn.head.Commit), nil); ok {
			sn.gen = g
			return nil
		}
	}
	ctx, cancel := m.bounded(ctx)
	defer cancel(nil)
	if known {
		if sn.gen, err = m.openKnown(ctx, sn); !errors.Is(err, errAskAnew) {
			return err
		}
	}
	s, err := m.connect(ctx, sn.remote, sn.cred)
	if err != nil {
		return err
	}
	defer s.close()
	if sn.head.Commit == "" {
		if sn.head, err = s.refs.resolve(ref); err != nil {
			return err
		}
	} else if full, err := s.refs.resolve(ref); err == nil && ref != "" && full.Ref != "" {
		sn.head.Ref = full.Ref
	}
	sn.gen, err = m.ensure(ctx, sn.mirror, sn.head, nil, over(s))
	return err
}

func (sn *snapshot) release() {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if !sn.released {
		sn.released = true
		sn.m.unpin(sn.gen)
	}
}

func (sn *snapshot) generation() (*generation, error) {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if sn.released {
		return nil, errors.New("the source is closed")
	}
	return sn.gen, nil
}

// read returns an object, verified.
func (sn *snapshot) read(ctx context.Context, t plumbing.ObjectType, h plumbing.Hash, limit int64) (b []byte, err error) {
	err = sn.try(ctx, func(rs *readers) error {
		b, err = rs.read(ctx, t, h, limit)
		return err
	})
	return b, err
}

// size returns the size of a file.
func (sn *snapshot) size(ctx context.Context, h plumbing.Hash) (n int64, err error) {
	err = sn.try(ctx, func(rs *readers) error {
		n, err = rs.size(ctx, h)
		return err
	})
	return n, err
}

// openBlob returns a reader of a large file.
func (sn *snapshot) openBlob(ctx context.Context, h plumbing.Hash) (rc io.ReadCloser, err error) {
	err = sn.try(ctx, func(rs *readers) error {
		rc, err = rs.open(ctx, h)
		return err
	})
	return rc, err
}

func (sn *snapshot) tree(ctx context.Context, h plumbing.Hash) ([]entry, error) {
	b, err := sn.read(ctx, plumbing.TreeObject, h, maxTreeObject)
	if err != nil {
		return nil, err
	}
	return decodeTree(b)
}

// try calls f, and once more after a repair if the mirror is damaged.
func (sn *snapshot) try(ctx context.Context, f func(*readers) error) error {
	g, err := sn.generation()
	if err != nil {
		return err
	}
	if err = f(g.readers); err == nil || ctx.Err() != nil || !errors.Is(err, errDamaged) {
		return err
	}
	g, rerr := sn.repair(ctx, g, err)
	if rerr != nil {
		return fmt.Errorf("%w; fetching it anew: %w", err, rerr)
	}
	return f(g.readers)
}

// repair moves the snapshot from a damaged generation to a new one.
func (sn *snapshot) repair(ctx context.Context, bad *generation, why error) (*generation, error) {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	switch {
	case sn.released:
		return nil, errors.New("the source is closed")
	case sn.gen != bad:
		return sn.gen, nil // somebody else has repaired it
	case sn.repaired:
		return nil, errors.New("that did not help")
	}
	sn.repaired = true
	sn.m.log.Warn("git mirror is damaged, fetching it anew", "repository", sn.remote.String(), "err", why)
	ctx, cancel := sn.m.bounded(ctx)
	defer cancel(nil)
	s, err := sn.m.connect(ctx, sn.remote, sn.cred)
	if err != nil {
		return nil, err
	}
	defer s.close()
	mi, err := sn.m.mirror(sn.remote)
	if err != nil {
		return nil, err
	}
	defer sn.m.unpinMirror(mi)
	g, err := sn.m.ensure(ctx, mi, sn.head, bad, over(s))
	if err != nil {
		return nil, err
	}
	sn.m.unpin(bad)
	sn.gen = g
	return g, nil
}
