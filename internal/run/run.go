// Package run defines a run, one execution of a task: its identity, record and legal state changes.
//
// It is pure: time and randomness are arguments. The scheduler is the only writer of a stored Run;
// everyone else reads.
package run

import "time"

// A Run is the record of one execution. Times are UTC; a zero time means "not yet".
type Run struct {
	ID       string    `json:"id"`
	Task     string    `json:"task,omitempty"`    // name of the task resource; empty for a quick run
	TaskUID  string    `json:"taskUid,omitempty"` // identity of the task resource
	State    State     `json:"status"`
	Reason   string    `json:"reason,omitempty"` // why it waits, or why it ended as it did; one sentence
	Cause    Cause     `json:"cause"`
	Attempt  int       `json:"attempt"` // number of the current or last attempt; 0 before the first
	Attempts []Attempt `json:"attempts,omitempty"`
	// CancelBy is the principal who asked for cancellation; empty when nobody has.
	CancelBy string    `json:"cancelBy,omitempty"`
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Spec     Spec      `json:"spec"`
	Steps    []Step    `json:"steps,omitempty"`
	Images   []Image   `json:"images,omitempty"` // published images, in order of publication
	Bases    []Base    `json:"bases,omitempty"`  // base images really used, as BuildKit's provenance tells
	// LogEnd is the stream sequence of the run's last log message, set when the run is final.
	LogEnd uint64 `json:"logEnd,omitempty"`
}

// A Cause says why a run exists.
type Cause struct {
	Kind    string `json:"kind"`              // CauseManual, CauseRerun
	Event   string `json:"event,omitempty"`   // ID of the event that was decided
	Request string `json:"request,omitempty"` // idempotency key of the request
	By      string `json:"by,omitempty"`      // principal
	RerunOf string `json:"rerunOf,omitempty"` // run that is repeated
}

// Kinds of a Cause.
const (
	CauseManual = "manual" // somebody asked for it
	CauseRerun  = "rerun"  // somebody asked for it again
)

// An Attempt is one try of a run by one worker.
type Attempt struct {
	N        int       `json:"n"`
	Worker   string    `json:"worker"`   // its name
	Instance string    `json:"instance"` // the process that took it
	Assigned time.Time `json:"assigned"`
	Ended    time.Time `json:"ended,omitzero"`
	Outcome  string    `json:"outcome,omitempty"` // a final state, or "lost"
	Reason   string    `json:"reason,omitempty"`
	// Blameless says that the attempt was lost in a way that cannot have been the run's doing.
	Blameless bool `json:"blameless,omitempty"`
}

// A Spec is what a run executes: one build, or a task file.
type Spec struct {
	// Context is the source: "context://<digest>" for an uploaded directory, empty for none.
	Context  string        `json:"context,omitempty"`
	Build    *BuildSpec    `json:"build,omitempty"`
	TaskFile *TaskFileSpec `json:"taskFile,omitempty"`
	Platform string        `json:"platform,omitempty"`
	Timeout  time.Duration `json:"timeout,omitempty"` // of the whole run, nanoseconds; 0 means the default
	// Secrets holds sealed secret values (see package secret); never clear text.
	Secrets []byte `json:"secrets,omitempty"`
}

// A BuildSpec is the request of `kiln build`.
type BuildSpec struct {
	Dockerfile string `json:"dockerfile,omitempty"` // path inside the context; default Dockerfile
	// DockerfileInline replaces the file when not nil: the author's Dockerfile lies outside the context.
	DockerfileInline []byte `json:"dockerfileInline,omitempty"`

	Images    []string `json:"images,omitempty"`    // repository[:tag]; without a tag it is the run ID
	BuildArgs []string `json:"buildArgs,omitempty"` // K=V
	Target    string   `json:"target,omitempty"`
	NoPush    bool     `json:"noPush,omitempty"`
	NoCache   bool     `json:"noCache,omitempty"`
}

// A TaskFileSpec is the request of `kiln run`.
type TaskFileSpec struct {
	Name       string   `json:"name"`    // for messages
	Content    []byte   `json:"content"` // as the author wrote it
	ValuesName string   `json:"valuesName,omitempty"`
	Values     []byte   `json:"values,omitempty"` // YAML of the values file
	Set        []string `json:"set,omitempty"`    // K=V
}

// A Step is the record of one step of a run.
type Step struct {
	ID       string    `json:"id"`
	Kind     string    `json:"kind"` // build, cmd, push
	State    StepState `json:"status"`
	Attempt  int       `json:"attempt,omitempty"`  // attempt of the run that last worked on it
	ExitCode *int      `json:"exitCode,omitempty"` // of a process that ended by itself
	Error    string    `json:"error,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	Tries    int       `json:"tries,omitempty"` // executions, retries and repetitions included
	// Output is what a finished build step produced; later attempts use it instead of building again.
	Output *Output `json:"output,omitempty"`
}

// An Output is the result of a build step.
type Output struct {
	Digest string   `json:"digest"`         // of the manifest or index
	Ref    string   `json:"ref"`            // where it is staged: host/repository@digest
	Tags   []string `json:"tags,omitempty"` // names the step gave it
	Bases  []Base   `json:"bases,omitempty"`
}

// StepState is the state of one step.
type StepState string

// States of a step.
const (
	StepPending   StepState = "Pending"
	StepRunning   StepState = "Running"
	StepSucceeded StepState = "Succeeded"
	StepFailed    StepState = "Failed"
	StepCanceled  StepState = "Canceled"
	StepTimeout   StepState = "Timeout"
	StepSkipped   StepState = "Skipped"
)

// Done reports whether a step in state s has ended.
func (s StepState) Done() bool { return s != StepPending && s != StepRunning && s != "" }

// An Image is a published image.
type Image struct {
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	Digest     string `json:"digest"`
	Step       string `json:"step,omitempty"`
}

// String returns registry/repository:tag@digest.
func (i Image) String() string {
	return i.Registry + "/" + i.Repository + ":" + i.Tag + "@" + i.Digest
}

// A Base is an image that a build was made from.
type Base struct {
	Ref    string `json:"ref"` // registry/repository:tag
	Digest string `json:"digest"`
	Step   string `json:"step,omitempty"`
}
