package triggers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"kiln/internal/event"
	"kiln/triggers/decide"
)

// Reconcile compares everything that tasks follow with what was decided, and decides what is due, as if an
// event had told of it. Each repository and image is asked for once. A dry run stores nothing.
// Its error says what could not be decided; what could not be looked at is in the report.
func (d *Decider) Reconcile(ctx context.Context, dryRun bool) (Report, error) {
	if err := d.awaitReady(ctx); err != nil {
		return Report{}, err
	}
	d.sweeping.Lock()
	defer d.sweeping.Unlock()
	r := &report{}
	occ := &occasion{origin: decide.FromReconcile, dry: dryRun, report: r}
	s := &sight{d: d}
	entries := d.cat.all()
	candidates := make([][]target, len(entries))
	prints := make([]worldPrint, len(entries))
	each(len(entries), func(i int) {
		prints[i].generation = d.generation(entries[i].task.UID).Load()
		var err error
		if candidates[i], prints[i].world, err = d.candidates(ctx, s, entries[i]); err != nil {
			r.problem(entries[i].task.Name + ": " + err.Error())
		}
	})
	var targets []target
	var looked []int
	for i, e := range entries {
		if before, ok := d.swept.Load(e.task.UID); ok && before == prints[i] && !dryRun {
			r.Looked += len(candidates[i])
			continue
		}
		if prints[i].world != "" {
			looked = append(looked, i)
		}
		targets = append(targets, candidates[i]...)
	}
	err := d.look(ctx, occ, targets)
	if err == nil && !dryRun {
		for _, i := range looked {
			if uid := entries[i].task.UID; d.generation(uid).Load() == prints[i].generation {
				d.swept.Store(uid, prints[i])
			}
		}
	}
	err = errors.Join(err, d.sweepPulls(ctx, occ, entries))
	return r.Report, err
}

// A worldPrint is what a task was compared with: the world, and the decisions stored until then. As long as both
// are the same there is nothing to find.
type worldPrint struct {
	world      string
	generation uint64
}

// candidates returns the tracks of a task to look at, and what identifies the state that they are in. It is
// only a reason not to look: tracks that are looked at are resolved again after their state is read.
func (d *Decider) candidates(ctx context.Context, s *sight, e *entry) ([]target, string, error) {
	to := target{entry: e, track: decide.Track{Kind: decide.TrackDefault}, source: true, bases: d.linkedBases(e.task.UID)}
	targets := []target{to}
	seen := map[string]string{"definition": e.hash}
	if e.git() {
		head, err := s.head(ctx, e, e.context.URL, e.context.Ref)
		if err != nil {
			to.source = false
			return []target{to}, "", err
		}
		seen["head"] = head.Commit
		more, err := d.beganRefs(ctx, s, e)
		if err != nil {
			return targets, "", err
		}
		targets = append(targets, more...)
		for _, t := range more {
			h, err := s.head(ctx, e, e.context.URL, (&pass{target: t}).ref())
			if err != nil {
				return targets, "", err
			}
			seen[t.track.Key()] = h.Commit
		}
		pulls, err := d.movedPulls(ctx, s, e, seen)
		if err != nil {
			return targets, "", err
		}
		targets = append(targets, pulls...)
	}
	for _, name := range to.bases {
		digest, err := s.digest(ctx, name)
		if err != nil {
			digest = "?"
		}
		seen["image "+string(name)] = digest
	}
	return targets, fingerprint(seen), nil
}

// beganRefs returns the tracks of refs of a task that has begun to follow them, also of those that are gone.
func (d *Decider) beganRefs(ctx context.Context, s *sight, e *entry) ([]target, error) {
	patterns := refPatterns(e)
	if patterns == "" {
		return nil, nil
	}
	last, _, err := d.last(ctx, e.task.UID, refsTrack)
	if err != nil || last.State.Considered.Definition != patterns {
		return nil, err
	}
	there, err := d.followedRefs(ctx, s, e)
	if err != nil {
		return nil, err
	}
	gone, err := d.goneRefs(ctx, s, e)
	return append(there, gone...), err
}

func fingerprint(seen map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(seen)) {
		fmt.Fprintf(&b, "%s=%s\n", k, seen[k])
	}
	return event.Hash(b.String())
}

// sweep reconciles at the beginning and then every so often, until ctx is done.
func (d *Decider) sweep(ctx context.Context) {
	every := d.Every
	if every == 0 {
		every = everyDefault
	}
	if every < 0 {
		return
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		found, err := d.Reconcile(ctx, false)
		if err != nil && !errors.Is(err, context.Canceled) {
			d.Log.Warn("not everything could be reconciled", "err", err)
		}
		if n := len(found.Found); n > 0 {
			d.Log.Info("reconciled", "decisions", n, "tracks", found.Looked)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
