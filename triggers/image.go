package triggers

import (
	"context"
	"errors"
	"fmt"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/store"
	"kiln/triggers/decide"
)

// imagePushed looks at the tasks that are built on an image of the co-located registry.
func (d *Decider) imagePushed(ctx context.Context, ev event.Event, occ *occasion) error {
	var e event.Image
	if err := decode(ev, &e); err != nil {
		return err
	}
	if e.Tag == "" {
		return nil // nobody follows a digest
	}
	name, err := graph.Canonical(e.Registry+"/"+e.Repository+":"+e.Tag, d.Aliases)
	if err != nil {
		return fmt.Errorf("%w: %s %s: %w", bus.ErrPoison, ev.Type, ev.ID, err)
	}
	users := d.cat.users(name)
	if len(users) == 0 {
		return nil
	}
	if e.Run != "" && !occ.dry {
		if err := d.recordPusher(ctx, ev, name, e); err != nil {
			return err
		}
	}
	return d.moved(ctx, occ, name, users)
}

// recordPusher stores which task's run pushed an image: a quiet window later it still counts.
func (d *Decider) recordPusher(ctx context.Context, ev event.Event, name graph.Name, e event.Image) error {
	r, _, err := d.Store.Runs.Get(ctx, e.Run)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	pushed := event.TrackedImage{Name: string(name), Digest: e.Digest, Seen: ev.Time, By: e.Run, ByTask: r.TaskUID}
	for key := event.Hash(string(name)); ; {
		known, revision, err := d.Store.Images.Get(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotFound):
			_, err = d.Store.Images.Create(ctx, key, pushed)
		case err == nil && known.Seen.After(pushed.Seen):
			return nil // events are decided side by side, and come again: this is not the last push
		case err == nil:
			_, err = d.Store.Images.Update(ctx, key, pushed, revision)
		}
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

// registryPushed looks at the tasks that are built on an image of another registry.
func (d *Decider) registryPushed(ctx context.Context, ev event.Event, occ *occasion) error {
	var e event.RegistryPushed
	if err := decode(ev, &e); err != nil {
		return err
	}
	if e.Tag == "" {
		return nil
	}
	name, err := graph.Canonical(e.Registry+"/"+e.Repository+":"+e.Tag, d.Aliases)
	if err != nil {
		return fmt.Errorf("%w: %s %s: %w", bus.ErrPoison, ev.Type, ev.ID, err)
	}
	return d.moved(ctx, occ, name, d.cat.users(name))
}

// moved looks at one base image of tasks. Their refs are not asked for: a run that is due is pinned to the
// commit that was seen last.
func (d *Decider) moved(ctx context.Context, occ *occasion, name graph.Name, users []*entry) error {
	occ.fresh = true
	targets := make([]target, len(users))
	for i, e := range users {
		targets[i] = target{entry: e, track: decide.Track{Kind: decide.TrackDefault}, bases: []graph.Name{name}}
	}
	return d.look(ctx, occ, targets)
}
