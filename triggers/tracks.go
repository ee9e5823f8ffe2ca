package triggers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// pullsTrack is where it is stored since when a task follows pull requests.
var pullsTrack = decide.Track{Kind: "pulls"}

// A began is what is stored of a track of a branch, tag or pull request.
type began struct {
	track   decide.Track
	commit  string // that was observed last; empty if the ref is gone or the request closed
	blocked bool   // the last event about it is not decided
	seq     uint64 // of the decision
	event   uint64 // sequence of the event that it was made for
}

// Tracks are those of a task that have begun, as this process has read or stored them. They only say what may
// be worth a look: who looks reads the state again.
type tracks struct {
	mu         sync.Mutex
	read       uint64 // sequence up to which decisions have been read
	generation uint64
	loaded     bool
	since      time.Time // when the task began to follow pull requests
	began      map[decide.Track]began
	pulls      map[uint64]*event.PullRequestUpdated // by sequence of the event
}

// tracksOf returns what is stored of a task's tracks now. The caller unlocks it.
func (d *Decider) tracksOf(ctx context.Context, uid string) (*tracks, error) {
	v, _ := d.tracks.LoadOrStore(uid, &tracks{began: map[decide.Track]began{}, pulls: map[uint64]*event.PullRequestUpdated{}})
	t := v.(*tracks)
	t.mu.Lock()
	generation := d.generation(uid).Load()
	if t.loaded && t.generation == generation {
		return t, nil
	}
	var bad error
	err := d.Bus.Tail(ctx, bus.StreamDecisions, event.DecisionFilter(uid), t.read, false, func(seq uint64, data []byte) bool {
		var dec event.Decision
		if bad = json.Unmarshal(data, &dec); bad != nil {
			bad = fmt.Errorf("decision %d: %w", seq, bad)
			return false
		}
		t.read = seq
		t.take(seq, &dec)
		return true
	})
	if err = errors.Join(err, bad, ctx.Err()); err != nil {
		t.mu.Unlock()
		return nil, err
	}
	t.loaded, t.generation = true, generation
	return t, nil
}

// take takes in a decision.
func (t *tracks) take(seq uint64, dec *event.Decision) {
	kind, name, _ := strings.Cut(dec.Made.Track, ":")
	track := decide.Track{Kind: decide.TrackKind(kind), Name: name}
	switch track.Kind {
	case pullsTrack.Kind:
		t.since = dec.Made.Time
	case decide.TrackBranch, decide.TrackTag, decide.TrackPull:
		if !dec.State.Known && dec.Made.Kind != decide.Blocked {
			return // a note, which is not of the track
		}
		delete(t.pulls, t.began[track].event)
		t.began[track] = began{track: track, commit: dec.State.Observed.Commit, blocked: dec.Made.Kind == decide.Blocked, seq: seq, event: dec.Seq}
	}
}

// all returns the tracks of some kinds, sorted.
func (t *tracks) all(kinds ...decide.TrackKind) []began {
	var list []began
	for _, b := range t.began {
		if slices.Contains(kinds, b.track.Kind) {
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b began) int { return strings.Compare(a.track.Key(), b.track.Key()) })
	return list
}

// pull returns what the last event said of the pull request of a track; nil if that is not kept any more.
func (d *Decider) pullOf(ctx context.Context, t *tracks, b began) (*event.PullRequestUpdated, error) {
	if e, ok := t.pulls[b.event]; ok {
		return e, nil
	}
	var e *event.PullRequestUpdated
	ev, err := d.eventAt(ctx, b.event)
	switch {
	case err == nil && ev.Type == event.TypePullRequestUpdated:
		e = &event.PullRequestUpdated{}
		if err := decode(ev, e); err != nil {
			return nil, err
		}
		e.Delivery = event.Delivery{} // its body is large
	case err != nil && !errors.Is(err, bus.ErrNone):
		return nil, err
	}
	t.pulls[b.event] = e
	return e, nil
}

// goneRefs returns the tracks of branches and tags that a task follows and that are not there any more.
func (d *Decider) goneRefs(ctx context.Context, s *sight, e *entry) ([]target, error) {
	all, err := s.refs(ctx, e, e.context.URL)
	if err != nil {
		return nil, err
	}
	t, err := d.tracksOf(ctx, e.task.UID)
	if err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	var targets []target
	for _, b := range t.all(decide.TrackBranch, decide.TrackTag) {
		to := target{entry: e, track: b.track, source: true}
		if _, there := all[(&pass{target: to}).ref()]; !there && b.commit != "" && follows(e.task, b.track.Kind, b.track.Name) {
			targets = append(targets, to)
		}
	}
	return targets, nil
}

// movedPulls returns the tracks of pull requests whose ref in the repository is not at the commit that was observed
// last, or that could not be looked at when an event came, and notes in seen where it is. One that has no track
// is not found in this way: refs say neither whether it is open nor where it is to go.
func (d *Decider) movedPulls(ctx context.Context, s *sight, e *entry, seen map[string]string) ([]target, error) {
	if !wantsPulls(e) {
		return nil, nil
	}
	all, err := s.refs(ctx, e, e.context.URL)
	if err != nil {
		return nil, err
	}
	t, err := d.tracksOf(ctx, e.task.UID)
	if err != nil {
		return nil, err
	}
	defer t.mu.Unlock()
	var targets []target
	for _, b := range t.all(decide.TrackPull) {
		if b.commit == "" && !b.blocked {
			continue
		}
		pull, err := d.pullOf(ctx, t, b)
		if err != nil {
			return nil, err
		}
		if pull == nil || pull.FetchRef == "" && pull.Fork {
			continue
		}
		if head := all[pullRef(pull)]; head != b.commit || b.blocked {
			seen[b.track.Key()] = head
			targets = append(targets, target{entry: e, track: b.track, source: true})
		}
	}
	return targets, nil
}

// wantsPulls reports whether a trigger of a task acts on pull requests.
func wantsPulls(e *entry) bool {
	return e.git() && !e.context.Pinned() && slices.ContainsFunc(e.task.Triggers.Source, func(s task.SourceTrigger) bool {
		return s.Status != task.Disabled && slices.Contains(s.Events, task.PullRequest)
	})
}
