package triggers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

const (
	heads = "refs/heads/"
	tags  = "refs/tags/"
)

// shortRef returns the name of a branch or tag.
func shortRef(ref string) string {
	return strings.TrimPrefix(strings.TrimPrefix(ref, heads), tags)
}

// ref returns how the repository names what a track follows.
func (p *pass) ref() string {
	switch p.track.Kind {
	case decide.TrackBranch:
		return heads + p.track.Name
	case decide.TrackTag:
		return tags + p.track.Name
	case decide.TrackPull:
		if p.pull != nil {
			return pullRef(p.pull)
		}
	}
	return p.context.Ref
}

// source resolves the ref of a track.
func (d *Decider) source(ctx context.Context, p *pass) (*decide.Source, error) {
	if p.track.Kind == decide.TrackPull {
		return d.pullSource(ctx, p)
	}
	head, err := p.sight.head(ctx, p.entry, p.location, p.ref())
	if err != nil {
		return nil, err
	}
	p.head = head
	s := &decide.Source{Name: p.track.Name, Head: head.Commit}
	if p.track.Kind == decide.TrackDefault {
		if s.Name = shortRef(head.Ref); s.Name == "" {
			s.Name = shortRef(p.context.Ref)
		}
		s.Default = s.Name
	}
	if p.push != nil {
		p.claims(s)
	}
	return s, nil
}

// claims adds what the event says of commits. Where every commit is to be run, pushes that follow each
// other are taken one after the other.
func (p *pass) claims(s *decide.Source) {
	e := p.push
	s.Claimed = e.After
	rest := commitsAfter(e, p.state.Considered.Commit)
	if len(rest) > 0 && s.Head != "" && slices.ContainsFunc(p.task.Triggers.Source, everyCommit) {
		s.Head = e.After
		s.Commits = &decide.Commits{From: p.state.Considered.Commit, List: rest}
	}
	if e.HeadMessage != "" && e.After == s.Head {
		s.Messages = map[string]string{e.After: e.HeadMessage}
	}
}

// commitsAfter returns the commits of a push that come after one, if the push names them all.
func commitsAfter(e *event.GitPushed, commit string) []string {
	if commit == "" || e.Before == "" || e.FilesUnknown || len(e.Commits) == 0 || e.Commits[len(e.Commits)-1].ID != e.After {
		return nil
	}
	all := []string{e.Before}
	for _, c := range e.Commits {
		all = append(all, c.ID)
	}
	i := slices.Index(all, commit)
	if i < 0 {
		return nil
	}
	return all[i+1:]
}

func everyCommit(t task.SourceTrigger) bool { return t.Commits == task.CommitsEvery }

// answer finds out what decide asks for.
func (d *Decider) answer(ctx context.Context, p *pass, in *decide.Input, q decide.Question) error {
	if in.Seen.Source == nil {
		s, err := d.source(ctx, p)
		in.Seen.Source = s
		return err
	}
	s := in.Seen.Source
	if q.Message {
		text, err := p.sight.message(ctx, p.entry, p.location, p.head.Ref, q.To)
		if err != nil {
			return err
		}
		if s.Messages == nil {
			s.Messages = map[string]string{}
		}
		s.Messages[q.To] = text
	}
	if q.Files {
		from := q.From
		if from == "" {
			from = p.defaults.Observed.Commit // a new branch: what it has in addition to the context's
		}
		names, err := p.sight.changed(ctx, p.entry, p.location, from, q.To)
		if err != nil {
			return err
		}
		s.Files = &decide.Files{From: q.From, To: q.To, Names: names, Unknown: names == nil}
	}
	if q.Commits {
		list, err := d.commits(ctx, p, q)
		if err != nil {
			return err
		}
		s.Commits = &decide.Commits{From: q.From, List: list}
	}
	return nil
}

// commits returns the commits of a question: as the push says that the track's last decision is about, or
// else the last one alone.
func (d *Decider) commits(ctx context.Context, p *pass, q decide.Question) ([]string, error) {
	if p.last.Seq == 0 {
		return []string{q.To}, nil
	}
	ev, err := d.eventAt(ctx, p.last.Seq)
	if errors.Is(err, bus.ErrNone) || err == nil && ev.Type != event.TypeGitPushed {
		return []string{q.To}, nil
	}
	var push event.GitPushed
	if err == nil {
		err = decode(ev, &push)
	}
	if err != nil {
		return nil, err
	}
	if list := commitsAfter(&push, q.From); push.After == q.To && len(list) > 0 {
		return list, nil
	}
	return []string{q.To}, nil
}

// pullRef returns the ref of the repository that holds the head of a pull request, or else the branch of
// the repository that it comes from.
func pullRef(e *event.PullRequestUpdated) string {
	if e.FetchRef != "" {
		return e.FetchRef
	}
	return heads + e.HeadRef
}

// pullSource resolves the head of a pull request and the branch that it goes to.
func (d *Decider) pullSource(ctx context.Context, p *pass) (*decide.Source, error) {
	if err := d.recall(ctx, p); err != nil {
		return nil, err
	}
	e := p.pull
	s := &decide.Source{Name: e.BaseRef, Claimed: e.HeadSHA, Pull: &decide.Pull{Number: e.Number, Fork: e.Fork}}
	if e.Action == event.PullClosed || e.Action == event.PullMerged {
		return s, nil
	}
	if e.FetchRef == "" && e.Fork {
		if p.location = besides(p.context.URL, e.HeadRepository); p.location == "" {
			p.location, s.Head, s.Pull.Unreachable = p.context.URL, e.HeadSHA, unreachable(e)
		}
	}
	var err error
	if s.Pull.Unreachable == "" {
		if p.head, err = p.sight.head(ctx, p.entry, p.location, pullRef(e)); err != nil {
			return nil, err
		}
		if s.Head = p.head.Commit; len(s.Claimed) < 40 {
			s.Claimed = ""
		}
	}
	base, err := p.sight.head(ctx, p.entry, p.context.URL, heads+e.BaseRef)
	if err != nil {
		return nil, err
	}
	s.Pull.Base = base.Commit
	if s.Default = shortRef(p.context.Ref); s.Default == "" {
		main, err := p.sight.head(ctx, p.entry, p.context.URL, "")
		if err != nil {
			return nil, err
		}
		s.Default = shortRef(main.Ref)
	}
	if e.Fork {
		s.Pull.Trusted, err = d.trusted(ctx, p)
	}
	return s, err
}

// unreachable says why the commits of a pull request from a fork cannot be had.
func unreachable(e *event.PullRequestUpdated) string {
	if e.HeadRepository.FullName == "" {
		return "its repository was deleted"
	}
	return fmt.Sprintf("its repository %s cannot be reached as the task's is: it is on another server, or only by another protocol", e.HeadRepository.FullName)
}

// recall reads the event that says what the pull request of a track is.
func (d *Decider) recall(ctx context.Context, p *pass) error {
	if p.pull != nil {
		return nil
	}
	ev, err := d.eventAt(ctx, p.last.Seq)
	if err != nil {
		return err
	}
	p.pull = &event.PullRequestUpdated{}
	return decode(ev, p.pull)
}

func (d *Decider) eventAt(ctx context.Context, seq uint64) (event.Event, error) {
	var ev event.Event
	err := d.Bus.At(ctx, bus.StreamEvents, seq, &ev)
	if errors.Is(err, bus.ErrNone) {
		return ev, fmt.Errorf("event %d is not stored: %w", seq, err)
	}
	return ev, err
}

// besides returns the URL of a repository on the same server as another URL, and reached in the same way.
func besides(location string, r event.Repository) string {
	server := func(u string) string {
		scheme, rest, _ := strings.Cut(u, "://")
		host, _, _ := strings.Cut(rest, "/")
		return strings.ToLower(scheme + "://" + host)
	}
	for _, u := range r.CloneURLs {
		if server(u) == server(location) && strings.Contains(u, "://") {
			return u
		}
	}
	return ""
}

// trusted reports whether the author of a pull request may push, or was approved before.
func (d *Decider) trusted(ctx context.Context, p *pass) (bool, error) {
	if slices.Contains([]string{"OWNER", "MEMBER", "COLLABORATOR", "CONTRIBUTOR"}, p.pull.AuthorAssociation) {
		return true, nil
	}
	who := authorID(p.pull)
	if who == "" && p.pull.Repository.Provider != "bitbucket" { // whose nicknames are not unique
		who = author(p.pull)
	}
	if who == "" {
		return false, nil
	}
	return d.isTrusted(ctx, event.TrustKey(p.context.URL, who))
}

// authorID is the account of the author of a pull request; empty if the forge does not say.
func authorID(e *event.PullRequestUpdated) string {
	if e.Author.ID == "" {
		return ""
	}
	return e.Repository.Provider + ":id:" + e.Author.ID
}

// author is how the author of a pull request is recorded.
func author(e *event.PullRequestUpdated) string {
	if e.Author.Login == "" {
		return ""
	}
	return e.Repository.Provider + ":" + e.Author.Login
}
