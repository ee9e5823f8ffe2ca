package triggers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/forge"
	"kiln/internal/store"
	"kiln/triggers/decide"
)

// sweepSource is the source of events that a sweep makes of what a forge says. It decides them itself.
const sweepSource = "/reconcile"

// maxAsked is how many pull requests of a repository are asked for by themselves in one sweep.
const maxAsked = 100

// baselinePulls notes when a task has begun to follow pull requests: those that are older are due only when they
// change.
func (d *Decider) baselinePulls(ctx context.Context, e *entry) error {
	if !wantsPulls(e) {
		return nil
	}
	repository := event.Hash(e.context.URL)
	last, seq, err := d.last(ctx, e.task.UID, pullsTrack)
	if err != nil || last.State.Considered.Definition == repository {
		return err
	}
	made := decide.Decision{Kind: decide.Unchanged, Time: time.Now().UTC(), Track: pullsTrack.Key(), Origin: decide.FromBaseline,
		Reason: "pull requests are followed from here on"}
	state := decide.State{Known: true, Considered: decide.Snapshot{Definition: repository}}
	_, err = d.Bus.Replace(ctx, event.DecisionSubject(e.task.UID, pullsTrack.Key()), seq,
		event.Decision{Task: e.task.Name, TaskUID: e.task.UID, Made: made, State: state})
	d.generation(e.task.UID).Add(1)
	return err
}

// A told is what a sweep has found out about a track before it looks at it: if the track has moved on since, that
// may be older, and counts for nothing.
type told struct {
	basis uint64    // sequence of the track's decision that was compared; 0 if there was none
	since time.Time // when the task began to follow pull requests
}

// A pullSite is a repository whose pull requests tasks follow and whose forge can be asked about them.
type pullSite struct {
	at    forge.Config // with the token
	named bool         // the token is one for the forge, not only for the repository
	tasks []*entry
	known []map[int]knownPull // of each task
	since []time.Time
}

// A knownPull is the track of a pull request and what its last event said.
type knownPull struct {
	began
	said *event.PullRequestUpdated
}

// sweepPulls compares the pull requests that forges name with those that tasks know, and decides what is due. It
// is the way to find one that was opened, closed or sent elsewhere when nobody told.
func (d *Decider) sweepPulls(ctx context.Context, occ *occasion, entries []*entry) error {
	entries = slices.DeleteFunc(slices.Clone(entries), func(e *entry) bool { return !wantsPulls(e) })
	if d.ForgeHTTP == nil || len(entries) == 0 {
		return nil
	}
	sites, err := d.pullSites(ctx, entries, occ.report)
	if err != nil {
		return err
	}
	own := &report{}
	defer occ.report.merge(own) // what is to be merged into is evaluated here
	occ = &occasion{dry: occ.dry, report: own}
	var mu sync.Mutex
	var errs []error
	silent := map[string]bool{} // hosts that have not answered
	each(len(sites), func(i int) {
		s := sites[i]
		host := forge.Host(s.at.URL)
		mu.Lock()
		skip := silent[host]
		mu.Unlock()
		if skip {
			return
		}
		err := d.sweepSite(ctx, occ, s)
		var refused *forgeProblem
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.As(err, &refused):
			silent[host] = silent[host] || !forge.Permanent(err)
			if s.named || !forge.Permanent(err) {
				occ.report.problem(err.Error())
			}
		case err != nil:
			errs = append(errs, err)
		}
	})
	return errors.Join(errs...)
}

// A forgeProblem is why pull requests could not be listed.
type forgeProblem struct {
	url string
	err error
}

func (e *forgeProblem) Error() string { return "pull requests of " + e.url + ": " + e.err.Error() }
func (e *forgeProblem) Unwrap() error { return e.err }

// pullSites groups tasks by the repository and the token to ask with: that of the repository's hook, or else the
// one that the task shows the repository. A repository without is left out.
func (d *Decider) pullSites(ctx context.Context, entries []*entry, r *report) ([]*pullSite, error) {
	var hooks []event.Hook
	err := d.Store.Hooks.List(ctx, func(e store.Entry[event.Hook]) bool { hooks = append(hooks, e.Value); return true })
	if err != nil {
		return nil, err
	}
	sites := map[string]*pullSite{}
	for _, e := range entries {
		at := forge.Locate(e.context.URL, slices.Values(hooks), d.Forges)
		name, named := at.Token, at.Token != ""
		if !named {
			name = e.task.ContextSecret
		}
		if at.Provider == "" || name == "" || d.Secret == nil {
			continue
		}
		key := e.repo + "\n" + name
		if sites[key] == nil {
			if at.Token, err = d.Secret(ctx, name); err != nil {
				r.problem(fmt.Sprintf("pull requests of %s: %s", e.context.URL, err))
				continue
			}
			at.Token, at.HTTP = strings.TrimSpace(at.Token), d.ForgeHTTP
			sites[key] = &pullSite{at: at, named: named}
		}
		sites[key].tasks = append(sites[key].tasks, e)
	}
	return slices.Collect(maps.Values(sites)), nil
}

// sweepSite compares the pull requests of a repository. What is known is read before the forge is asked.
func (d *Decider) sweepSite(ctx context.Context, occ *occasion, s *pullSite) error {
	for _, e := range s.tasks {
		known, since, err := d.knownPulls(ctx, e)
		if err != nil {
			return err
		}
		s.known, s.since = append(s.known, known), append(s.since, since)
	}
	repo, err := forge.Open(s.at)
	if err != nil {
		return &forgeProblem{s.at.URL, err}
	}
	open, err := repo.Pulls(ctx)
	if err != nil {
		return &forgeProblem{s.at.URL, err}
	}
	var errs []error
	listed := map[int]bool{}
	for _, p := range open {
		listed[p.Number] = true
		errs = append(errs, d.tell(ctx, occ, s.event(repo, p), p.Created, s.changed(p)))
	}
	asked := 0
	for number, said := range s.missing(listed) {
		if asked++; asked > maxAsked || ctx.Err() != nil {
			break
		}
		action, err := repo.PullAction(ctx, number)
		if err != nil {
			return errors.Join(append(errs, &forgeProblem{s.at.URL, err})...)
		}
		if action != "" {
			e := *said
			e.Action = action
			errs = append(errs, d.tell(ctx, occ, e, time.Time{}, s.open(number)))
		}
	}
	return errors.Join(errs...)
}

// knownPulls returns the pull requests that a task knows, by number.
func (d *Decider) knownPulls(ctx context.Context, e *entry) (map[int]knownPull, time.Time, error) {
	t, err := d.tracksOf(ctx, e.task.UID)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer t.mu.Unlock()
	known := map[int]knownPull{}
	for _, b := range t.all(decide.TrackPull) {
		number, err := strconv.Atoi(b.track.Name)
		if err != nil {
			continue
		}
		k := knownPull{began: b}
		if b.commit != "" {
			if k.said, err = d.pullOf(ctx, t, b); err != nil {
				return nil, time.Time{}, err
			}
		}
		known[number] = k
	}
	return known, t.since, nil
}

// event makes of a pull request what a delivery would have told of it.
func (s *pullSite) event(repo *forge.Repository, p forge.Pull) event.PullRequestUpdated {
	e := event.PullRequestUpdated{Number: p.Number, Action: event.PullSynchronized, Title: p.Title, Draft: p.Draft,
		Repository: event.Repository{Provider: s.at.Provider, FullName: repo.Name(), CloneURLs: []string{s.at.URL}},
		HeadRef:    p.HeadRef, HeadSHA: p.HeadSHA, BaseRef: p.BaseRef, FetchRef: p.FetchRef, Fork: p.Fork,
		Author: p.Author, AuthorAssociation: p.Membership}
	if p.HeadRepo != "" {
		e.HeadRepository = event.Repository{Provider: s.at.Provider, FullName: p.HeadRepo}
	}
	return e
}

// changed returns the tracks of the tasks that know an open pull request otherwise, or not at all.
func (s *pullSite) changed(p forge.Pull) []target {
	var targets []target
	for i, e := range s.tasks {
		k, known := s.known[i][p.Number]
		same := known && k.commit == p.HeadSHA && (k.said == nil || k.said.BaseRef == p.BaseRef)
		if s.since[i].IsZero() || same || k.blocked {
			continue
		}
		targets = append(targets, s.target(i, e, p.Number))
	}
	return targets
}

// open returns the tracks of the tasks for which a pull request is open.
func (s *pullSite) open(number int) []target {
	var targets []target
	for i, e := range s.tasks {
		if k := s.known[i][number]; k.commit != "" {
			targets = append(targets, s.target(i, e, number))
		}
	}
	return targets
}

func (s *pullSite) target(i int, e *entry, number int) target {
	return target{entry: e, track: decide.Track{Kind: decide.TrackPull, Name: strconv.Itoa(number)}, source: true,
		told: &told{basis: s.known[i][number].seq, since: s.since[i]}}
}

// missing returns the pull requests that are open for a task and that the forge has not listed.
func (s *pullSite) missing(listed map[int]bool) map[int]*event.PullRequestUpdated {
	gone := map[int]*event.PullRequestUpdated{}
	for _, known := range s.known {
		for number, k := range known {
			if k.commit != "" && !listed[number] && k.said != nil {
				gone[number] = k.said
			}
		}
	}
	return gone
}

// tell stores an event of a pull request that nobody told of, and decides it for the tracks that did not know.
func (d *Decider) tell(ctx context.Context, occ *occasion, e event.PullRequestUpdated, created time.Time, targets []target) error {
	state := fmt.Sprint(e.Action, e.HeadSHA, e.BaseRef)
	key := func(t target) string { return t.task.UID + " " + t.track.Name }
	targets = slices.DeleteFunc(targets, func(t target) bool { // told before, and nothing came of it
		before, ok := d.tellings.Load(key(t))
		return ok && !occ.dry && before == fmt.Sprint(state, t.told.basis)
	})
	if len(targets) == 0 {
		return nil
	}
	ev, err := event.New(rand.Text(), sweepSource, event.TypePullRequestUpdated, time.Now().UTC(), e)
	if err != nil {
		return err
	}
	ev.Subject = e.Repository.FullName + "#" + strconv.Itoa(e.Number)
	now := &occasion{event: ev.ID, seq: math.MaxUint64, at: created, origin: decide.FromEvent, report: occ.report, dry: occ.dry}
	if !occ.dry {
		now.seq, err = d.Bus.Create(ctx, event.DeliverySubject(ev.Type, ev.ID), ev, 0)
		if err != nil && !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
	for i := range targets {
		targets[i].pull = &e
	}
	if err := d.look(ctx, now, targets); err != nil || occ.dry {
		return err
	}
	for _, t := range targets {
		d.tellings.Store(key(t), fmt.Sprint(state, t.told.basis))
	}
	return nil
}
