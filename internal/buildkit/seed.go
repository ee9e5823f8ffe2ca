package buildkit

import (
	"context"
	"slices"
	"sync"

	"github.com/moby/buildkit/client/llb"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/buildkit/treefs"
)

const (
	// A tree of fewer bytes and entries than these is transferred as a whole: a layer of changes saves nothing.
	smallTree    = 4 << 20
	smallEntries = 200
	// A tree of which the daemon has nothing is shown to it if it is larger than these: it would take too long
	// to transfer while a step waits.
	shownTree    = 16 << 20
	shownEntries = 1000
	// What differs from the base by more than this part of it becomes a base itself.
	changedPart = 4
	// maxRemoved is how many entries a layer of changes may take away: each is an instruction.
	maxRemoved = 500
	// maxVersions is how many trees on one base are remembered.
	maxVersions = 16
	// maxSeedEntries is of how many entries in all the listings are kept, at about 60 bytes each.
	maxSeedEntries = 500_000
)

// seeds are the source trees that the daemon holds, as far as this process knows, by source key: those of
// which a run's workspace can be made without transferring or copying them again.
//
// A tree lies on the daemon as it was transferred, the base, or as a layer of changes over its base. It is
// found again by the cache key of that transfer, which names the session that has made it. The daemon may
// have removed it to free disk; then it asks for a session that is gone, and the tree is transferred anew.
type seeds struct {
	mu      sync.Mutex
	byKey   map[string]*seedBase
	oldest  []string // keys, the one that was used longest ago first
	entries int      // of all listings
}

// A seedBase is a tree with what is known that lies over it.
type seedBase struct {
	listing  *listing
	state    llb.State
	versions []seedVersion // the newest last
}

type seedVersion struct {
	sum   uint64 // of the listing
	state llb.State
}

// find returns the base for a key, nil if there is none.
func (s *seeds) find(key string) *seedBase {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.byKey[key]
	if b == nil {
		return nil
	}
	s.use(key)
	found := *b
	return &found
}

func (s *seeds) use(key string) {
	s.oldest = append(slices.DeleteFunc(s.oldest, func(k string) bool { return k == key }), key)
}

// put makes a tree the base for a key.
func (s *seeds) put(key string, b *seedBase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(key)
	if len(b.listing.entries) > maxSeedEntries {
		return
	}
	if s.byKey == nil {
		s.byKey = map[string]*seedBase{}
	}
	s.byKey[key] = b
	s.entries += len(b.listing.entries) + 1
	s.use(key)
	for s.entries > maxSeedEntries {
		s.remove(s.oldest[0])
	}
}

func (s *seeds) remove(key string) {
	b := s.byKey[key]
	if b == nil {
		return
	}
	s.entries -= len(b.listing.entries) + 1
	delete(s.byKey, key)
	s.oldest = slices.DeleteFunc(s.oldest, func(k string) bool { return k == key })
}

// derive remembers a tree that lies over a base, if that is still the base for the key.
func (s *seeds) derive(key string, base *listing, v seedVersion) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.byKey[key]; b != nil && b.listing == base {
		if len(b.versions) >= maxVersions {
			b.versions = b.versions[1:]
		}
		b.versions = append(slices.Clone(b.versions), v) // others may be reading them
	}
}

// forget drops the base for a key, all if the key is empty.
func (s *seeds) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key != "" {
		s.remove(key)
		return
	}
	s.byKey, s.oldest, s.entries = nil, nil, 0
}

// version returns the state that a tree with the listing is, if the daemon has it.
func (b *seedBase) version(l *listing) (llb.State, bool) {
	if b.listing.sum == l.sum {
		return b.state, true
	}
	for _, v := range b.versions {
		if v.sum == l.sum {
			return v.state, true
		}
	}
	return llb.State{}, false
}

// uploads are the trees that a session hands to the daemon, by unguessable names: what the daemon keeps of
// a transfer under a name is that tree and no other.
type uploads struct {
	mu     sync.Mutex
	byName map[string]fsutil.FS
}

// LookupDir implements filesync.DirSource.
func (u *uploads) LookupDir(name string) (fsutil.FS, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	t, ok := u.byName[name]
	return t, ok
}

// upload offers a tree and returns what it is on the daemon once it has been transferred.
func (g *gateway) upload(what string, t fsutil.FS) llb.State {
	name := what + "-" + randomToken()
	g.uploads.mu.Lock()
	defer g.uploads.mu.Unlock()
	if g.uploads.byName == nil {
		g.uploads.byName = map[string]fsutil.FS{}
	}
	g.uploads.byName[name] = t
	return llb.Local(name, llb.SessionID(g.sessionID), llb.SharedKeyHint(name))
}

// seed returns the source tree as the daemon has it, nil if there is none. Only what differs from an
// earlier tree of the same source is transferred, and nothing is copied.
func (g *gateway) seed(ctx context.Context) (gwclient.Reference, error) {
	source := g.session.cfg.Source
	if source == nil {
		return nil, nil
	}
	files, err := rootOwned(tree{fs: source})
	if err != nil {
		return nil, err
	}
	key, known := g.session.sourceKey(), &g.session.client.seeds
	base := known.find(key)
	if base == nil {
		return g.whole(ctx, key, files)
	}
	now, diff, err := list(ctx, files, base.listing, nil)
	if err != nil {
		return nil, err
	}
	if ref, err := g.derived(ctx, key, base, now, diff); ref != nil || ctx.Err() != nil {
		return ref, err
	}
	known.forget(key) // whatever was wrong with it
	return g.whole(ctx, key, files)
}

// whole returns a source tree of which the daemon has nothing that is of use. A large one is shown to it where
// that can be done; what is read often of that is transferred when nobody waits for it, see retain.
func (g *gateway) whole(ctx context.Context, key string, files fsutil.FS) (gwclient.Reference, error) {
	dir, err := g.session.client.treesDir(ctx)
	if err != nil {
		return nil, err
	}
	tree := treefs.New()
	now, _, err := list(ctx, files, nil, tree.Add)
	if err != nil {
		return nil, err
	}
	if dir != "" && !now.small(shownTree, shownEntries) && tree.Seal() == nil {
		if ref, err := g.show(ctx, dir, tree, &transfer{key: key, listing: now, files: files}); ref != nil || ctx.Err() != nil {
			return ref, err
		}
	}
	return g.transfer(ctx, &transfer{key: key, listing: now, files: files})
}

// A transfer is a tree that becomes the base for its key.
type transfer struct {
	key     string
	listing *listing
	files   fsutil.FS
}

func (g *gateway) transfer(ctx context.Context, t *transfer) (gwclient.Reference, error) {
	b := &seedBase{listing: t.listing, state: g.upload("source", t.files)}
	ref, err := g.evaluate(ctx, b.state)
	if err == nil {
		g.session.client.seeds.put(t.key, b)
	}
	return ref, err
}

// apply returns what makes another tree of a base.
func (g *gateway) apply(diff *changes) *llb.FileAction {
	var do *llb.FileAction
	for _, p := range diff.removed {
		if do == nil {
			do = llb.Rm(p, llb.WithAllowNotFound(true))
		} else {
			do = do.Rm(p, llb.WithAllowNotFound(true))
		}
	}
	changed, how := g.upload("changes", diff), &llb.CopyInfo{CopyDirContentsOnly: true, AlwaysReplaceExistingDestPaths: true}
	if do == nil {
		return llb.Copy(changed, "/", "/", how)
	}
	return do.Copy(changed, "/", "/", how)
}

// derived returns a tree that the daemon has, or has with some changes, nil if it is to be transferred.
func (g *gateway) derived(ctx context.Context, key string, base *seedBase, now *listing, diff *changes) (gwclient.Reference, error) {
	state, known := base.version(now)
	if !known {
		if diff.tooMany || now.small(smallTree, smallEntries) {
			return nil, nil
		}
		state = base.state.File(g.apply(diff))
	}
	ref, err := g.evaluate(ctx, state)
	if err == nil && !known {
		g.session.client.seeds.derive(key, base.listing, seedVersion{now.sum, state})
	}
	return ref, err
}
