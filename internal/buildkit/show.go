package buildkit

import (
	"context"
	"errors"
	"sync"

	"github.com/moby/buildkit/client/llb"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"

	"kiln/internal/buildkit/treefs"
)

// A shown tree is one that the daemon reads from this process, through a mount. It is made at most once in a
// session.
type shown struct {
	mu    sync.Mutex
	mount *treefs.Mount // nil if there is none
	of    *transfer     // what the mount makes unnecessary
}

// treePrefix begins the names of mounted trees on the daemon.
const treePrefix = "kiln-tree-"

// treesDir returns where the daemon takes trees that are mounted, "" if it does not.
func (c *Client) treesDir(ctx context.Context) (string, error) {
	if c.link.network != "unix" || c.unshown.Load() >= maxUnshown {
		return "", nil // it is on another machine, perhaps
	}
	w, err := c.worker.get(ctx, c.firstWorker)
	if err != nil {
		return "", err
	}
	return w.Labels[treefs.Label], nil
}

// maxUnshown is how often in a row a tree could not be shown until it is not tried any more: there is no
// /dev/fuse, or the daemon has another view of the disk.
const maxUnshown = 3

// show mounts a tree and returns what it is on the daemon, nil if it has to be transferred.
func (g *gateway) show(ctx context.Context, dir string, tree *treefs.Tree, of *transfer) (gwclient.Reference, error) {
	s := &g.shown
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount != nil {
		return nil, nil // an earlier attempt to make the workspace has failed
	}
	name := treePrefix + g.session.token
	m, err := treefs.Show(dir, name, tree, of.files.Open)
	if err != nil {
		g.session.client.unshown.Add(1)
		return nil, err
	}
	ref, err := g.evaluate(ctx, llb.NewState(llb.NewSource(treefs.Scheme+"://"+name, nil, llb.Constraints{}).Output()))
	if err != nil {
		if _, engine := g.failure(ctx, err); !engine {
			g.session.client.unshown.Add(1) // the daemon does not see what is mounted here
		}
		return nil, errors.Join(err, m.End())
	}
	g.session.client.unshown.Store(0)
	s.mount, s.of = m, of
	return ref, nil
}

// readPart of a shown tree's files have to have been read to make it worth its transfer: a step that reads a
// few of many gets them faster this way.
const readPart = 4

// Retain transfers the source if it was shown to the daemon and much was read of it: a step reads faster from
// the daemon's own disk. Only one source is transferred at a time, others have to wait for their next session.
func (s *runSession) Retain(ctx context.Context) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return
	}
	defer end()
	g, opened := s.gateway.peek()
	if !opened || !s.client.retaining.TryLock() {
		return
	}
	defer s.client.retaining.Unlock()
	t := g.shown.worthwhile()
	if t == nil || s.client.seeds.find(t.key) != nil {
		return
	}
	ctx, cancel := g.while(ctx)
	defer cancel()
	_, _ = g.transfer(ctx, t) // the next session shows the source again
}

// worthwhile returns the transfer of the tree, if that is better than to show it again.
func (s *shown) worthwhile() *transfer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount == nil || len(s.of.listing.entries) > maxSeedEntries || s.mount.Read() < int64(len(s.of.listing.entries)/readPart) {
		return nil
	}
	return s.of
}

// end unmounts the tree, if there is one.
func (s *shown) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mount == nil {
		return nil
	}
	m := s.mount
	s.mount = nil
	return m.End()
}
