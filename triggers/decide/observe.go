package decide

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"kiln/internal/task"
)

// Observe folds an observation into the state of a default, branch, tag or pull request track and decides
// whether a run is due.
func Observe(in Input) Outcome {
	f := fold{Input: in, next: in.State.clone()}
	f.observe()
	if f.Seen.Origin == FromBaseline || f.Seen.Origin == FromReconcile && !f.State.Known && f.Track.Kind == TrackDefault {
		return f.baseline()
	}
	f.next.Known = true
	f.adopt()
	if f.next.Observed.Commit == f.next.Considered.Commit && len(f.moved()) == 0 {
		return f.nothing()
	}
	if f.Task.Status == task.Disabled {
		return f.refuse([]Verdict{{Input: "task", Kind: Disabled, Reason: fmt.Sprintf("task %q is disabled", f.Task.Name)}})
	}
	verdicts, question := f.verdicts()
	due := slices.DeleteFunc(slices.Clone(verdicts), func(v Verdict) bool { return v.Kind != Run })
	switch {
	case len(due) == 0 && question != nil:
		return Outcome{State: in.State, Question: question}
	case len(due) == 0:
		return f.refuse(verdicts)
	}
	if until := f.wait(due); f.Now.Before(until) {
		return Outcome{State: f.next, Store: !same(f.next, in.State), Hold: until}
	}
	return f.run(due[0], verdicts)
}

// A fold is one observation on its way into the state.
type fold struct {
	Input
	next   State
	target string // commit to run: the head, or the next one of every
}

// observe writes what was seen into the observed state.
func (f *fold) observe() {
	o := &f.next.Observed
	if o.Definition = f.Definition; o.Definition == "" {
		o.Definition = f.Task.Hash()
	}
	if s := f.Seen.Source; s != nil {
		o.Commit = s.Head
		if s.Pull != nil {
			f.retarget(s)
		}
	}
	for name, digest := range f.Seen.Bases {
		if digest == "" && o.Bases[name] != "" {
			continue // it was deleted: what is built on it stays as it is
		}
		if o.Bases == nil {
			o.Bases = map[string]string{}
		}
		o.Bases[name] = digest
	}
	f.target = o.Commit
}

// retarget takes in the branch that a pull request goes to. A commit that was refused is judged anew for another.
func (f *fold) retarget(s *Source) {
	if f.next.Into != "" && f.next.Into != s.Name && f.next.Attempted.Commit != s.Head {
		f.next.Considered.Commit = ""
	}
	f.next.Into = s.Name
}

// baseline takes what is there as considered.
func (f *fold) baseline() Outcome {
	if f.State.Known {
		return Outcome{State: f.State, Decision: f.decision(Duplicate, "the ref is followed already")}
	}
	f.next.Known = true
	f.next.Considered = f.next.Observed.clone()
	return f.stored(f.decision(Unchanged, "this is the state at the beginning; changes from now on make a run due"))
}

// adopt takes base images that are new to the track as considered. On other tracks than the default one
// bases are pinned, but do not make a run due.
func (f *fold) adopt() {
	for name, digest := range f.next.Observed.Bases {
		if _, known := f.next.Considered.Bases[name]; known && f.Track.Kind == TrackDefault {
			continue
		}
		if f.next.Considered.Bases == nil {
			f.next.Considered.Bases = map[string]string{}
		}
		f.next.Considered.Bases[name] = digest
	}
}

// moved returns the base images that differ from what was considered, sorted.
func (f *fold) moved() []string {
	var names []string
	for name, digest := range f.next.Observed.Bases {
		if f.next.Considered.Bases[name] != digest {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// nothing is the outcome if nothing that could make a run due has changed.
func (f *fold) nothing() Outcome {
	switch {
	case f.next.Pending != nil:
		f.next.Pending = nil
		f.next.Considered = f.next.Observed.clone()
		return f.stored(f.decision(Unchanged, "what had changed was changed back while further changes were waited for"))
	case f.next.Considered.Definition != f.next.Observed.Definition:
		f.next.Considered.Definition = f.next.Observed.Definition
		return f.stored(f.decision(Unchanged, "the definition has changed; the next run uses it"))
	case f.State.Into != "" && f.next.Into != f.State.Into:
		return f.stored(f.decision(Unchanged, fmt.Sprintf("the commit was built, and now is to go to branch %s", f.next.Into)))
	case !same(f.next, f.State): // a base image that is new to the track
		return f.stored(f.decision(Unchanged, "base images are followed from here on"))
	case f.Seen.Event != "" && slices.Contains(f.State.Events, f.Seen.Event):
		d := f.decision(Duplicate, "the event was decided before")
		d.Run = f.State.Run
		return Outcome{State: f.State, Decision: d}
	}
	if s := f.Seen.Source; s != nil && s.Claimed != "" && s.Claimed != s.Head && f.State.Run != "" {
		d := f.decision(Coalesced, fmt.Sprintf("commit %s was overtaken by %s", short(s.Claimed), short(s.Head)))
		d.Run = f.State.Run
		return Outcome{State: f.State, Decision: d}
	}
	if f.Seen.Origin == FromReconcile {
		return Outcome{State: f.State}
	}
	return Outcome{State: f.State, Decision: f.decision(Unchanged, "nothing has changed since the last decision")}
}

// refuse records why nothing is run, once: the state counts as considered.
func (f *fold) refuse(verdicts []Verdict) Outcome {
	main := verdicts[0]
	for _, v := range verdicts[1:] {
		if v.depth > main.depth {
			main = v
		}
	}
	d := f.decision(main.Kind, main.Reason)
	d.Class, d.Filter, d.Trigger, d.Verdicts = main.class, main.Filter, main.Trigger, verdicts
	f.next.Considered = f.next.Observed.clone()
	again := f.target != f.next.Observed.Commit
	if again {
		f.next.Considered.Commit = f.target
	}
	f.next.Pending = nil
	out := f.stored(d)
	out.Again = again
	return out
}

// wait returns until when further changes are waited for.
func (f *fold) wait(due []Verdict) time.Time {
	quiet := due[0].quiet
	for _, v := range due {
		quiet = min(quiet, v.quiet)
	}
	if quiet <= 0 || f.Seen.Urgent {
		return time.Time{}
	}
	p := f.next.Pending
	switch {
	case p == nil || f.Now.Before(p.Since): // nothing was waited for, or the clock was set back
		p = &Pending{Since: f.Now, Last: f.Now}
		f.next.Pending = p
	case !f.next.Observed.Equal(f.State.Observed):
		p.Last = f.Now
		if old := f.State.Observed.Commit; old != "" && old != f.next.Observed.Commit && old != f.next.Considered.Commit {
			p.Commits = appendNew(p.Commits, old)
		}
	}
	until, latest := p.Last.Add(quiet), p.Since.Add(maxWait)
	if latest.Before(until) {
		return latest
	}
	return until
}

// run makes a run due.
func (f *fold) run(cause Verdict, verdicts []Verdict) Outcome {
	d := f.decision(Run, cause.Reason)
	d.Class, d.Lane, d.Trigger, d.Verdicts, d.Run = cause.class, cause.class, cause.Trigger, verdicts, f.RunID
	if f.Seen.Origin == FromReconcile {
		d.Lane = LaneReconcile
	}
	d.NeedsApproval, d.Restricted = cause.approval, cause.restricted
	state := f.next.Observed.clone()
	state.Commit = f.target
	pin := state.clone()
	if pin.Commit == "" {
		pin.Commit = f.next.Considered.Commit // the ref is gone: what it was
	}
	d.Pin = &pin
	if f.next.Pending != nil {
		d.Coalesced = f.next.Pending.Commits
	}
	if s := f.Seen.Source; s != nil && s.Claimed != "" && s.Claimed != f.target && !cause.every {
		d.Coalesced = appendNew(d.Coalesced, s.Claimed)
	}
	d.Coalesced = slices.DeleteFunc(d.Coalesced, func(c string) bool { return c == pin.Commit })
	if old := f.next.Queued[cause.class]; old != "" && !cause.every {
		d.Supersedes = []string{old}
	}
	if f.next.Queued == nil {
		f.next.Queued = map[Class]string{}
	}
	f.next.Queued[cause.class], f.next.Run, f.next.Pending = f.RunID, f.RunID, nil
	f.next.Considered, f.next.Attempted = state.clone(), state
	out := f.stored(d)
	out.Again = f.target != f.next.Observed.Commit
	return out
}

// stored is the outcome of a decision that changes the state.
func (f *fold) stored(d *Decision) Outcome {
	f.next.remember(f.Seen.Event)
	return Outcome{Decision: d, State: f.next, Store: true}
}

func (f *fold) decision(kind Kind, reason string) *Decision {
	return &Decision{Kind: kind, Time: f.Now, Track: f.Track.Key(), Event: f.Seen.Event, Origin: f.Seen.Origin, Reason: reason}
}

// same reports whether two states of a track are equal as far as Observe changes them without deciding.
func same(a, b State) bool {
	if (a.Pending == nil) != (b.Pending == nil) || a.Pending != nil && (!a.Pending.Since.Equal(b.Pending.Since) || !a.Pending.Last.Equal(b.Pending.Last)) {
		return false
	}
	return a.Known == b.Known && a.Observed.Equal(b.Observed) && a.Considered.Equal(b.Considered)
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) || len(list) >= maxCoalesced {
		return list
	}
	return append(list, s)
}

// short returns the beginning of a commit or digest, for a sentence.
func short(s string) string {
	algorithm, rest, ok := strings.Cut(s, ":")
	if !ok {
		algorithm, rest = "", s
	} else {
		algorithm += ":"
	}
	return algorithm + rest[:min(len(rest), shortestCommit)]
}

// Due lists the inputs that differ from what was considered: "source" and names of base images.
func (s State) Due() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(s.Observed.Bases)) {
		if s.Considered.Bases[name] != s.Observed.Bases[name] {
			names = append(names, name)
		}
	}
	if s.Observed.Commit != s.Considered.Commit {
		names = append([]string{"source"}, names...)
	}
	return names
}
