package event

import (
	"time"

	"kiln/internal/run"
)

// RunRequested is the data of TypeRunRequested: somebody asks for a run.
type RunRequested struct {
	Key     string   `json:"key"` // idempotency key
	By      string   `json:"by"`  // principal
	RerunOf string   `json:"rerunOf,omitempty"`
	Spec    run.Spec `json:"spec"`
}

// CancelRequested is the data of TypeCancelRequested.
type CancelRequested struct {
	Run string `json:"run"`
	By  string `json:"by"`
}

// A Decision is what triggers made of an observation. The last message on a track's subject is the
// track's state.
type Decision struct {
	Kind string    `json:"kind"` // run
	Time time.Time `json:"time"`
	// Run is the run to execute when Kind is DecideRun; its ID was minted with the decision, so every
	// delivery of the decision names the same run.
	Run *run.Run `json:"run,omitempty"`
}

// DecideRun is the kind of a decision that makes a run due.
const DecideRun = "run"

// An Assignment tells a worker to execute one attempt of a run.
type Assignment struct {
	Run run.Run `json:"run"` // as of the assignment; Attempt is the one to execute
	// Secrets are the run's secret values, sealed to the worker's key.
	Secrets []byte `json:"secrets,omitempty"`
	// Token authenticates the attempt to the co-located registry, sealed to the worker's key.
	Token []byte `json:"token,omitempty"`
}

// A Report is what a worker says about an attempt. Reports of an attempt are numbered from 1.
type Report struct {
	Run     string    `json:"run"`
	Attempt int       `json:"attempt"`
	N       int       `json:"n"`
	Time    time.Time `json:"time"`

	// Begun says that the worker has begun; Steps then holds the whole plan.
	Begun bool       `json:"begun,omitempty"`
	Steps []run.Step `json:"steps,omitempty"` // new state of these steps

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
	Name      string   `json:"name"`
	Instance  string   `json:"instance"` // new at each start of the process
	Pool      string   `json:"pool"`
	Parallel  int      `json:"parallel"` // runs at once
	Platforms []string `json:"platforms,omitempty"`
	BuildKit  string   `json:"buildkit,omitempty"`  // version
	Recipient string   `json:"recipient,omitempty"` // public key that secrets are sealed to
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
}
