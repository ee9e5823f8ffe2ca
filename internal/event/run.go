package event

import (
	"time"

	"kiln/internal/run"
	"kiln/triggers/decide"
)

// RunRequested is the data of TypeRunRequested: somebody asks for a run, of a task if TaskUID is set, and
// of Spec otherwise. Of a run of a task Spec holds no more than Secrets, and Pins if it is a repetition.
type RunRequested struct {
	Key     string   `json:"key"` // idempotency key
	By      string   `json:"by"`  // principal
	RerunOf string   `json:"rerunOf,omitempty"`
	Spec    run.Spec `json:"spec"`

	TaskUID string     `json:"taskUid,omitempty"`
	Ask     TaskAsk    `json:"ask,omitzero"`
	Pin     *run.Cause `json:"pin,omitempty"` // of an exact repetition: the cause of the run that is repeated, whose Spec is used again
}

// A TaskAsk is what is to be different in one run of a task.
type TaskAsk struct {
	Commit string            `json:"commit,omitempty"` // instead of the head of the context's ref
	Set    map[string]string `json:"set,omitempty"`
	Args   map[string]string `json:"args,omitempty"`
	File   string            `json:"file,omitempty"` // path of another task file or Dockerfile in the context
	Target string            `json:"target,omitempty"`
	NoPush bool              `json:"noPush,omitempty"`
	Force  bool              `json:"force,omitempty"` // also if the task is disabled
}

// CancelRequested is the data of TypeCancelRequested.
type CancelRequested struct {
	Run string `json:"run"`
	By  string `json:"by"`
}

// RunApproved is the data of TypeRunApproved.
type RunApproved struct {
	Run string `json:"run"`
	By  string `json:"by"`
}

// A RunChanged is the data of TypeRunQueued, TypeRunStarted and TypeRunFinished: the run's record at that
// moment, without its steps' details and without secrets.
type RunChanged struct {
	Run run.Run `json:"run"`
}

// A Decision is what triggers made of an observation. The last message on a track's subject holds the
// track's state; a writer replaces the message that it has read, and no other.
type Decision struct {
	Task    string          `json:"task,omitempty"` // name; empty for a quick run
	TaskUID string          `json:"taskUid,omitempty"`
	Made    decide.Decision `json:"made"`
	Seq     uint64          `json:"seq,omitempty"` // of the event in the stream of events
	State   decide.State    `json:"state"`
	// Hold is when the track is to be looked at again, because changes are waited for.
	Hold time.Time `json:"hold,omitzero"`
	// Run is the run to execute when Made is of kind decide.Run; its ID was minted with the decision, so
	// every delivery of the decision names the same run.
	Run *run.Run `json:"run,omitempty"`
}

// An Assignment tells a worker to execute one attempt of a run.
type Assignment struct {
	Run run.Run `json:"run"` // as of the assignment; Attempt is the one to execute
	// Secrets are the run's secret values, a Secrets sealed to the worker's key.
	Secrets []byte `json:"secrets,omitempty"`
	// Token holds the attempt's Tokens, sealed to the worker's key.
	Token []byte `json:"token,omitempty"`
}

// Secrets are the secret values of a run, by what they are used for.
type Secrets struct {
	Set     map[string]string `json:"set,omitempty"`     // template values
	Args    map[string]string `json:"args,omitempty"`    // build arguments
	Context string            `json:"context,omitempty"` // token of the context
	Logins  map[string]Login  `json:"logins,omitempty"`  // by registry host
}

// A Login is the user and password for a registry.
type Login struct {
	User     string `json:"user"`
	Password string `json:"password"`
}

// A Report is what a worker says about an attempt. Reports of an attempt are numbered from 1.
type Report struct {
	Run     string    `json:"run"`
	Attempt int       `json:"attempt"`
	N       int       `json:"n"`
	Time    time.Time `json:"time"`

	// Begun is when the worker had planned the run and begun with it; Steps then holds the whole plan.
	Begun time.Time  `json:"begun,omitzero"`
	Steps []run.Step `json:"steps,omitempty"` // new state of these steps

	// Commit is the one that is built, which the worker has resolved if the run names only a ref.
	Commit string      `json:"commit,omitempty"`
	Images []run.Image `json:"images,omitempty"` // published since the last report
	Bases  []run.Base  `json:"bases,omitempty"`

	// Final is the attempt's outcome, empty while it goes on; HandedBack gives the run back.
	Final  run.State `json:"final,omitempty"`
	Reason string    `json:"reason,omitempty"`
	// Blameless says that the attempt was handed back through no fault of the run's.
	Blameless bool   `json:"blameless,omitempty"`
	LogEnd    uint64 `json:"logEnd,omitempty"` // sequence of the attempt's last log message
}

// HandedBack is the Final of an attempt that the worker gives up without an outcome: its daemon
// died or it is shutting down. Another attempt follows.
const HandedBack run.State = "HandedBack"

// A Worker is what a worker says of itself while it lives.
type Worker struct {
	Name      string    `json:"name"`
	Instance  string    `json:"instance"` // new at each start of the process
	Pool      string    `json:"pool"`
	Parallel  int       `json:"parallel"`            // runs at once
	Platforms []string  `json:"platforms,omitempty"` // that it builds for, the native one first
	BuildKit  string    `json:"buildkit,omitempty"`  // version
	Address   string    `json:"address,omitempty"`   // of its build daemon
	Recipient string    `json:"recipient,omitempty"` // public key that secrets are sealed to
	Version   string    `json:"version,omitempty"`   // of kiln
	Host      string    `json:"host,omitempty"`
	Started   time.Time `json:"started,omitzero"`
	// Unfit is why it can execute nothing now, empty if it can.
	Unfit string `json:"unfit,omitempty"`
	// Apart says that it reaches the co-located registry over the network, and so needs a right to publish.
	Apart bool `json:"apart,omitempty"`
}

// A Drain is the wish that a worker takes no more runs, until it is taken back.
type Drain struct {
	Worker string    `json:"worker"` // its name
	By     string    `json:"by,omitempty"`
	Since  time.Time `json:"since"`
}

// A Registry is how processes on other hosts reach the co-located registry. The process that serves it keeps
// the record alive.
type Registry struct {
	Owner   string    `json:"owner"`   // of the registry's storage, and of its copies
	Place   string    `json:"place"`   // the directory that is, on its host
	Started time.Time `json:"started"` // the process
	URL     string    `json:"url"`
	Host    string    `json:"host"` // its canonical name in image references
	Aliases []string  `json:"aliases,omitempty"`
	// Certificate are PEM certificates that those who connect trust beside the system's.
	Certificate string `json:"certificate,omitempty"`
}

// Tokens are what an attempt shows the co-located registry. The worker alone uses that for publishing, which also
// reads contexts; the other one its build daemon gets to know.
type Tokens struct {
	Registry string `json:"registry"`          // for reading, and for staging images
	Publish  string `json:"publish,omitempty"` // for publishing what the run has made
}

// A Lease is the value of a lease key: who executes which attempt of a run.
type Lease struct {
	Attempt  int    `json:"attempt"`
	Worker   string `json:"worker"`
	Instance string `json:"instance"`
}

// A Control message tells a worker to stop an attempt. It is repeated until the attempt has ended.
type Control struct {
	Run     string `json:"run"`
	Attempt int    `json:"attempt"`
	Reason  string `json:"reason"`
	// Superseded says that the run goes on without the attempt: nobody waits for how it ends.
	Superseded bool `json:"superseded,omitempty"`
}
