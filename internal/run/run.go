// Package run defines a run, one execution of a task: its identity, record and legal state changes.
//
// It is pure: time and randomness are arguments. The scheduler is the only writer of a stored Run;
// everyone else reads.
package run

import (
	"cmp"
	"time"
)

// A Run is the record of one execution. Times are UTC; a zero time means "not yet".
type Run struct {
	ID      string `json:"id"`
	Task    string `json:"task,omitempty"`    // name of the task resource; empty for a quick run
	TaskUID string `json:"taskUid,omitempty"` // identity of the task resource
	State   State  `json:"status"`
	Reason  string `json:"reason,omitempty"` // why it waits, or why it ended as it did; one sentence
	Cause   Cause  `json:"cause"`
	// Lane is the queue that the run waits in: a decide.Class. Empty is the lane of requests.
	Lane string `json:"lane,omitempty"`
	// NeedsApproval says that the run waits until somebody approves it; ApprovedBy is who did.
	NeedsApproval bool      `json:"needsApproval,omitempty"`
	ApprovedBy    string    `json:"approvedBy,omitempty"`
	Attempt       int       `json:"attempt"` // number of the current or last attempt; 0 before the first
	Attempts      []Attempt `json:"attempts,omitempty"`
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

// A Cause says why a run exists. The decision that made it due says more; see event.DecisionSubject, which
// Task and Track of the run lead to.
type Cause struct {
	Kind    string `json:"kind"`              // CauseManual ...
	Reason  string `json:"reason,omitempty"`  // one sentence
	Event   string `json:"event,omitempty"`   // ID of the event that was decided
	Seq     uint64 `json:"seq,omitempty"`     // of that event in the stream of events
	Request string `json:"request,omitempty"` // idempotency key of the request
	By      string `json:"by,omitempty"`      // principal, or who pushed
	RerunOf string `json:"rerunOf,omitempty"` // run that is repeated

	Track   string `json:"track,omitempty"`   // key of the task's track
	Trigger string `json:"trigger,omitempty"` // name of the task's trigger
	// Of a task with a source: what is built.
	Repository  string `json:"repository,omitempty"` // URL
	Ref         string `json:"ref,omitempty"`        // branch or tag, or refs/pull/12/head
	Commit      string `json:"commit,omitempty"`
	PullRequest int    `json:"pullRequest,omitempty"`
	Author      string `json:"author,omitempty"` // login of who opened the pull request, as provider:login
	// AuthorID is the account of Author at the forge, as provider:id:ID, where the forge says so. A login may be
	// another's later, or be that of several.
	AuthorID string `json:"authorId,omitempty"`
	// Moved are the base images that made the run due.
	Moved      []Move    `json:"moved,omitempty"`
	Occurrence time.Time `json:"occurrence,omitzero"` // of a timer
}

// A Move is a base image that has changed.
type Move struct {
	Ref  string `json:"ref"` // canonical name
	From string `json:"from,omitempty"`
	To   string `json:"to"`
}

// Kinds of a Cause.
const (
	CauseManual = "manual"       // somebody asked for it
	CauseRerun  = "rerun"        // somebody asked for it again
	CauseCommit = "commit"       // the source moved
	CausePull   = "pull-request" // a pull request was opened or updated
	CauseBase   = "base-image"   // a base image moved
	CauseTimer  = "timer"
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

// SecretArg begins the name of a secret that is the value of the build argument that follows.
const SecretArg = "build-arg:"

// A Spec is what a run executes: one build, or a task file.
type Spec struct {
	// Context is the source: "context://<digest>" for an uploaded directory, URL#COMMIT:SUBDIR for one of a
	// git repository, oci://REFERENCE, the URL of a tarball, empty for none.
	Context string `json:"context,omitempty"`
	// Ref is the ref of the repository that the commit of Context was found under, in full; a commit that
	// the server does not give out by itself is fetched with it.
	Ref      string        `json:"ref,omitempty"`
	Build    *BuildSpec    `json:"build,omitempty"`
	TaskFile *TaskFileSpec `json:"taskFile,omitempty"`
	Platform string        `json:"platform,omitempty"`
	Timeout  time.Duration `json:"timeout,omitempty"` // of the whole run, nanoseconds; 0 means the default
	// Secrets holds sealed secret values (see package secret); never clear text.
	Secrets []byte `json:"secrets,omitempty"`
	// Refs name secrets of the store, which are resolved when the run is given to a worker.
	Refs *SecretRefs `json:"secretRefs,omitempty"`
	// Pins are the digests of base images, by canonical name, that the run is to use.
	Pins map[string]string `json:"pins,omitempty"`
	Pool string            `json:"pool,omitempty"` // of workers; empty means the default one
	// CPU and Memory limit each step: cores and bytes; zero means what the worker gives.
	CPU    float64 `json:"cpu,omitempty"`
	Memory int64   `json:"memory,omitempty"`
	// Privileged says that steps may ask for privileged containers, if the worker allows them, too.
	Privileged bool `json:"privileged,omitempty"`
	// Restricted runs, of strangers' pull requests, get no secrets, do not push and have caches of their own.
	Restricted bool `json:"restricted,omitempty"`
	// Concurrency is how many runs of the task may be executed at once; 0 means any number.
	Concurrency int `json:"concurrency,omitempty"`
	// Limits are set by the server: what the run may do on behalf of its author.
	Limits *Limits `json:"limits,omitempty"`
}

// SecretRefs are names of secrets, by what they are used for.
type SecretRefs struct {
	Context string            `json:"context,omitempty"` // token of the context
	Set     map[string]string `json:"set,omitempty"`     // template value to secret
	Args    map[string]string `json:"args,omitempty"`    // build argument to secret
	Logins  []Login           `json:"logins,omitempty"`
}

// A Login is how a run signs in to a registry.
type Login struct {
	Server         string `json:"server"` // host[:port]
	Username       string `json:"username,omitempty"`
	UsernameSecret string `json:"usernameSecret,omitempty"` // excludes Username
	PasswordSecret string `json:"passwordSecret,omitempty"`
	TokenSecret    string `json:"tokenSecret,omitempty"` // identity token, in place of the others
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

	// The other options of docker build, each written as there.
	Options []string `json:"options,omitempty"`
	// Reproducible sets all times in the image to that of the commit, or to 1970.
	Reproducible bool `json:"reproducible,omitempty"`
}

// A TaskFileSpec is the request of `kiln run`.
type TaskFileSpec struct {
	Name       string `json:"name"`              // for messages; with FromContext the path in the context
	Content    []byte `json:"content,omitempty"` // as the author wrote it
	ValuesName string `json:"valuesName,omitempty"`
	Values     []byte `json:"values,omitempty"` // YAML of the values file
	// FromContext says that Name and ValuesName are paths in the context, which the worker reads; Content
	// and Values are empty then.
	FromContext bool     `json:"fromContext,omitempty"`
	Set         []string `json:"set,omitempty"` // K=V
	// Env, Network and WorkingDirectory are what steps have for which the task names none.
	Env              []string `json:"env,omitempty"` // K=V
	Network          string   `json:"network,omitempty"`
	WorkingDirectory string   `json:"workingDirectory,omitempty"`
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
	// Built is what the script of a cmd step has built with docker build, in that order. A later attempt builds it again.
	Built []Output `json:"built,omitempty"`
}

// Outputs are the images that the step has built.
func (s *Step) Outputs() []*Output {
	var list []*Output
	if s.Output != nil {
		list = append(list, s.Output)
	}
	for i := range s.Built {
		list = append(list, &s.Built[i])
	}
	return list
}

// An Output is the result of a build step.
type Output struct {
	Digest string   `json:"digest"`         // of the manifest or index
	Ref    string   `json:"ref"`            // where it is staged: host/repository@digest
	Tags   []string `json:"tags,omitempty"` // names the step gave it
	Bases  []Base   `json:"bases,omitempty"`
	// Runtime is the image that this one is based on, as reference@digest: one of Bases, or the Ref of another
	// step's output. Empty means that it is based on none, or that it is not known.
	Runtime string `json:"runtime,omitempty"`
	// BuiltBy is the run that has built it, if that is an earlier one.
	BuiltBy string `json:"builtBy,omitempty"`
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
	// Provenance is the digest of the manifest beside the image that tells how it was made.
	Provenance string `json:"provenance,omitempty"`
}

// String returns registry/repository:tag@digest.
func (i Image) String() string {
	return i.Registry + "/" + i.Repository + ":" + i.Tag + "@" + i.Digest
}

// WithImage returns images with img, in place of what they have of the same publication. An attempt that
// repeats what an earlier one has published, and could not report, attaches another provenance.
func WithImage(images []Image, img Image) []Image {
	for i, o := range images {
		known := o.Provenance
		if o.Provenance = img.Provenance; o == img {
			images[i].Provenance = cmp.Or(img.Provenance, known)
			return images
		}
	}
	return append(images, img)
}

// A Base is an image that a build was made from.
type Base struct {
	Ref    string `json:"ref"` // registry/repository:tag
	Digest string `json:"digest"`
	Step   string `json:"step,omitempty"`
}
