package triggers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

const (
	// requestAge is how long the decision about a request is kept; a repeated request finds it until then.
	requestAge = 30 * 24 * time.Hour
	// knownWithin is how long a request waits for its task to become known: it may have just been created.
	knownWithin = 2 * time.Second
	// resolveWithin is how long a request or timer waits for the repository before the commit that was seen
	// last is used.
	resolveWithin = 8 * time.Second
)

// quick makes the run that somebody asked for, of no task, due.
func (d *Decider) quick(ctx context.Context, ev event.Event, req event.RunRequested) error {
	now := time.Now().UTC()
	id, err := d.ids.New(now, rand.Reader)
	if err != nil {
		return err
	}
	return d.decided(ctx, event.DecisionSubject(event.QuickTask, req.Key), req.Key, onDemand(ev, req, id, now))
}

// decided stores the decision about a request, unless there is one, and tells who waits for it.
func (d *Decider) decided(ctx context.Context, subject, key string, dec event.Decision) error {
	_, err := d.Bus.Create(ctx, subject, dec, requestAge)
	if err == nil {
		d.count(&dec)
	}
	if errors.Is(err, bus.ErrConflict) {
		dec = event.Decision{}
		_, err = d.Bus.Last(ctx, bus.StreamDecisions, subject, &dec)
	}
	if err != nil {
		return err
	}
	return d.Bus.Signal(event.DecidedSubject(key), dec.Made.Run)
}

// onDemand is the decision about a request: a person asked, so the run is due.
func onDemand(ev event.Event, req event.RunRequested, id string, now time.Time) event.Decision {
	made := decide.Decision{Kind: decide.Run, Time: now, Class: decide.ClassManual, Lane: decide.ClassManual, Event: ev.ID,
		Reason: "asked for by " + req.By, Run: id, Request: req.Key, By: req.By, RerunOf: req.RerunOf}
	return event.Decision{Made: made, Run: &run.Run{
		ID: id, State: run.Queued, Created: now, Spec: req.Spec,
		Cause: run.Cause{Kind: requestKind(req), Event: ev.ID, Request: req.Key, By: req.By, RerunOf: req.RerunOf},
	}}
}

func requestKind(req event.RunRequested) string {
	if req.RerunOf != "" {
		return run.CauseRerun
	}
	return run.CauseManual
}

// taskRequest decides a request for a run of a task, on a track of its own.
func (d *Decider) taskRequest(ctx context.Context, ev event.Event, seq uint64, req event.RunRequested) error {
	track := decide.Track{Kind: decide.TrackRequest, Name: req.Key}
	subject := event.DecisionSubject(req.TaskUID, track.Key())
	e, err := d.current(ctx, req.TaskUID)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	if e == nil {
		made := decide.Decision{Kind: decide.Disabled, Time: now, Track: track.Key(), Class: decide.ClassManual, Event: ev.ID,
			Reason: "the task does not exist any more", Request: req.Key, By: req.By}
		return d.decided(ctx, subject, req.Key, event.Decision{TaskUID: req.TaskUID, Made: made, Seq: seq, State: decide.State{Known: true}})
	}
	last, _, err := d.last(ctx, req.TaskUID, track)
	if err != nil {
		return err
	}
	id, err := d.ids.New(now, rand.Reader)
	if err != nil {
		return err
	}
	in, pin, refused := d.wanted(ctx, e, req)
	if errors.Is(refused, errNotRead) {
		return refused
	}
	out := decide.Ask(e.task, last.State, decide.Request{Key: req.Key, By: req.By, RerunOf: req.RerunOf, Force: req.Ask.Force, Pin: pin}, id, now)
	dec := event.Decision{Task: e.task.Name, TaskUID: e.task.UID, Made: *out.Decision, Seq: seq, State: out.State}
	dec.Made.Event = ev.ID
	if dec.Made.Kind == decide.Run {
		spec, err := run.Spec{}, refused
		switch {
		case err != nil:
		case req.Pin != nil: // exactly what the run that is repeated has executed, restrictions included
			spec = req.Spec
		default:
			spec, err = e.task.Spec(in)
			spec.Secrets = req.Spec.Secrets
		}
		if err != nil {
			dec.Made.Kind, dec.Made.Reason, dec.Made.Run, dec.State = decide.Blocked, err.Error(), "", decide.State{Known: true}
		} else {
			dec.Run = newRun(e.task, &dec.Made, requestCause(e, ev, seq, req, in, dec.Made.Reason), spec)
		}
	}
	return d.decided(ctx, subject, req.Key, dec)
}

func requestCause(e *entry, ev event.Event, seq uint64, req event.RunRequested, in task.Inputs, reason string) run.Cause {
	c := run.Cause{Kind: requestKind(req), Reason: reason, Event: ev.ID, Seq: seq, Request: req.Key, By: req.By, RerunOf: req.RerunOf,
		Track: decide.Track{Kind: decide.TrackRequest, Name: req.Key}.Key(), Commit: in.Commit, Ref: in.Ref}
	if e.git() {
		c.Repository = e.context.URL
	}
	return c
}

// current returns the task as it is stored now, nil if there is none.
func (d *Decider) current(ctx context.Context, uid string) (*entry, error) {
	late := time.NewTimer(knownWithin)
	defer late.Stop()
	for {
		next := d.cat.next()
		if e := d.cat.task(uid); e != nil {
			t, _, err := d.Store.Tasks.Get(ctx, store.TaskKey(e.task.Name))
			switch {
			case errors.Is(err, store.ErrNotFound) || err == nil && t.UID != uid:
				return nil, nil
			case err != nil:
				return nil, err
			}
			return newEntry(t), nil
		}
		select {
		case <-next:
		case <-late.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// errNotRead is an error that is nobody's fault: what it is about is decided when it comes again.
var errNotRead = errors.New("the state of the task cannot be read now")

// wanted returns what the run of a request is to use. The error is for the person who asked, unless it wraps
// errNotRead.
func (d *Decider) wanted(ctx context.Context, e *entry, req event.RunRequested) (task.Inputs, decide.Snapshot, error) {
	in := task.Inputs{Set: req.Ask.Set, Args: req.Ask.Args, File: req.Ask.File, Target: req.Ask.Target, NoPush: req.Ask.NoPush}
	last, _, err := d.last(ctx, e.task.UID, decide.Track{Kind: decide.TrackDefault})
	if err != nil {
		return in, decide.Snapshot{}, fmt.Errorf("%w: %w", errNotRead, err)
	}
	pin := last.State.Observed
	pin.Definition = e.hash
	if in.Pins = d.pins(e.task.UID, pin.Bases, false); len(req.Spec.Pins) > 0 { // of the run that is repeated
		in.Pins, pin.Bases = req.Spec.Pins, req.Spec.Pins
	}
	if !e.git() {
		return in, pin, nil
	}
	ref := e.context.Ref
	switch {
	case req.Pin != nil && req.Pin.Commit != "":
		in.Commit, in.Ref, pin.Commit = req.Pin.Commit, req.Pin.Ref, req.Pin.Commit
		return in, pin, nil
	case isCommit(req.Ask.Commit):
		in.Commit, in.Ref, pin.Commit = req.Ask.Commit, ref, req.Ask.Commit
		return in, pin, nil
	case req.Ask.Commit != "":
		ref, pin.Commit = req.Ask.Commit, "" // nothing else will do
	}
	in.Commit, in.Ref, err = d.resolve(ctx, e, ref, pin.Commit)
	pin.Commit = in.Commit
	return in, pin, err
}

// resolve returns the commit of a ref now, or the one that was seen last if the repository cannot be read.
func (d *Decider) resolve(ctx context.Context, e *entry, ref, seen string) (commit, full string, err error) {
	ctx, cancel := context.WithTimeout(ctx, resolveWithin)
	defer cancel()
	head, err := (&sight{d: d}).head(ctx, e, e.context.URL, ref)
	switch {
	case err == nil && head.Commit != "":
		return head.Commit, head.Ref, nil
	case err == nil && isAbbreviated(ref):
		return "", "", fmt.Errorf("%s has no ref %q; if that is an abbreviated commit, give all 40 digits: a git server looks up no shorter ones", e.context.URL, ref)
	case err == nil:
		return "", "", fmt.Errorf("%s has no ref %q", e.context.URL, ref)
	case seen != "":
		d.Log.Warn("repository not read, the commit seen last is used", "task", e.task.Name, "err", err)
		return seen, ref, nil
	}
	return "", "", err
}
