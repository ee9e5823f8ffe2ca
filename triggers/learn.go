package triggers

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/run"
	"kiln/triggers/decide"
)

// fromRun is the From of links that a run has shown.
const fromRun = "run"

// runFinished corrects what is known of a task by what its last successful run has really used.
func (d *Decider) runFinished(ctx context.Context, ev event.Event) error {
	var e event.RunChanged
	if err := decode(ev, &e); err != nil {
		return err
	}
	r := e.Run
	entry := d.cat.task(r.TaskUID)
	if entry == nil || r.State != run.Succeeded || r.Cause.Track != string(decide.TrackDefault) {
		return nil
	}
	known := d.cat.linksOf(r.TaskUID)
	if outdated(entry, known, r) {
		return nil
	}
	l := d.shown(known, r)
	first, err := d.learn(ctx, entry, l)
	if err != nil {
		return err
	}
	l.TaskUID, l.Task, l.From, l.Run, l.Commit = r.TaskUID, entry.task.Name, fromRun, r.ID, r.Cause.Commit
	if l.Updated = time.Now().UTC(); l.Updated.Before(entry.task.Updated) {
		l.Updated = entry.task.Updated
	}
	if err := d.storeLinks(ctx, l); err != nil {
		return err
	}
	return d.lookAt(ctx, entry, first)
}

// lookAt decides about base images that nobody has followed before a run has shown them: events of their
// moves during the run were of no use to the task. What cannot be looked at is left to the next sweep, because
// the run tells nothing new when it is told of again.
func (d *Decider) lookAt(ctx context.Context, e *entry, first []graph.Name) error {
	if len(first) == 0 {
		return nil
	}
	to := target{entry: e, track: decide.Track{Kind: decide.TrackDefault}, bases: first}
	err := d.look(ctx, &occasion{origin: decide.FromReconcile}, []target{to})
	if err != nil && ctx.Err() == nil {
		d.Log.Warn("base images that a run has shown are looked at by the next sweep", "task", e.task.Name, "err", err)
		return nil
	}
	return err
}

// outdated reports whether more is known than what a run could tell: another definition, a later run, or
// the files of a later commit.
func outdated(e *entry, known event.Links, r run.Run) bool {
	return r.Created.Before(e.task.Updated) || known.From == fromRun && known.Run >= r.ID ||
		known.From != "" && known.Commit != r.Cause.Commit
}

// shown returns the links that a run has shown. The kind of a base is what the scan has told; one that it
// did not find counts as a base of the image. Images that only commands ran in are not among a run's bases:
// they stay.
func (d *Decider) shown(known event.Links, r run.Run) event.Links {
	var l event.Links
	for _, b := range r.Bases {
		name, err := graph.Canonical(b.Ref, d.Aliases)
		if err != nil || slices.ContainsFunc(l.Bases, func(o event.LinkBase) bool { return o.Name == string(name) }) {
			continue
		}
		kind := string(graph.Runtime)
		if i := indexBase(known.Bases, string(name)); i >= 0 {
			kind = known.Bases[i].Kind
		}
		l.Bases = append(l.Bases, event.LinkBase{Name: string(name), Kind: kind, Pinned: name.Digest() != "", Digest: b.Digest})
	}
	for _, b := range known.Bases {
		if b.Kind == string(graph.Buildtime) && indexBase(l.Bases, b.Name) < 0 {
			l.Bases = append(l.Bases, b)
		}
	}
	l.Builds = slices.Clone(known.Builds)
	for _, i := range r.Images {
		if i.Tag == "" || strings.Contains(i.Tag, r.ID) {
			continue // nobody builds on a tag that comes once
		}
		if name, err := graph.Canonical(i.Registry+"/"+i.Repository+":"+i.Tag, d.Aliases); err == nil && !slices.Contains(l.Builds, string(name)) {
			l.Builds = append(l.Builds, string(name))
		}
	}
	return l
}

func indexBase(bases []event.LinkBase, name string) int {
	return slices.IndexFunc(bases, func(b event.LinkBase) bool { return b.Name == name })
}

// learn takes the bases that were used into the state of the default track. A base that is new there counts
// as considered with the digest that the run has used, so it is due if it has moved since. It returns the bases
// that are new.
func (d *Decider) learn(ctx context.Context, e *entry, l event.Links) (first []graph.Name, err error) {
	used := map[string]string{}
	for _, b := range l.Bases {
		if !b.Pinned {
			used[b.Name] = b.Digest
		}
	}
	track := decide.Track{Kind: decide.TrackDefault}
	for {
		last, seq, err := d.last(ctx, e.task.UID, track)
		if err != nil || !last.State.Known {
			return nil, err
		}
		state, changed := decide.Learn(last.State, used)
		if !changed {
			return nil, nil
		}
		made := decide.Decision{Kind: decide.Unchanged, Time: time.Now().UTC(), Track: track.Key(), Reason: "the base images that the last run has used are followed from here on"}
		switch waits := !last.Hold.IsZero(); {
		case waits && last.Made.Kind != decide.Run:
			made = last.Made // an alarm is set, and goes off for this
		case waits:
			made.Event, made.Origin = last.Made.Event, last.Made.Origin
		}
		_, err = d.Bus.Replace(ctx, event.DecisionSubject(e.task.UID, track.Key()), seq,
			event.Decision{Task: e.task.Name, TaskUID: e.task.UID, Made: made, Seq: last.Seq, State: state, Hold: last.Hold})
		if !errors.Is(err, bus.ErrConflict) {
			for name := range state.Considered.Bases {
				if last.State.Considered.Bases[name] == "" {
					first = append(first, graph.Name(name))
				}
			}
			return first, err
		}
	}
}
