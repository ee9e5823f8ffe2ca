package triggers

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// decode decodes the data of an event; its error wraps bus.ErrPoison.
func decode(ev event.Event, v any) error {
	if err := json.Unmarshal(ev.Data, v); err != nil {
		return fmt.Errorf("%w: %s %s: %w", bus.ErrPoison, ev.Type, ev.ID, err)
	}
	return nil
}

// push looks at what a push may have moved: a hint, of which only the repository and the ref count.
func (d *Decider) push(ctx context.Context, ev event.Event, occ *occasion) error {
	e := &event.GitPushed{}
	if err := decode(ev, e); err != nil {
		return err
	}
	kind, name := decide.TrackBranch, strings.TrimPrefix(e.Ref, heads)
	if tag, ok := strings.CutPrefix(e.Ref, tags); ok {
		kind, name = decide.TrackTag, tag
	} else if name == e.Ref {
		return nil // notes and the like: nothing that a task can follow
	}
	var targets []target
	s := &sight{d: d}
	for _, entry := range d.cat.of(repositoryKeys(e.Repository)...) {
		track := decide.RefTrack(entry.context, kind, name, d.mainBranch(ctx, s, entry, e))
		if entry.context.Pinned() || track.Kind != decide.TrackDefault && !follows(entry.task, kind, name) {
			if err := d.unfollowed(ctx, occ, entry, track); err != nil {
				return err
			}
			continue
		}
		targets = append(targets, target{entry: entry, track: track, source: true, push: e})
	}
	return d.look(ctx, occ, targets)
}

// mainBranch returns the branch of a task whose context leaves that to the repository. What it was when it
// was asked for last will do if the push is to it: then the default track is looked at, and that asks.
func (d *Decider) mainBranch(ctx context.Context, s *sight, e *entry, push *event.GitPushed) string {
	if e.context.Ref != "" {
		return ""
	}
	if name, ok := d.branches.Load(e.context.URL + "\n" + e.task.ContextSecret); ok && name == push.Ref {
		return name.(string)
	}
	head, err := s.head(ctx, e, e.context.URL, "")
	switch {
	case err == nil && head.Ref != "":
		return head.Ref
	case push.Repository.DefaultBranch != "":
		return heads + push.Repository.DefaultBranch
	}
	return push.Ref // to look at the default track is never wrong
}

// follows reports whether a trigger of the task may act on a ref, so that it is worth a track.
func follows(t *task.Task, kind decide.TrackKind, name string) bool {
	return slices.ContainsFunc(t.Triggers.Source, func(s task.SourceTrigger) bool {
		if kind == decide.TrackTag {
			return slices.Contains(s.Events, task.Tag) && (len(s.Tags) == 0 || s.Tags.Match(name))
		}
		return s.Branches.Match(name) && slices.ContainsFunc(s.Events, func(e task.SourceEvent) bool {
			return e == task.Push || e == task.BranchCreated || e == task.BranchDeleted
		})
	})
}

// unfollowed notes that an event is about something that a task does not follow.
func (d *Decider) unfollowed(ctx context.Context, occ *occasion, e *entry, track decide.Track) error {
	made := decide.Decision{Time: time.Now().UTC(), Track: track.Key(), Event: occ.event, Origin: occ.origin, Kind: decide.Filtered}
	switch {
	case e.context.Pinned():
		made.Kind, made.Reason = decide.Pinned, "the context names a commit"
	case len(e.task.Triggers.Source) == 0:
		made.Kind, made.Reason = decide.Disabled, "the task has no source trigger"
	case track.Kind == decide.TrackTag:
		made.Filter, made.Reason = decide.FilterTag, fmt.Sprintf("no source trigger acts on tag %s", track.Name)
	case track.Kind == decide.TrackPull:
		made.Filter, made.Reason = decide.FilterEvent, "no source trigger acts on pull requests"
	default:
		made.Filter, made.Reason = decide.FilterBranch, fmt.Sprintf("no source trigger acts on branch %s", track.Name)
	}
	dec := &event.Decision{Task: e.task.Name, TaskUID: e.task.UID, Made: made, Seq: occ.seq}
	occ.report.found(dec)
	if occ.dry {
		return nil
	}
	return d.publishNote(ctx, dec)
}

// pull looks at the head of a pull request.
func (d *Decider) pull(ctx context.Context, ev event.Event, occ *occasion) error {
	e := &event.PullRequestUpdated{}
	if err := decode(ev, e); err != nil {
		return err
	}
	var targets []target
	for _, entry := range d.cat.of(repositoryKeys(e.Repository)...) {
		track := decide.Track{Kind: decide.TrackPull, Name: strconv.Itoa(e.Number)}
		wants := func(s task.SourceTrigger) bool { return slices.Contains(s.Events, task.PullRequest) }
		if entry.context.Pinned() || !slices.ContainsFunc(entry.task.Triggers.Source, wants) {
			if err := d.unfollowed(ctx, occ, entry, track); err != nil {
				return err
			}
			continue
		}
		targets = append(targets, target{entry: entry, track: track, source: true, pull: e})
	}
	return d.look(ctx, occ, targets)
}
