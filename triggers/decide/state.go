package decide

import (
	"maps"
	"slices"
	"time"

	"kiln/internal/task"
)

// TrackKind says what a track follows.
type TrackKind string

// Kinds of a track.
const (
	TrackDefault TrackKind = "default" // the context's own ref, or a task without a source
	TrackBranch  TrackKind = "branch"
	TrackTag     TrackKind = "tag"
	TrackPull    TrackKind = "pull"
	TrackTimer   TrackKind = "timer"
	TrackRequest TrackKind = "request"
)

// A Track is a sequence of states of a task's inputs of which each is decided once.
type Track struct {
	Kind TrackKind
	Name string // of the ref or timer, number of the pull request, key of the request
}

// Key identifies the track within its task.
func (t Track) Key() string {
	if t.Kind == TrackDefault {
		return string(TrackDefault)
	}
	return string(t.Kind) + ":" + t.Name
}

// RefTrack returns the track of a branch or tag: the default one if the context follows it. branch is the
// name of the repository's default branch.
func RefTrack(c task.Context, kind TrackKind, name, branch string) Track {
	follows := c.Ref
	if follows == "" {
		follows = branch
	}
	if name == follows || kind == TrackBranch && "refs/heads/"+name == follows || kind == TrackTag && "refs/tags/"+name == follows {
		return Track{Kind: TrackDefault}
	}
	return Track{kind, name}
}

// A Snapshot is a state of a task's inputs.
type Snapshot struct {
	Commit     string            `json:"commit,omitempty"`
	Bases      map[string]string `json:"bases,omitempty"` // digests by canonical name
	Definition string            `json:"definition,omitempty"`
}

// Equal reports whether two snapshots are the same.
func (s Snapshot) Equal(o Snapshot) bool {
	return s.Commit == o.Commit && s.Definition == o.Definition && maps.Equal(s.Bases, o.Bases)
}

func (s Snapshot) clone() Snapshot {
	s.Bases = maps.Clone(s.Bases)
	return s
}

// Bounds of what a state remembers.
const (
	maxEvents    = 16
	maxCoalesced = 50
	maxWait      = 5 * time.Minute // of all quiet windows together
)

// A State is what is remembered of a track. The zero State is that of a track never seen.
type State struct {
	Known      bool     `json:"known,omitempty"`
	Observed   Snapshot `json:"observed"`
	Considered Snapshot `json:"considered"` // at the last decision
	Attempted  Snapshot `json:"attempted"`  // by the last run
	Run        string   `json:"run,omitempty"`
	// Queued is the last run of each class: it is superseded by the next.
	Queued  map[Class]string `json:"queued,omitempty"`
	Pending *Pending         `json:"pending,omitempty"`
	Events  []string         `json:"events,omitempty"` // the last ones that led to a decision
	// Into is the branch that a pull request goes to.
	Into string `json:"into,omitempty"`
	// Occurrence is the last one that was decided, on a timer's track.
	Occurrence time.Time `json:"occurrence,omitzero"`
}

// Pending is a change that waits for more to come.
type Pending struct {
	Since   time.Time `json:"since"`
	Last    time.Time `json:"last"`
	Commits []string  `json:"commits,omitempty"` // overtaken meanwhile
}

func (s State) clone() State {
	s.Observed, s.Considered, s.Attempted = s.Observed.clone(), s.Considered.clone(), s.Attempted.clone()
	s.Queued, s.Events = maps.Clone(s.Queued), slices.Clone(s.Events)
	if s.Pending != nil {
		p := *s.Pending
		p.Commits = slices.Clone(p.Commits)
		s.Pending = &p
	}
	return s
}

// remember adds an event to those that were decided.
func (s *State) remember(event string) {
	if event == "" || slices.Contains(s.Events, event) {
		return
	}
	s.Events = append(s.Events, event)
	s.Events = s.Events[max(0, len(s.Events)-maxEvents):]
}

// Learn corrects the base images of a track by those that a run really used, with their digests. A base that
// is new counts as considered with the digest that was used, so it is due as soon as it has moved on
// from there; one that is not used any more is forgotten. It reports whether the state has changed.
func Learn(s State, used map[string]string) (State, bool) {
	next := s.clone()
	for _, snapshot := range []*Snapshot{&next.Observed, &next.Considered, &next.Attempted} {
		maps.DeleteFunc(snapshot.Bases, func(name, _ string) bool { _, kept := used[name]; return !kept })
		for name, digest := range used {
			if snapshot.Bases[name] == "" && digest != "" {
				if snapshot.Bases == nil {
					snapshot.Bases = map[string]string{}
				}
				snapshot.Bases[name] = digest
			}
		}
	}
	changed := !next.Observed.Equal(s.Observed) || !next.Considered.Equal(s.Considered) || !next.Attempted.Equal(s.Attempted)
	if !changed {
		return s, false
	}
	return next, true
}
