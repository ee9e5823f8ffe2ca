// Package decide decides what is due: it compares what is observed of a task's inputs with what was
// considered last, and says whether to run, and why or why not.
//
// It is pure: the clock, run IDs and everything that is known of the world are arguments. A decision is made
// by state, not by event. An event is a reason to look; what counts is what the ref and the images resolve
// to. So a fact that is told five times is decided once, whatever the order, and one that is never told
// is found by looking again.
//
// The state of a track is part of the last decision that was stored for it. A caller reads the state, then
// resolves refs and images, then calls [Observe], then stores decision and state if the outcome says so,
// on the condition that the state is still the one that it read. If it is not, the caller begins again
// with reading. In this order an old resolution can never undo a newer one, and no clock is asked which
// is newer. Until the outcome is stored the event is not done with.
//
// With that: no observation of a track is run twice; each state that is observed while no window is
// waited for, and every state that is final, is either attempted or refused, once, with the reason.
package decide

import (
	"time"

	"kiln/internal/graph"
	"kiln/internal/task"
)

// Kind is what was decided.
type Kind string

// Kinds of a decision.
const (
	Run       Kind = "run"       // a run is due
	Coalesced Kind = "coalesced" // the commit was overtaken; the run of a later one stands for it
	Duplicate Kind = "duplicate" // this very event, request or occurrence was decided before
	Unchanged Kind = "unchanged" // nothing that makes a run due has changed
	Disabled  Kind = "disabled"  // the task or trigger is disabled, or there is none
	Filtered  Kind = "filtered"  // a filter of the trigger; Decision.Filter names it
	Pinned    Kind = "pinned"    // the input is pinned to a commit or digest
	Cycle     Kind = "cycle"     // the task would start itself, directly or through others
	Blocked   Kind = "blocked"   // the base is not usable, or the run waits for somebody
)

// Filters that a decision can name.
const (
	FilterEvent   = "event"
	FilterBranch  = "branch"
	FilterTag     = "tag"
	FilterPaths   = "paths"
	FilterSkipCI  = "skip-ci"
	FilterForks   = "forks"
	FilterType    = "type"
	FilterClosed  = "closed"
	FilterCatchUp = "catch-up"
)

// Class groups what makes runs due. Of a class and track only the newest queued run is worth executing.
type Class string

// Classes, in the order of the lanes.
const (
	ClassManual    Class = "manual"
	ClassCommit    Class = "commit"
	ClassPull      Class = "pull-request"
	ClassBase      Class = "base-image"
	ClassTimer     Class = "timer"
	LaneReconcile  Class = "reconcile" // a lane only: of runs that a sweep found to be due
	shortestCommit       = 12
)

// Origin says why the world was looked at.
type Origin string

// Origins of an observation.
const (
	FromEvent     Origin = "event"
	FromReconcile Origin = "reconcile"
	FromBaseline  Origin = "baseline" // the task is new, or has begun to follow the ref: what is there was there before
)

// An Observation is what was resolved after the state was read.
type Observation struct {
	Event  string // ID of the event, if one was the reason
	Origin Origin
	Urgent bool // does not wait for the quiet window
	// Source is nil if the ref was not looked at.
	Source *Source
	// Bases are digests of base images by canonical name, those that were looked at: empty for an image that
	// does not exist, which moves when it comes. One that could not be looked at is left out.
	Bases map[string]string
}

// A Source is a ref as it was resolved.
type Source struct {
	Name    string // of the branch or tag; of a pull request the branch it goes to
	Default string // name of the context's branch
	Head    string // commit; empty if the ref is gone, or the pull request closed
	Claimed string // commit that the event spoke of, if any
	// What is not known is left out, and asked for if it matters.
	Messages map[string]string // of commits
	Files    *Files
	Commits  *Commits // for triggers that run every commit
	Pull     *Pull    // on the track of a pull request
}

// Files are the names of all files that differ between two commits.
type Files struct {
	From, To string
	Names    []string
	Unknown  bool // they cannot be told: any file may have changed
}

// Commits are the commits after one, oldest first.
type Commits struct {
	From string
	List []string
}

// A Pull is a pull request.
type Pull struct {
	Number  int
	Base    string // commit of the branch it goes to
	Fork    bool   // comes from another repository
	Trusted bool   // its author was approved before, or may push
	// Unreachable is why its commits cannot be had, so that no run is possible; empty if they can.
	Unreachable string
}

// A Base is what is known of a base image of the task.
type Base struct {
	Kind     graph.Kind
	Pinned   bool     // the Dockerfile names a digest
	Cycle    []string // tasks of a circle that this image would close; see package graph
	Blocked  string   // why the image must not be used, such as a failed parent
	PushedBy string   // UID of the task whose run pushed it, if a run did
}

// Input is all that a decision depends on.
type Input struct {
	Task *task.Task
	// Definition is the task's hash. A caller who decides much keeps it; if empty it is computed.
	Definition string
	Track      Track
	State      State
	Seen       Observation
	Bases      map[string]Base // by canonical name
	RunID      string          // of the run, if one is due; minted by the caller
	Now        time.Time
}

// An Outcome is what to do about an observation.
type Outcome struct {
	// Decision is nil while there is nothing to say: a question is open, or a window is waited for.
	Decision *Decision
	// State is the track's new state. If Store is false it is the old one; the decision, if any, is a
	// note about the event that need not be stored, and not under the track.
	State State
	Store bool
	// Hold is when to observe again, at the latest: changes are waited for. The event is done with when the
	// state is stored and that is certain to happen.
	Hold time.Time
	// Question is what must be found out first; observe again with the answer.
	Question *Question
	// Again says that more is due at once: store, then observe again.
	Again bool
}

// A Question asks for what is not known about the commits From..To. An empty From, of a new branch, is
// where the branch left the context's branch.
type Question struct {
	From, To string
	Message  bool // of To
	Files    bool // that differ between From and To
	Commits  bool // after From, up to To
}

// A Decision is the answer to "why did this run?" and "why did it not?".
type Decision struct {
	Kind    Kind      `json:"kind"`
	Time    time.Time `json:"time"`
	Track   string    `json:"track"`
	Class   Class     `json:"class,omitempty"`
	Lane    Class     `json:"lane,omitempty"`
	Trigger string    `json:"trigger,omitempty"` // name of the trigger
	Filter  string    `json:"filter,omitempty"`  // which filter, if Kind is Filtered
	Event   string    `json:"event,omitempty"`
	Origin  Origin    `json:"origin,omitempty"`
	Reason  string    `json:"reason"` // one sentence
	// Verdicts are about each input that changed.
	Verdicts []Verdict `json:"verdicts,omitempty"`

	// The rest is set if Kind is Run, and Run if it is Coalesced or Duplicate.
	Run string    `json:"run,omitempty"`
	Pin *Snapshot `json:"pin,omitempty"` // what the run uses
	// Coalesced are commits that this run stands for, besides its own.
	Coalesced []string `json:"coalesced,omitempty"`
	// Supersedes are runs to cancel if they are still queued.
	Supersedes []string `json:"supersedes,omitempty"`
	// NeedsApproval holds the run until somebody approves it. Restricted runs get no secrets, do not push
	// and have their own caches.
	NeedsApproval bool      `json:"needsApproval,omitempty"`
	Restricted    bool      `json:"restricted,omitempty"`
	Request       string    `json:"request,omitempty"`
	By            string    `json:"by,omitempty"`
	RerunOf       string    `json:"rerunOf,omitempty"`
	Occurrence    time.Time `json:"occurrence,omitzero"`
	Missed        int       `json:"missed,omitempty"` // earlier occurrences that the run stands for
}

// A Verdict is what was made of one changed input.
type Verdict struct {
	Input   string `json:"input"` // "source", or the name of a base image
	Kind    Kind   `json:"kind"`
	Filter  string `json:"filter,omitempty"`
	Trigger string `json:"trigger,omitempty"`
	Reason  string `json:"reason"`

	class      Class
	quiet      time.Duration
	every      bool
	approval   bool
	restricted bool
	depth      int // how far it came through the filters
}
