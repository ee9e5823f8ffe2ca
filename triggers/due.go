package triggers

import (
	"context"
	"errors"

	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// attach adds the run to a decision that one is due. If the task cannot be run at all, the decision becomes
// one that says so.
func (d *Decider) attach(p *pass, dec *event.Decision) {
	made := &dec.Made
	cause := p.cause(dec)
	t := p.task
	if p.location != p.context.URL { // of a fork whose commits the task's repository does not have
		c := p.context
		c.URL = p.location
		moved := *p.task
		moved.Context = c.String()
		t = &moved
	}
	spec, err := t.Spec(task.Inputs{Commit: cause.Commit, Ref: cause.Ref, Pins: d.pins(p.task.UID, made.Pin.Bases, made.Restricted), Restricted: made.Restricted})
	if err != nil {
		made.Kind, made.Reason, made.Run = decide.Blocked, err.Error(), ""
		made.Supersedes = nil
		before := p.last.State
		dec.State.Run, dec.State.Queued, dec.State.Attempted = before.Run, before.Queued, before.Attempted
		return
	}
	dec.Run = newRun(p.task, made, cause, spec)
}

func newRun(t *task.Task, made *decide.Decision, cause run.Cause, spec run.Spec) *run.Run {
	return &run.Run{ID: made.Run, Task: t.Name, TaskUID: t.UID, State: run.Queued, Cause: cause, Lane: string(made.Lane),
		NeedsApproval: made.NeedsApproval, Created: made.Time, Spec: spec}
}

// cause says why the run of a decision exists.
func (p *pass) cause(dec *event.Decision) run.Cause {
	made := &dec.Made
	c := run.Cause{Reason: made.Reason, Event: made.Event, Seq: dec.Seq, Track: made.Track, Trigger: made.Trigger, Commit: made.Pin.Commit}
	switch made.Class {
	case decide.ClassBase:
		c.Kind = run.CauseBase
	case decide.ClassPull:
		c.Kind = run.CausePull
	default:
		c.Kind = run.CauseCommit
	}
	for _, v := range made.Verdicts {
		if v.Input != "source" && v.Kind == decide.Run {
			c.Moved = append(c.Moved, run.Move{Ref: v.Input, From: p.state.Considered.Bases[v.Input], To: made.Pin.Bases[v.Input]})
		}
	}
	if !p.git() {
		return c
	}
	c.Repository = p.context.URL
	if c.Ref = p.head.Ref; c.Ref == "" {
		c.Ref = p.ref()
	}
	if p.push != nil {
		c.By = p.push.Pusher.Login
	}
	if p.pull != nil {
		c.PullRequest, c.Author, c.By = p.pull.Number, author(p.pull), author(p.pull)
		c.AuthorID = authorID(p.pull)
	}
	return c
}

// pins returns the digests of those images that the task is built on, as far as is known. Those that its
// files give by digest are left out, but for a restricted run, which may read nothing else.
func (d *Decider) pins(uid string, digests map[string]string, restricted bool) map[string]string {
	var pins map[string]string
	for _, b := range d.cat.linksOf(uid).Bases {
		digest := digests[b.Name]
		if b.Pinned {
			digest = ""
			if restricted {
				digest = graph.Name(b.Name).Digest()
			}
		}
		if digest == "" {
			continue
		}
		if pins == nil {
			pins = map[string]string{}
		}
		pins[b.Name] = digest
	}
	return pins
}

// bases says what is known of the base images that differ from what was considered.
func (d *Decider) bases(ctx context.Context, p *pass, seen map[string]string) (map[string]decide.Base, error) {
	if p.track.Kind != decide.TrackDefault {
		return nil, nil
	}
	moved := map[string]string{}
	for _, digests := range []map[string]string{p.state.Observed.Bases, seen} { // what was seen now counts
		for name, digest := range digests {
			if delete(moved, name); p.state.Considered.Bases[name] != digest {
				moved[name] = digest
			}
		}
	}
	if len(moved) == 0 {
		return nil, nil
	}
	known := map[string]decide.Base{}
	for _, b := range d.cat.linksOf(p.task.UID).Bases {
		if digest, ok := moved[b.Name]; ok {
			if before, twice := known[b.Name]; twice && before.Kind == graph.Runtime {
				continue
			}
			by, err := p.sight.pusher(ctx, graph.Name(b.Name), digest)
			if err != nil {
				return nil, err
			}
			known[b.Name] = decide.Base{Kind: graph.Kind(b.Kind), Pinned: b.Pinned, PushedBy: by, Cycle: d.cat.circle(p.task.UID, graph.Name(b.Name))}
		}
	}
	return known, nil
}

func (d *Decider) isTrusted(ctx context.Context, key string) (bool, error) {
	_, _, err := d.Store.Trusted.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
