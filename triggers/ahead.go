package triggers

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/event"
	"kiln/internal/source/git"
)

const (
	aheadAtOnce  = 4                // commits fetched ahead
	aheadWaiting = 16               // that wait for that; more are not fetched ahead
	aheadWithin  = 30 * time.Second // one is fetched or given up
)

// An aheadFetch is a commit that a run is about to need.
type aheadFetch struct {
	entry *entry
	ref   git.Ref
}

// fetchAhead has the commit of a run that is due fetched while the decision is stored and the run finds its
// worker, which then finds the commit in the mirrors of this process, or waits for the rest of it. The run
// does not depend on it: what cannot be had now, or in time, its worker fetches. A commit that nobody has just
// pushed is there already, and what may never run, or comes from outside, is not fetched ahead.
func (d *Decider) fetchAhead(p *pass, dec *event.Decision) {
	made := &dec.Made
	if d.Mirrors == nil || dec.Run == nil || made.Pin.Commit == "" || made.NeedsApproval || made.Restricted || p.push == nil && p.pull == nil {
		return
	}
	ref := git.Ref{URL: p.location, Ref: p.head.Ref, Commit: made.Pin.Commit}
	if p.push != nil && !p.push.Forced && p.push.After == ref.Commit {
		ref.Base = p.push.Before
	}
	select {
	case d.ahead <- aheadFetch{entry: p.entry, ref: ref}:
	default: // there is more than can be fetched before it is needed
	}
}

// runAhead fetches ahead until ctx is done.
func (d *Decider) runAhead(ctx context.Context, g *errgroup.Group) {
	for range aheadAtOnce {
		g.Go(func() error {
			for {
				select {
				case f := <-d.ahead:
					if err := d.prefetch(ctx, f); err != nil && ctx.Err() == nil {
						d.Log.Debug("commit not fetched ahead", "task", f.entry.task.Name, "commit", f.ref.Commit, "err", err)
					}
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
}

func (d *Decider) prefetch(ctx context.Context, f aheadFetch) error {
	ctx, cancel := context.WithTimeout(ctx, aheadWithin)
	defer cancel()
	cred, err := d.credential(ctx, f.entry)
	if err != nil {
		return err
	}
	return d.Mirrors.Prefetch(ctx, f.ref, cred)
}
