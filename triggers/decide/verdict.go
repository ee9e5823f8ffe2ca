package decide

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"kiln/internal/graph"
	"kiln/internal/task"
)

// verdicts judges every input that differs from what was considered, the source first.
func (f *fold) verdicts() ([]Verdict, *Question) {
	var list []Verdict
	var question *Question
	if f.next.Observed.Commit != f.next.Considered.Commit {
		v, q := f.source()
		question = q
		if q == nil {
			list = append(list, v)
		}
	}
	for _, name := range f.moved() {
		list = append(list, f.base(name))
	}
	return list, question
}

// base judges a base image that moved.
func (f *fold) base(name string) Verdict {
	t, b := f.Task.Triggers.BaseImage, f.Bases[name]
	v := Verdict{Input: name, Trigger: t.Name, class: ClassBase}
	if t.Quiet != nil {
		v.quiet = time.Duration(*t.Quiet)
	}
	switch {
	case t.Status == task.Disabled:
		v.Kind, v.Reason = Disabled, "the base image trigger is disabled"
	case b.Pinned:
		v.Kind, v.Reason = Pinned, fmt.Sprintf("the Dockerfile pins %s to a digest", name)
	case t.Type != task.All && b.Kind == graph.Buildtime:
		v.Kind, v.Filter, v.Reason = Filtered, FilterType, fmt.Sprintf("%s is only used while building, and the trigger's type is %s", name, task.Runtime)
	case b.PushedBy != "" && b.PushedBy == f.Task.UID:
		v.Kind, v.Reason = Cycle, fmt.Sprintf("%s was pushed by this task itself", name)
	case len(b.Cycle) > 0:
		v.Kind, v.Reason = Cycle, "tasks build on each other in a circle: "+strings.Join(b.Cycle, " <- ")
	case b.Blocked != "":
		v.Kind, v.Reason = Blocked, fmt.Sprintf("%s is not used: %s", name, b.Blocked)
	case f.next.Considered.Bases[name] == "":
		v.Kind, v.Reason = Run, fmt.Sprintf("base image %s has come to be, at %s", name, short(f.next.Observed.Bases[name]))
	default:
		v.Kind = Run
		v.Reason = fmt.Sprintf("base image %s moved from %s to %s", name, short(f.next.Considered.Bases[name]), short(f.next.Observed.Bases[name]))
	}
	return v
}

// A change is what became of the ref since the last decision.
type change struct {
	event         task.SourceEvent
	before, after string
	deleted       bool
}

// source judges the commit. The question is what it takes to tell.
func (f *fold) source() (Verdict, *Question) {
	c := f.change()
	v := Verdict{Input: "source", class: ClassCommit}
	if f.Track.Kind == TrackPull {
		v.class = ClassPull
	}
	ctx, err := task.ParseContext(f.Task.Context)
	switch {
	case err == nil && ctx.Pinned():
		v.Kind, v.Reason = Pinned, "the context names a commit"
		return v, nil
	case f.Track.Kind == TrackPull && c.deleted:
		v.Kind, v.Filter, v.Reason = Filtered, FilterClosed, "pull request "+f.Track.Name+" was closed"
		return v, nil
	case len(f.Task.Triggers.Source) == 0:
		v.Kind, v.Reason = Disabled, "the task has no source trigger"
		return v, nil
	case f.Seen.Source == nil:
		// The commit was observed before and not decided: its details have to be looked up again.
		return v, &Question{From: c.before, To: c.after, Message: true, Files: true, Commits: true}
	}
	return f.triggers(v, c)
}

// change tells what became of the ref by the states alone.
func (f *fold) change() change {
	c := change{before: f.next.Considered.Commit, after: f.next.Observed.Commit}
	c.deleted = c.after == ""
	switch {
	case f.Track.Kind == TrackPull:
		c.event = task.PullRequest
	case f.Track.Kind == TrackTag:
		c.event = task.Tag
	case c.deleted:
		c.event = task.BranchDeleted
	case c.before == "":
		c.event = task.BranchCreated
	default:
		c.event = task.Push
	}
	return c
}

// triggers asks each source trigger. The first that agrees counts; of those that refuse, the one that came
// furthest.
func (f *fold) triggers(v Verdict, c change) (Verdict, *Question) {
	var best *Verdict
	var question *Question
	for _, t := range f.Task.Triggers.Source {
		got, q, target := f.trigger(t, v, c)
		switch {
		case q != nil:
			question = merge(question, q)
		case got.Kind == Run:
			f.target = target
			return got, nil
		default:
			if best == nil || got.depth > best.depth {
				best = &got
			}
			if target != c.after { // the commits after it are still to be asked about
				f.target = target
			}
		}
	}
	if question != nil || best == nil {
		return v, question
	}
	return *best, nil
}

func merge(a, b *Question) *Question {
	if a == nil {
		return b
	}
	a.Message, a.Files, a.Commits = a.Message || b.Message, a.Files || b.Files, a.Commits || b.Commits
	return a
}

// trigger asks one source trigger. The target is the commit that it is about.
func (f *fold) trigger(t task.SourceTrigger, v Verdict, c change) (_ Verdict, _ *Question, target string) {
	s := f.Seen.Source
	v.Trigger, v.quiet, target = t.Name, time.Duration(t.Quiet), c.after
	refuse := func(depth int, kind Kind, filter, format string, args ...any) (Verdict, *Question, string) {
		v.depth, v.Kind, v.Filter, v.Reason = depth, kind, filter, fmt.Sprintf(format, args...)
		return v, nil, target
	}
	switch {
	case t.Status == task.Disabled:
		return refuse(0, Disabled, "", "source trigger %q is disabled", t.Name)
	case !wants(t, c):
		return refuse(1, Filtered, FilterEvent, "source trigger %q does not act on %s", t.Name, c.event)
	case c.event == task.Tag && c.deleted:
		return refuse(1, Filtered, FilterEvent, "tag %s was deleted", s.Name)
	case c.event == task.Tag && len(t.Tags) > 0 && !t.Tags.Match(s.Name):
		return refuse(2, Filtered, FilterTag, "tag %s matches no pattern of source trigger %q", s.Name, t.Name)
	case c.event != task.Tag && !f.branchMatches(t, s):
		return refuse(2, Filtered, FilterBranch, "branch %s matches no pattern of source trigger %q", s.Name, t.Name)
	case s.Pull != nil && s.Pull.Fork && t.Forks == task.ForksNever:
		return refuse(3, Filtered, FilterForks, "pull request %d comes from a fork", s.Pull.Number)
	case s.Pull != nil && s.Pull.Unreachable != "":
		return refuse(4, Blocked, "", "pull request %d comes from a fork, and %s", s.Pull.Number, s.Pull.Unreachable)
	}
	q := Question{From: c.before, To: c.after}
	if t.Commits == task.CommitsEvery && c.event == task.Push {
		list, ok := s.every(c)
		if !ok {
			q.Commits = true
			return v, &q, target
		}
		v.every, target, q.To = true, list[0], list[0]
	}
	if s.Pull != nil {
		q.From = s.Pull.Base
	}
	if filter, reason := s.content(t, c, &q); filter != "" {
		return refuse(5, Filtered, filter, "%s", reason)
	}
	if q.Message || q.Files {
		return v, &q, target
	}
	v.Kind, v.Reason = Run, f.sentence(c, s, target)
	if s.Pull != nil && s.Pull.Fork {
		v.restricted, v.approval = true, t.Forks == task.ForksApprove && !s.Pull.Trusted
	}
	return v, nil, target
}

// wants reports whether a trigger acts on a change. A new branch is a push too.
func wants(t task.SourceTrigger, c change) bool {
	return slices.Contains(t.Events, c.event) || c.event == task.BranchCreated && slices.Contains(t.Events, task.Push)
}

func (f *fold) branchMatches(t task.SourceTrigger, s *Source) bool {
	if len(t.Branches) == 0 {
		return f.Track.Kind == TrackDefault || s.Name != "" && s.Name == s.Default
	}
	return t.Branches.Match(s.Name)
}

// every returns the commits that follow the one considered, if they are known.
func (s *Source) every(c change) ([]string, bool) {
	if s.Commits == nil || s.Commits.From != c.before || len(s.Commits.List) == 0 || s.Commits.List[len(s.Commits.List)-1] != c.after {
		return nil, false
	}
	return s.Commits.List, true
}

// content applies the filters that look into the commits q is about. What it needs to know and does not
// it adds to q.
func (s *Source) content(t task.SourceTrigger, c change, q *Question) (filter, reason string) {
	if c.deleted {
		return "", ""
	}
	if t.SkipCI == task.SkipHonor {
		message, known := s.Messages[q.To]
		q.Message = !known
		if skips(message) {
			return FilterSkipCI, fmt.Sprintf("the message of commit %s asks not to be built", short(q.To))
		}
	}
	if len(t.Paths) == 0 || c.event == task.Tag {
		return "", ""
	}
	if s.Files == nil || s.Files.From != q.From || s.Files.To != q.To {
		q.Files = true
		return "", ""
	}
	if !s.Files.Unknown && !t.Paths.MatchAny(s.Files.Names) {
		return FilterPaths, fmt.Sprintf("none of the %d files that changed since %s matches the paths of source trigger %q", len(s.Files.Names), since(q.From), t.Name)
	}
	return "", ""
}

func since(commit string) string {
	if commit == "" {
		return "the branch began"
	}
	return short(commit)
}

// skips reports whether a commit message asks not to be built.
func skips(message string) bool {
	lower := strings.ToLower(message)
	for _, word := range []string{"[skip ci]", "[ci skip]", "[no ci]", "[skip kiln]", "[kiln skip]"} {
		if strings.Contains(lower, word) {
			return true
		}
	}
	return false
}

// sentence says what happened to the source.
func (f *fold) sentence(c change, s *Source, target string) string {
	name := s.Name
	if name == "" {
		name = f.Track.Key()
	}
	switch {
	case s.Pull != nil:
		return fmt.Sprintf("pull request %s is at %s", f.Track.Name, short(target))
	case c.event == task.Tag:
		return fmt.Sprintf("tag %s is at %s", name, short(target))
	case c.deleted:
		return fmt.Sprintf("branch %s was deleted at %s", name, short(c.before))
	case c.before == "":
		return fmt.Sprintf("branch %s is new, at %s", name, short(target))
	}
	return fmt.Sprintf("branch %s moved from %s to %s", name, short(c.before), short(target))
}
