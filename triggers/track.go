package triggers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/source/git"
	"kiln/triggers/decide"
	"kiln/triggers/watch"
)

const (
	firstChunk    = 16   // tracks that are looked at before any other, so that the first runs begin at once
	lastChunk     = 256  // and at most at a time
	atOnce        = 32   // tracks of a chunk
	maxRounds     = 1000 // looks at one track in a row
	maxQuestions  = 16   // of one look
	confirmWithin = time.Minute
)

// An occasion is why tracks are looked at.
type occasion struct {
	event  string // ID, if an event is the reason
	seq    uint64 // of the event in its stream
	at     time.Time
	origin decide.Origin
	alarm  bool // the track's alarm went off; the event is that of its last decision
	fresh  bool // images are asked for anew
	dry    bool // nothing is stored
	report *report
}

// A target is a track to look at, and what to look at.
type target struct {
	*entry
	track  decide.Track
	source bool // the ref
	push   *event.GitPushed
	pull   *event.PullRequestUpdated
	told   *told // by a sweep
	bases  []graph.Name
}

// A pass is one look at a track, from reading its state to storing the next.
type pass struct {
	target
	occ   *occasion
	sight *sight

	last     event.Decision // what the track's state was read from
	seq      uint64
	defaults decide.State // of the default track, for others
	event    string       // ID of the event that is the reason, if one is
	evSeq    uint64       // of the event in its stream
	at       time.Time    // when it came in
	head     git.Head     // if the ref was looked at
	location string       // of the repository it is in

	out   decide.Outcome
	state decide.State // to compare with
	made  *event.Decision
	ack   bus.Ack // of the decision
	alarm bus.Ack
	err   error
}

// look decides what is due on some tracks. When it returns nil all decisions are stored, and the alarms
// that they need are set.
func (d *Decider) look(ctx context.Context, occ *occasion, targets []target) error {
	var errs []error
	for size := firstChunk; len(targets) > 0 && ctx.Err() == nil; size = min(size*2, lastChunk) {
		chunk := targets[:min(size, len(targets))]
		targets = targets[len(chunk):]
		for round := 0; len(chunk) > 0; round++ {
			if round == maxRounds {
				errs = append(errs, fmt.Errorf("task %q: track %s is not settled after %d decisions", chunk[0].task.Name, chunk[0].track.Key(), round))
				break
			}
			var err error
			if chunk, err = d.glance(ctx, occ, chunk); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// glance looks at tracks once, and returns those that have to be looked at again. All states are read
// before anything is resolved, so what is resolved is never older than the state that it is compared with.
func (d *Decider) glance(ctx context.Context, occ *occasion, targets []target) ([]target, error) {
	passes := make([]*pass, len(targets))
	each(len(targets), func(i int) {
		passes[i] = &pass{target: targets[i], occ: occ, location: targets[i].context.URL}
		passes[i].err = d.read(ctx, passes[i])
	})
	s := &sight{d: d, fresh: occ.fresh}
	if occ.origin == decide.FromBaseline {
		s = d.lately.sight(d) // a state that is not known cannot be newer
	}
	each(len(passes), func(i int) {
		if p := passes[i]; p.err == nil {
			p.sight = s
			p.err = d.pass(ctx, p)
		}
	})
	for _, p := range passes {
		if p.err == nil {
			p.err = d.confirm(ctx, p)
		}
	}
	var again []target
	var errs []error
	for _, p := range passes { // alarms are set by now, only to be waited for
		if p.err == nil && p.alarm != nil {
			p.err = await(ctx, p.alarm)
		}
		switch {
		case errors.Is(p.err, bus.ErrConflict), p.err == nil && p.out.Again && !occ.dry:
			again = append(again, p.target)
		case p.err != nil:
			errs = append(errs, fmt.Errorf("task %q: track %s: %w", p.task.Name, p.track.Key(), p.err))
		}
	}
	return again, errors.Join(errs...)
}

// each calls do for 0 to n-1, several at once, and returns when all calls have.
func each(n int, do func(i int)) {
	if n == 1 {
		do(0)
		return
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i := range n {
		g.Go(func() error { do(i); return nil })
	}
	_ = g.Wait() // do reports by itself
}

// read reads the state of a track, and of the default one if that says what the track is pinned to.
func (d *Decider) read(ctx context.Context, p *pass) error {
	var err error
	if p.last, p.seq, err = d.last(ctx, p.task.UID, p.track); err != nil || p.track.Kind == decide.TrackDefault {
		return err
	}
	base, _, err := d.last(ctx, p.task.UID, decide.Track{Kind: decide.TrackDefault})
	p.defaults = base.State
	return err
}

// last returns the last decision of a track; a zero one if there is none.
func (d *Decider) last(ctx context.Context, uid string, track decide.Track) (event.Decision, uint64, error) {
	var last event.Decision
	seq, err := d.Bus.Last(ctx, bus.StreamDecisions, event.DecisionSubject(uid, track.Key()), &last)
	if errors.Is(err, bus.ErrNone) {
		return event.Decision{}, 0, nil
	}
	return last, seq, err
}

// pass resolves, decides and begins to store.
func (d *Decider) pass(ctx context.Context, p *pass) error {
	p.occ.report.look()
	p.state = p.last.State
	p.reason()
	in := decide.Input{Task: p.task, Definition: p.hash, Track: p.track, Now: time.Now().UTC()}
	seen, err := d.observation(ctx, p)
	switch {
	case err != nil:
		return d.unseen(ctx, p, err)
	case seen == nil:
		return nil
	}
	in.Seen, in.State = *seen, p.state
	if in.RunID, err = d.ids.New(in.Now, rand.Reader); err != nil {
		return err
	}
	if in.Bases, err = d.bases(ctx, p, seen.Bases); err != nil {
		return err
	}
	for range maxQuestions {
		p.out = decide.Observe(in)
		if p.out.Question == nil {
			return d.write(ctx, p)
		}
		if err := d.answer(ctx, p, &in, *p.out.Question); err != nil {
			return d.unseen(ctx, p, err)
		}
	}
	return fmt.Errorf("the question is not answered: %+v", *p.out.Question)
}

// observation resolves what the target asks for. It is nil if there is nothing to compare.
func (d *Decider) observation(ctx context.Context, p *pass) (*decide.Observation, error) {
	seen := &decide.Observation{Event: p.event, Origin: p.occ.origin}
	switch blocked := p.last.Made.Kind == decide.Blocked; {
	case p.occ.alarm:
		p.source = p.source || blocked
	case blocked && !p.state.Known && p.source:
		seen.Origin = decide.FromEvent // which could not be decided when it came
	}
	if p.overtaken() {
		return nil, nil
	}
	if p.told != nil && p.told.basis != p.seq { // by another process, if this one does not know
		d.generation(p.task.UID).Add(1)
		return nil, nil
	}
	if p.source && p.git() {
		var err error
		if seen.Source, err = d.source(ctx, p); err != nil {
			return nil, err
		}
	}
	d.images(ctx, p, seen)
	if !p.state.Known {
		return p.unknown(seen), nil
	}
	p.sinceBaseline(seen)
	return seen, nil
}

// overtaken reports whether an event of a pull request was decided before, or a later one was. Whether the
// request is open is for events to say, so their order counts, unlike that of pushes.
func (p *pass) overtaken() bool {
	return p.pull != nil && p.state.Known && (p.occ.seq < p.last.Seq || slices.Contains(p.state.Events, p.event))
}

// unknown prepares the first observation of a track; nil if it is not the time for one.
func (p *pass) unknown(seen *decide.Observation) *decide.Observation {
	began := p.task.Created
	if p.told != nil {
		began = p.told.since
	}
	switch {
	case seen.Source == nil && p.git():
		return nil // the task is about to get its baseline, with its ref
	case seen.Source != nil && seen.Source.Head == "" && seen.Origin != decide.FromBaseline:
		return nil // gone before it was known
	case seen.Origin == decide.FromEvent && !p.at.After(began):
		seen.Origin = decide.FromBaseline // it happened before the task followed it
	}
	return seen
}

// sinceBaseline makes a push due that happened after the task was created, but whose commit the baseline
// has already found: the baseline is taken back to where the push began.
func (p *pass) sinceBaseline(seen *decide.Observation) {
	s := seen.Source
	if s == nil || p.push == nil || p.last.Made.Origin != decide.FromBaseline || !p.at.After(p.task.Created) {
		return
	}
	if s.Head == "" || s.Head != p.push.After || s.Head != p.state.Considered.Commit || p.push.Before == s.Head {
		return
	}
	p.state.Considered.Commit = p.push.Before
}

// images resolves the base images of a pass. One that cannot be resolved is left out: it is polled, and
// looked at again when the world is reconciled.
func (d *Decider) images(ctx context.Context, p *pass, seen *decide.Observation) {
	seen.Bases = map[string]string{}
	if p.track.Kind != decide.TrackDefault {
		for name, digest := range p.defaults.Observed.Bases {
			seen.Bases[name] = digest
		}
		return
	}
	for _, name := range p.bases {
		digest, err := p.sight.digest(ctx, name)
		if err != nil && !errors.Is(err, watch.ErrNotFound) {
			p.occ.report.problem(fmt.Sprintf("image %s: %s", name, err))
			continue
		}
		seen.Bases[string(name)] = digest
	}
}

// write begins to store an outcome.
func (d *Decider) write(ctx context.Context, p *pass) error {
	if p.out.Decision == nil && !p.out.Store {
		return nil
	}
	dec := &event.Decision{Task: p.task.Name, TaskUID: p.task.UID, Seq: p.evSeq, State: p.out.State, Hold: p.out.Hold}
	if p.out.Decision == nil {
		dec.Made = decide.Decision{Time: time.Now().UTC(), Track: p.track.Key(), Origin: p.occ.origin, Event: p.event,
			Reason: "further changes are waited for until " + p.out.Hold.UTC().Format(time.RFC3339)}
	} else {
		dec.Made = *p.out.Decision
	}
	if dec.Made.Kind == decide.Run {
		d.attach(p, dec)
	}
	if !p.out.Store {
		return d.note(ctx, p, dec)
	}
	p.occ.report.found(dec)
	if p.occ.dry {
		return nil
	}
	d.fetchAhead(p, dec)
	var err error
	subject := event.DecisionSubject(p.task.UID, p.track.Key())
	if err := d.backlog.admit(ctx, d.Bus, subject, p.seq); err != nil {
		return err
	}
	p.made = dec
	p.ack, err = d.Bus.ReplaceAsync(subject, p.seq, dec)
	return err
}

// reason finds the event that is the reason for a pass: an alarm goes off for the event of the last
// decision, and one that is not decided to its end still counts. On the track of a pull request it is
// always the last event of it, which says what the request is.
func (p *pass) reason() {
	p.event, p.evSeq, p.at = p.occ.event, p.occ.seq, p.occ.at
	if p.event != "" {
		return
	}
	pending := p.last.State.Observed.Commit != p.last.State.Considered.Commit
	if p.occ.alarm || pending || p.last.Made.Kind == decide.Blocked {
		p.event, p.evSeq, p.at = p.last.Made.Event, p.last.Seq, p.last.Made.Time
	}
	if p.track.Kind == decide.TrackPull {
		p.evSeq = p.last.Seq
	}
}

// note keeps what was decided about an event that changes no state, for who asks why nothing ran.
func (d *Decider) note(ctx context.Context, p *pass, dec *event.Decision) error {
	if p.push == nil && p.pull == nil || p.event == "" {
		return nil
	}
	p.occ.report.found(dec)
	if p.occ.dry {
		return nil
	}
	return d.publishNote(ctx, dec)
}

func (d *Decider) publishNote(ctx context.Context, dec *event.Decision) error {
	dec.State = decide.State{}
	id := event.Hash(fmt.Sprint(dec.TaskUID, "|", dec.Made.Track, "|", dec.Made.Event, "|", dec.Made.Kind))
	_, err := d.Bus.Publish(ctx, event.NoteSubject(dec.TaskUID), id, dec)
	if err == nil {
		d.count(dec)
	}
	return err
}

// confirm waits until the decision of a pass is stored, and begins to set the alarm that it needs.
func (d *Decider) confirm(ctx context.Context, p *pass) (err error) {
	if p.ack != nil {
		if err := await(ctx, p.ack); err != nil {
			return err
		}
		d.count(p.made)
		d.generation(p.task.UID).Add(1)
	}
	if p.occ.dry {
		return nil
	}
	if p.made != nil && p.track.Kind == decide.TrackDefault && p.made.State.Observed.Commit != p.last.State.Observed.Commit {
		d.setups.add(p.task.UID) // its files may name other images
	}
	if !p.out.Hold.IsZero() {
		p.alarm, err = d.Clock.SetAsync(event.Alarm{TaskUID: p.task.UID, Track: p.track.Key(), At: p.out.Hold})
	}
	return err
}

// generation counts the decisions that this process has stored for a task.
func (d *Decider) generation(uid string) *atomic.Uint64 {
	n, _ := d.generations.LoadOrStore(uid, &atomic.Uint64{})
	return n.(*atomic.Uint64)
}

// await waits for an acknowledgement.
func await(ctx context.Context, ack bus.Ack) error {
	late := time.NewTimer(confirmWithin)
	defer late.Stop()
	select {
	case <-ack.Ok():
		return nil
	case err := <-ack.Err():
		return bus.MapError(err)
	case <-late.C:
		return fmt.Errorf("no acknowledgement within %s", confirmWithin)
	case <-ctx.Done():
		return ctx.Err()
	}
}
