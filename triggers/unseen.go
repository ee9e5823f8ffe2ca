package triggers

import (
	"context"
	"errors"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/triggers/decide"
)

// giveUpAfter is how long a track is looked at again and again because its repository cannot be read. After
// that it is looked at when the world is reconciled, or another event comes.
const giveUpAfter = 24 * time.Hour

// unseen deals with a repository that could not be read. An event is then kept as a decision that the track
// is blocked, and an alarm has the track looked at again, later and later: whatever is wrong with one
// repository keeps no event of another waiting. Who looks without an event looks again by himself.
func (d *Decider) unseen(ctx context.Context, p *pass, cause error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.occ.report.problem(p.task.Name + ": " + cause.Error())
	if p.occ.dry {
		return nil
	}
	if p.occ.origin != decide.FromEvent {
		return cause
	}
	now := time.Now().UTC()
	pause := retrySoonest
	// The words of the reason do not count: ports and times in them may differ from one look to the next.
	if m := p.last.Made; m.Kind == decide.Blocked && p.last.Seq == p.evSeq {
		if now.Sub(m.Time) > giveUpAfter {
			return nil
		}
		pause = min(max(now.Sub(m.Time), retrySoonest), retryLatest) // doubles each time
	} else {
		dec := event.Decision{Task: p.task.Name, TaskUID: p.task.UID, Seq: p.evSeq, State: p.last.State, Hold: now.Add(pause),
			Made: decide.Decision{Kind: decide.Blocked, Time: now, Track: p.track.Key(), Event: p.event, Origin: p.occ.origin, Reason: cause.Error()}}
		_, err := d.Bus.Replace(ctx, event.DecisionSubject(p.task.UID, p.track.Key()), p.seq, dec)
		if errors.Is(err, bus.ErrConflict) {
			return bus.ErrConflict
		}
		if err != nil {
			return err
		}
		d.count(&dec)
		p.occ.report.found(&dec)
	}
	p.out = decide.Outcome{Hold: now.Add(pause)}
	return nil
}
