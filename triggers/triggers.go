// Package triggers decides which runs are due.
//
// It folds events into decisions. A decision is stored once per observation, guarded by the last
// message of its track, and carries the identity of the run it makes due: an event that is delivered
// again, to this process or another, finds the decision and changes nothing.
package triggers

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/triggers/decide"
)

// requestAge is how long the decision about a request is kept; a repeated request finds it until then.
const requestAge = 30 * 24 * time.Hour

// A Decider turns events into decisions. Its fields are set before Run is called and not changed after.
type Decider struct {
	Bus *bus.Bus
	Log *slog.Logger
}

// Run decides until ctx is done. It returns nil then, and an error only if it could not start.
func (d *Decider) Run(ctx context.Context) error {
	err := d.Bus.Consume(ctx, bus.Consumer{Stream: bus.StreamEvents, Name: "triggers-requests", Filter: event.RequestFilter},
		func(m bus.Message) {
			var ev event.Event
			err := m.Decode(&ev)
			if err == nil {
				err = d.request(ctx, ev)
			}
			m.Settle(err)
		})
	if err != nil {
		return fmt.Errorf("triggers: %w", err)
	}
	return nil
}

// request makes the run that somebody asked for due.
func (d *Decider) request(ctx context.Context, ev event.Event) error {
	var req event.RunRequested
	if err := json.Unmarshal(ev.Data, &req); err != nil {
		return fmt.Errorf("%w: %s %s: %w", bus.ErrPoison, ev.Type, ev.ID, err)
	}
	now := time.Now().UTC()
	id, err := run.NewID(now, rand.Reader)
	if err != nil {
		return err
	}
	_, err = d.Bus.Create(ctx, event.DecisionSubject(event.QuickTask, req.Key), onDemand(ev, req, id, now), requestAge)
	if errors.Is(err, bus.ErrConflict) {
		return d.announceStored(ctx, req.Key)
	}
	if err != nil {
		return err
	}
	return d.Bus.Signal(event.DecidedSubject(req.Key), id)
}

// announceStored repeats the hint for a request that was decided before.
func (d *Decider) announceStored(ctx context.Context, key string) error {
	var stored event.Decision
	if _, err := d.Bus.Last(ctx, bus.StreamDecisions, event.DecisionSubject(event.QuickTask, key), &stored); err != nil {
		return err
	}
	if stored.Run == nil {
		return nil
	}
	return d.Bus.Signal(event.DecidedSubject(key), stored.Run.ID)
}

// onDemand is the decision about a request: a person asked, so the run is due.
func onDemand(ev event.Event, req event.RunRequested, id string, now time.Time) event.Decision {
	kind := run.CauseManual
	if req.RerunOf != "" {
		kind = run.CauseRerun
	}
	made := decide.Decision{Kind: decide.Run, Time: now, Class: decide.ClassManual, Lane: decide.ClassManual, Event: ev.ID,
		Reason: "asked for by " + req.By, Run: id, Request: req.Key, By: req.By, RerunOf: req.RerunOf}
	return event.Decision{Made: made, Run: &run.Run{
		ID: id, State: run.Queued, Created: now, Spec: req.Spec,
		Cause: run.Cause{Kind: kind, Event: ev.ID, Request: req.Key, By: req.By, RerunOf: req.RerunOf},
	}}
}
