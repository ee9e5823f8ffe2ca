package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
)

// A reporter tells the scheduler about one attempt. News is collected until it is kicked off, so that
// what happens at the same moment, the last step's end and the run's, is one message.
type reporter struct {
	bus *bus.Bus

	mu      sync.Mutex
	next    event.Report // what has not been sent
	all     event.Report // everything so far: the last report repeats it, should one have been lost
	changed bool
	ended   bool
	n       int
	timer   *time.Timer // set while news is about to be sent
}

// reportDelay is how long news waits for more. The outcome of an attempt does not wait.
const reportDelay = 10 * time.Millisecond

func newReporter(b *bus.Bus, r run.Run, begun time.Time) *reporter {
	return &reporter{bus: b, next: event.Report{Run: r.ID, Attempt: r.Attempt}, all: event.Report{Begun: begun.UTC()}}
}

// begin reports that the attempt is under way, and its plan. One that ends before it has a plan says with its
// outcome when it has begun.
func (r *reporter) begin(steps []run.Step) {
	r.mu.Lock()
	r.next.Begun, r.changed = r.all.Begun, true
	r.next.Steps, r.all.Steps = slices.Clone(steps), slices.Clone(steps)
	r.mu.Unlock()
	r.kick()
}

// step notes the new state of a step.
func (r *reporter) step(s run.Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = true
	r.next.Steps, r.all.Steps = withStep(r.next.Steps, s), withStep(r.all.Steps, s)
}

// withStep returns steps with s in place of its earlier state.
func withStep(steps []run.Step, s run.Step) []run.Step {
	for i := range steps {
		if steps[i].ID == s.ID {
			steps[i] = s
			return steps
		}
	}
	return append(steps, s)
}

// source notes which commit is built.
func (r *reporter) source(o Origin) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next.Commit, r.all.Commit, r.changed = o.Commit, o.Commit, true
}

func (r *reporter) images(images []run.Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next.Images, r.all.Images, r.changed = append(r.next.Images, images...), append(r.all.Images, images...), true
}

func (r *reporter) bases(bases []run.Base) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next.Bases, r.all.Bases, r.changed = append(r.next.Bases, bases...), append(r.all.Bases, bases...), true
}

// kick has the news sent soon, so that what happens at about the same time is one message.
func (r *reporter) kick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer == nil && !r.ended {
		r.timer = time.AfterFunc(reportDelay, r.send)
	}
}

// send sends the news so far, without waiting.
func (r *reporter) send() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timer = nil
	if !r.changed || r.ended {
		return
	}
	rep := r.take()
	if _, err := r.bus.PublishAsync(event.ReportSubject(rep.Run), event.ReportID(rep), rep); err != nil {
		r.next, r.changed = rep, true
	}
}

// take numbers what has not been sent and starts afresh. The caller holds the lock.
func (r *reporter) take() event.Report {
	rep := r.next
	r.n++
	rep.N, rep.Time = r.n, time.Now().UTC()
	r.next, r.changed = event.Report{Run: rep.Run, Attempt: rep.Attempt}, false
	return rep
}

// final reports the outcome and returns when every report is stored.
func (r *reporter) final(ctx context.Context, out outcome, logEnd uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	rep := r.take()
	rep.Begun, rep.Steps, rep.Images, rep.Bases, rep.Commit = r.all.Begun, r.all.Steps, r.all.Images, r.all.Bases, r.all.Commit
	rep.Final, rep.Reason, rep.Blameless, rep.LogEnd = out.state, out.reason, out.blameless, logEnd
	for delay := 100 * time.Millisecond; ; delay *= 2 {
		_, err := r.bus.Publish(ctx, event.ReportSubject(rep.Run), event.ReportID(rep), rep)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err := pause(ctx, delay); err != nil {
			return err
		}
	}
}
