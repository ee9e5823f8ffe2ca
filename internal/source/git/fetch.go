package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"
)

// maxHaves is how many commits a fetch says it has. The newest have most of the files of any other; each more
// costs the server time.
const maxHaves = 6

// maxFollowing is how many objects commits may have in addition to the commit that they are said to follow.
const maxFollowing = 1000

// received is what a fetch added.
type received struct {
	bytes int64
	loose int // objects stored one by one
}

// A dialer opens the session that a fetch needs. Whoever made the dialer closes the session.
type dialer func(ctx context.Context) (*session, error)

// over is the dialer of a session that is open.
func over(s *session) dialer { return func(context.Context) (*session, error) { return s, nil } }

// ensure makes the commit present, fetching what is missing, and returns the generation that has it, pinned.
// A generation that is found damaged is named by not: another one is made.
func (m *Mirrors) ensure(ctx context.Context, mi *mirror, h Head, not *generation, dial dialer) (*generation, error) {
	commit := plumbing.NewHash(h.Commit)
	select {
	case mi.fetching <- struct{}{}:
		defer func() { <-mi.fetching }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if g, ok := m.pin(mi, commit, not); ok {
		return g, nil
	}
	s, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	err = m.grow(ctx, s, mi, h, not)
	if err != nil && errors.Is(err, errDamaged) && ctx.Err() == nil {
		// What was here is broken, or the server sent less than all: without it, from the start.
		m.log.Warn("git mirror is damaged, fetching it anew", "dir", mi.dir, "err", err)
		err = m.renew(ctx, s, mi, h)
	}
	if err != nil {
		return nil, err
	}
	g, ok := m.pin(mi, commit, not)
	if !ok {
		return nil, fmt.Errorf("%w: the mirror was closed", ErrUnavailable)
	}
	m.evict()
	return g, nil
}

func (m *Mirrors) grow(ctx context.Context, s *session, mi *mirror, h Head, not *generation) error {
	m.mu.Lock()
	g := mi.gen
	anew := g == nil || g == not || g.overgrown()
	m.mu.Unlock()
	if anew {
		return m.renew(ctx, s, mi, h)
	}
	return m.fetch(ctx, s, g, h)
}

// renew fetches the commit into a new generation, which then replaces the present one.
func (m *Mirrors) renew(ctx context.Context, s *session, mi *mirror, h Head) error {
	m.mu.Lock()
	n := 1
	if mi.gen != nil {
		n = mi.gen.number + 1
	}
	m.mu.Unlock()
	g := newGeneration(filepath.Join(mi.dir, strconv.Itoa(n)), n)
	if err := os.RemoveAll(g.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return err
	}
	err := openStorage(g.dir).Init()
	if err == nil {
		err = m.fetch(ctx, s, g, h)
	}
	if err != nil {
		g.readers.close()
		return errors.Join(err, os.RemoveAll(g.dir))
	}
	m.replace(mi, g)
	return nil
}

// fetch gets the commit: alone, as a difference to what is here; or, where the server does not do that,
// with its history.
func (m *Mirrors) fetch(ctx context.Context, s *session, g *generation, h Head) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	commit, want := plumbing.NewHash(h.Commit), s.refs.want(h)
	if m.follow(ctx, s, g, commit, want, cancel) {
		return nil
	}
	shallow := s.refs.caps.Supports(capability.Shallow)
	if shallow && (s.advertised(want) || s.lenient()) {
		haves := m.haves(g, false, maxHaves)
		got, err := m.transfer(ctx, s, g, request{wants: []plumbing.Hash{want}, haves: haves}, cancel)
		if err == nil {
			err = m.settle(ctx, g, commit, haves, false, got)
		}
		if err == nil || s.resumed || !notOurRef(err) {
			return err
		}
	}
	if _, once := s.wire.(*sshWire); once && shallow && s.lenient() {
		return fmt.Errorf("%w: the server does not give out this commit", ErrRefNotFound)
	}
	return m.fetchHistory(ctx, s, g, commit, want, cancel)
}

// follow gets a commit that is said to follow one that is here: what comes after that, and no more. To a
// server that is less work than the difference between two commits of which it does not know how they are
// related, for which it walks all directories of one. It takes it that what is here has its history; if that
// misses something, or the commit follows no such one, it is fetched in the other ways.
func (m *Mirrors) follow(ctx context.Context, s *session, g *generation, commit, want plumbing.Hash, cancel context.CancelCauseFunc) bool {
	if _, again := s.wire.(*httpWire); !again || s.base.IsZero() || !m.has(g, s.base) {
		return false
	}
	haves := []plumbing.Hash{s.base}
	got, err := m.transfer(ctx, s, g, request{wants: []plumbing.Hash{want}, haves: haves, full: true, few: true}, cancel)
	if err == nil {
		err = m.settle(ctx, g, commit, haves, false, got)
	}
	if err != nil {
		m.log.Debug("commit does not just follow another", "commit", commit, "base", s.base, "err", err)
	}
	return err == nil
}

// fetchHistory gets the commit with its history: from its ref, or from all branches and tags.
func (m *Mirrors) fetchHistory(ctx context.Context, s *session, g *generation, commit, want plumbing.Hash, cancel context.CancelCauseFunc) error {
	wants := []plumbing.Hash{want}
	if !s.advertised(want) {
		wants = s.refs.tips()
	}
	if len(wants) == 0 {
		return fmt.Errorf("%w: the repository has no branch", ErrRefNotFound)
	}
	haves := m.haves(g, true, maxHaves)
	got, err := m.transfer(ctx, s, g, request{wants: wants, haves: haves, full: true}, cancel)
	if err != nil {
		return err
	}
	if _, err := g.readers.read(ctx, plumbing.CommitObject, commit, maxCommit); err != nil {
		return fmt.Errorf("%w: no branch or tag contains this commit", ErrRefNotFound)
	}
	return m.settle(ctx, g, commit, nil, true, got)
}

// settle checks what a fetch brought and records it.
func (m *Mirrors) settle(ctx context.Context, g *generation, commit plumbing.Hash, haves []plumbing.Hash, full bool, got received) error {
	if len(haves) > 0 {
		if err := g.verify(ctx, commit, haves); err != nil {
			return err
		}
	}
	if _, err := g.readers.read(ctx, plumbing.AnyObject, commit, maxCommit); err != nil {
		return err
	}
	return m.record(g, commit, full, got)
}

func (s *session) advertised(h plumbing.Hash) bool {
	for _, tip := range s.refs.heads {
		if tip == h {
			return true
		}
	}
	return false
}

// lenient reports whether the server may give out commits that no ref names. Over HTTP git does so for
// what is reachable.
func (s *session) lenient() bool {
	_, http := s.wire.(*httpWire)
	return http || s.refs.caps.Supports(capability.AllowReachableSHA1InWant) ||
		s.refs.caps.Supports("allow-any-sha1-in-want")
}

// notOurRef recognises a server's refusal to give out a commit that is no ref's. Servers say so in
// words of their own, or just hang up.
func notOurRef(err error) bool {
	var r *refusal
	return errors.As(err, &r) || errors.Is(err, io.ErrUnexpectedEOF)
}

// transfer fetches one pack and stores it.
func (m *Mirrors) transfer(ctx context.Context, s *session, g *generation, req request, cancel context.CancelCauseFunc) (received, error) {
	pack, err := s.pack(ctx, req, cancel)
	if err != nil {
		return received{}, err
	}
	defer pack.Close()
	in := &counter{r: pack}
	guard := newGuard(in, m.lim)
	if req.few {
		guard.objects = maxFollowing
	}
	defer guard.stop()
	var got received
	if len(req.haves) > 0 {
		err = g.storeLoose(guard)
		got.loose = int(guard.count)
	} else {
		err = g.storePack(guard)
	}
	if err != nil {
		sweep(g.dir)
		if guard.err != nil && !errors.Is(guard.err, io.ErrUnexpectedEOF) {
			err = guard.err
		}
		return received{}, causeOf(ctx, err)
	}
	got.bytes = in.n + int64(got.loose)<<10
	return got, nil
}

// storePack stores a pack as it is, with an index.
func (g *generation) storePack(guard *guard) error {
	st := openStorage(g.dir)
	defer st.Close()
	w, err := st.PackfileWriter()
	if err != nil {
		return err
	}
	sizes := map[plumbing.Hash]int64{}
	if pw, ok := w.(*dotgit.PackWriter); ok {
		pw.Notify = sizesInto(sizes, guard)
	}
	_, err = io.Copy(w, guard)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	g.readers.addPack(sizes)
	return nil
}

// storeLoose stores the objects of a pack one by one: it may hold differences to objects that are here.
func (g *generation) storeLoose(guard *guard) error {
	st := openStorage(g.dir)
	defer st.Close()
	p, err := packfile.NewParserWithStorage(packfile.NewScanner(guard), st)
	if err != nil {
		return err
	}
	if _, err := p.Parse(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, guard)
	return err
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}

// sizesInto fills in the sizes of a pack's objects, which the guard knows by offset.
func sizesInto(sizes map[plumbing.Hash]int64, guard *guard) func(plumbing.Hash, *idxfile.Writer) {
	return func(_ plumbing.Hash, w *idxfile.Writer) {
		idx, err := w.Index()
		if err != nil {
			return
		}
		it, err := idx.Entries()
		if err != nil {
			return
		}
		defer it.Close()
		for e, err := it.Next(); err == nil; e, err = it.Next() {
			if n, ok := guard.sizes[int64(e.Offset)]; ok {
				sizes[e.Hash] = n
			}
		}
	}
}
