package triggers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/source/git"
	"kiln/internal/task"
	"kiln/triggers/decide"
	"kiln/triggers/links"
)

// maxScanned bounds a file that is read to find out what a task is built on.
const maxScanned = 1 << 20

// refsTrack is where it is stored which patterns of refs a task has begun to follow.
var refsTrack = decide.Track{Kind: "refs"}

// taskChange takes a change of a task's record into the catalog, and has done what it calls for. No value
// says that the task was deleted.
func (d *Decider) taskChange(ctx context.Context, key string, value *task.Task) {
	var e *entry
	var old *entry
	if value == nil {
		old = d.cat.remove(key)
	} else {
		e = newEntry(*value)
		old = d.cat.set(key, e)
		d.setups.add(e.task.UID)
	}
	d.watching.add("")
	switch {
	case old == nil:
	case e != nil && e.task.UID == old.task.UID:
		d.clearTimers(ctx, old.task, e.task)
	default:
		d.retire(ctx, old)
	}
}

// retire forgets a task that was deleted. What was decided about it stays.
func (d *Decider) retire(ctx context.Context, e *entry) {
	d.swept.Delete(e.task.UID)
	d.generations.Delete(e.task.UID)
	d.tracks.Delete(e.task.UID)
	d.clearTimers(ctx, e.task, nil)
	err := errors.Join(d.Clock.Clear(ctx, e.task.UID, string(decide.TrackDefault)), d.Store.Links.Delete(ctx, e.task.UID))
	if err != nil && ctx.Err() == nil {
		d.Log.Warn("not all of a deleted task is gone", "task", e.task.Name, "err", err)
	}
}

// setUp brings everything about a task in line with its definition. It may be done again at any time.
func (d *Decider) setUp(ctx context.Context, uid string) error {
	e := d.cat.task(uid)
	if e == nil {
		return nil
	}
	err := d.setTimers(ctx, e)
	if lerr := d.link(ctx, e); lerr != nil {
		err = errors.Join(err, lerr)
	} else {
		err = errors.Join(err, d.baseline(ctx, e), d.baselineRefs(ctx, e), d.baselinePulls(ctx, e))
	}
	if err != nil && ctx.Err() == nil {
		d.Log.Warn("task is not followed yet, it is tried again", "task", e.task.Name, "err", err)
	}
	return err
}

// link finds out what a task is built on, if its files or its definition have changed since it was.
func (d *Decider) link(ctx context.Context, e *entry) error {
	known := d.cat.linksOf(e.task.UID)
	commit, err := d.commit(ctx, e)
	if err == nil && known.From != "" && known.Commit == commit && !known.Updated.Before(e.task.Updated) {
		return nil
	}
	var found event.Links
	if err == nil {
		found, err = d.scan(ctx, e, commit)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		reason := err.Error()
		if known.TaskUID != "" && slices.Equal(known.Unresolved, []string{reason}) {
			return err
		}
		known.TaskUID, known.Task, known.Unresolved = e.task.UID, e.task.Name, []string{reason}
		return errors.Join(err, d.storeLinks(ctx, known))
	}
	found.TaskUID, found.Task, found.Commit = e.task.UID, e.task.Name, commit
	if found.Updated = time.Now().UTC(); found.Updated.Before(e.task.Updated) {
		found.Updated = e.task.Updated // the clock was set back
	}
	return d.storeLinks(ctx, found)
}

func (d *Decider) storeLinks(ctx context.Context, l event.Links) error {
	if _, err := d.Store.Links.Put(ctx, l.TaskUID, l); err != nil {
		return err
	}
	d.cat.setLinks(l.TaskUID, &l)
	d.watching.add("")
	return nil
}

// commit returns the commit whose files say what a task is built on; empty if it has no repository.
func (d *Decider) commit(ctx context.Context, e *entry) (string, error) {
	if !e.git() {
		return "", nil
	}
	last, _, err := d.last(ctx, e.task.UID, decide.Track{Kind: decide.TrackDefault})
	if err != nil {
		return "", err
	}
	if c := last.State.Observed.Commit; c != "" {
		return c, nil
	}
	head, err := d.lately.sight(d).head(ctx, e, e.context.URL, e.context.Ref)
	return head.Commit, err
}

// scan reads what a task is built on from its files at a commit.
func (d *Decider) scan(ctx context.Context, e *entry, commit string) (event.Links, error) {
	if !e.git() {
		return links.Scan(e.task, d.Registry, d.Aliases, d.ImageAliases, func(path string) ([]byte, error) {
			return nil, fmt.Errorf("%s: the files of this context are not looked at before a run", path)
		}), nil
	}
	if commit == "" {
		return event.Links{From: links.FromScan, Unresolved: []string{fmt.Sprintf("%s has no ref %q", e.context.URL, e.context.Ref)}}, nil
	}
	cred, err := d.credential(ctx, e)
	if err != nil {
		return event.Links{}, err
	}
	var found event.Links
	err = d.hosts.ask(ctx, e.context.URL, fetchWithin, func(ctx context.Context) error { // the life of the source
		src, err := d.Mirrors.Open(ctx, git.Ref{URL: e.context.URL, Ref: e.context.Ref, Commit: commit, Subdir: e.context.Subdir}, cred)
		if err == nil {
			found = links.Scan(e.task, d.Registry, d.Aliases, d.ImageAliases, func(path string) ([]byte, error) { return src.ReadFile(ctx, path, maxScanned) })
		}
		return err
	})
	if errors.Is(err, git.ErrBadTree) || errors.Is(err, git.ErrTooLarge) || errors.Is(err, git.ErrRefNotFound) {
		return event.Links{From: links.FromScan, Unresolved: []string{err.Error()}}, nil
	}
	return found, err
}

// linkedBases returns the images that a task is built on and that can move.
func (d *Decider) linkedBases(uid string) []graph.Name {
	var names []graph.Name
	for _, b := range d.cat.linksOf(uid).Bases {
		if !b.Pinned && !slices.Contains(names, graph.Name(b.Name)) {
			names = append(names, graph.Name(b.Name))
		}
	}
	return names
}

// baseline has the default track begin where the repository and the images are now. On a track that has
// begun it takes in what is new: the definition and base images.
func (d *Decider) baseline(ctx context.Context, e *entry) error {
	for range 2 { // a track that somebody else has begun meanwhile lacks what only is known here
		to, occ, err := d.lacking(ctx, e)
		if err != nil {
			return err
		}
		if occ == nil {
			break
		}
		if err := d.look(ctx, occ, []target{to}); err != nil {
			return err
		}
	}
	return d.Bus.Signal(event.DecidedSubject(e.task.UID), "")
}

// lacking returns what the default track does not know yet of a task's definition, source and images; no
// occasion if it knows all.
func (d *Decider) lacking(ctx context.Context, e *entry) (target, *occasion, error) {
	track := decide.Track{Kind: decide.TrackDefault}
	to := target{entry: e, track: track, source: true, bases: d.linkedBases(e.task.UID)}
	last, _, err := d.last(ctx, e.task.UID, track)
	if err != nil {
		return to, nil, err
	}
	if !last.State.Known {
		return to, &occasion{origin: decide.FromBaseline}, nil
	}
	to.source = false
	to.bases = slices.DeleteFunc(to.bases, func(n graph.Name) bool {
		_, known := last.State.Considered.Bases[string(n)]
		return known
	})
	if len(to.bases) == 0 && last.State.Considered.Definition == e.hash {
		return to, nil, nil
	}
	return to, &occasion{origin: decide.FromReconcile}, nil
}

// baselineRefs has the tracks of branches and tags that exist begin where they are, when the task has begun
// to follow them. Those that come later are new, and due.
func (d *Decider) baselineRefs(ctx context.Context, e *entry) error {
	patterns := refPatterns(e)
	if patterns == "" {
		return nil
	}
	last, seq, err := d.last(ctx, e.task.UID, refsTrack)
	if err != nil || last.State.Considered.Definition == patterns {
		return err
	}
	targets, err := d.followedRefs(ctx, d.lately.sight(d), e)
	if err != nil {
		return err
	}
	if err := d.look(ctx, &occasion{origin: decide.FromBaseline}, targets); err != nil {
		return err
	}
	made := decide.Decision{Kind: decide.Unchanged, Time: time.Now().UTC(), Track: refsTrack.Key(), Origin: decide.FromBaseline,
		Reason: fmt.Sprintf("%d branches and tags that exist are followed from here on", len(targets))}
	state := decide.State{Known: true, Considered: decide.Snapshot{Definition: patterns}}
	_, err = d.Bus.Replace(ctx, event.DecisionSubject(e.task.UID, refsTrack.Key()), seq,
		event.Decision{Task: e.task.Name, TaskUID: e.task.UID, Made: made, State: state})
	return err
}

// refPatterns identifies the refs that a task follows besides that of its context; empty if there are none.
func refPatterns(e *entry) string {
	if !e.git() || e.context.Pinned() {
		return ""
	}
	var all []any
	for _, t := range e.task.Triggers.Source {
		if len(t.Branches) > 0 || slices.Contains(t.Events, task.Tag) {
			all = append(all, t.Branches, t.Tags, t.Events)
		}
	}
	if len(all) == 0 {
		return ""
	}
	text, _ := json.Marshal(append(all, e.context.URL)) // strings only
	return event.Hash(string(text))
}

// followedRefs returns the tracks of the refs that exist now and that triggers of the task may act on.
func (d *Decider) followedRefs(ctx context.Context, s *sight, e *entry) ([]target, error) {
	all, err := s.refs(ctx, e, e.context.URL)
	if err != nil {
		return nil, err
	}
	main := e.context.Ref
	if main == "" {
		head, err := s.head(ctx, e, e.context.URL, "")
		if err != nil {
			return nil, err
		}
		main = head.Ref
	}
	var targets []target
	for ref := range all {
		kind, name := decide.TrackBranch, strings.TrimPrefix(ref, heads)
		if tag, ok := strings.CutPrefix(ref, tags); ok {
			kind, name = decide.TrackTag, tag
		} else if name == ref {
			continue
		}
		track := decide.RefTrack(e.context, kind, name, main)
		if track.Kind != decide.TrackDefault && follows(e.task, kind, name) {
			targets = append(targets, target{entry: e, track: track, source: true})
		}
	}
	slices.SortFunc(targets, func(a, b target) int { return strings.Compare(a.track.Key(), b.track.Key()) })
	return targets, nil
}
