// Package task is the task resource: what is built from which source, and what makes it due.
//
// A task is written as YAML (see [Decode]), stored and sent as JSON with the same property names, and
// complete after [Task.Normalize] has filled in the defaults. [Task.Validate] reports every mistake at
// once, each with the path of its property. A task never holds secret values, only names of secrets.
//
// The package is pure, except that it looks up names of time zones in the system's zone database.
package task

import (
	"time"

	"kiln/internal/run"
	"kiln/taskspec"
)

// Version and kind that begin a document.
const (
	APIVersion = "kiln/v1"
	Kind       = "Task"
)

// Status says whether a task or trigger acts.
type Status string

// Values of Status. The default is Enabled.
const (
	Enabled  Status = "Enabled"
	Disabled Status = "Disabled"
)

// A Task is the definition of a task. Two names that differ in case only are the same; compare [NameKey].
type Task struct {
	Name   string `json:"name"`
	UID    string `json:"uid,omitempty" yaml:"-"` // minted at creation; a recreated task has another
	Status Status `json:"status,omitempty"`
	// Context is the source, as in ACR: a git repository URL.git#ref:subdirectory, the URL of a tarball,
	// oci://REFERENCE, or empty for none. See [ParseContext].
	Context string `json:"context,omitempty"`
	// ContextSecret names the secret with the token for the context.
	ContextSecret string `json:"contextSecret,omitempty"`
	Step          Step   `json:"step"`
	// Set holds values for the template of a task file; SetSecret names of secrets with such values.
	Set       map[string]string `json:"set,omitempty"`
	SetSecret map[string]string `json:"setSecret,omitempty"`
	// Platform is os/arch[/variant], by default linux/amd64.
	Platform string `json:"platform,omitempty"`
	// Timeout of a whole run. Unlike in ACR, where it is 5 minutes or more, it may be as short as 1 s.
	Timeout Duration `json:"timeout,omitempty"`
	// CPU and Memory limit a step; zero means what the worker gives.
	CPU    float64 `json:"cpu,omitempty"`
	Memory Bytes   `json:"memory,omitempty"`
	// AllowPrivileged lets cmd steps have privileged containers, where the server allows them, too.
	AllowPrivileged bool `json:"allowPrivileged,omitempty"`
	// Pool is the pool of workers; empty means the default one.
	Pool string `json:"pool,omitempty"`
	// Concurrency is how many runs of the task may be executed at once; 0 means any number.
	Concurrency int          `json:"concurrency,omitempty"`
	Credentials []Credential `json:"credentials,omitempty"`
	Triggers    Triggers     `json:"triggers"`
	Created     time.Time    `json:"created,omitzero" yaml:"-"`
	Updated     time.Time    `json:"updated,omitzero" yaml:"-"`
	// Limits are set by the server: what runs of the task may do on behalf of who wrote it.
	Limits *run.Limits `json:"limits,omitempty" yaml:"-"`
}

// A Step is what a run executes. Exactly one of its fields is set.
type Step struct {
	Build  *Build  `json:"build,omitempty"`
	File   *File   `json:"file,omitempty"`
	Inline *Inline `json:"inline,omitempty"`
}

// A Build builds one Dockerfile of the context.
type Build struct {
	Dockerfile string `json:"dockerfile,omitempty"` // path in the context; default Dockerfile
	// Images are names to push as: repository[:tag], a template; without a tag it is the run's ID.
	Images     []string          `json:"images,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	SecretArgs map[string]string `json:"secretArgs,omitempty"` // argument to the name of a secret
	Target     string            `json:"target,omitempty"`
	NoCache    bool              `json:"noCache,omitempty"`
	NoPush     bool              `json:"noPush,omitempty"`
}

// A File is a task file of the context.
type File struct {
	Path   string `json:"path"`
	Values string `json:"values,omitempty"` // path of a values file in the context
}

// An Inline is a task file that is part of the task.
type Inline struct {
	Task   string `json:"task"`             // the file's text
	Values string `json:"values,omitempty"` // text of a values file
}

// A Credential is how a run signs in to a registry.
type Credential struct {
	Server string `json:"server"` // login server: host[:port]
	// Username and UsernameSecret exclude each other.
	Username       string `json:"username,omitempty"`
	UsernameSecret string `json:"usernameSecret,omitempty"`
	PasswordSecret string `json:"passwordSecret,omitempty"`
	// TokenSecret names a secret with an identity token and takes the place of user name and password.
	TokenSecret string `json:"tokenSecret,omitempty"`
}

// Triggers are what makes a task due besides a request.
type Triggers struct {
	Source    []SourceTrigger  `json:"source,omitempty"`
	BaseImage BaseImageTrigger `json:"baseImage"`
	Timers    []Timer          `json:"timers,omitempty"`
}

// A SourceEvent is a change of a repository that a source trigger can act on.
type SourceEvent string

// Changes of a repository. In a file, commit and pullrequest are read as push and pull-request.
const (
	Push          SourceEvent = "push" // a branch moved, or is new
	Tag           SourceEvent = "tag"  // a tag is new or moved
	BranchCreated SourceEvent = "branch-created"
	BranchDeleted SourceEvent = "branch-deleted"
	PullRequest   SourceEvent = "pull-request" // opened or updated
)

// Forks says what becomes of pull requests from forks. Their runs get no secrets and never push.
type Forks string

// Values of Forks. The default is ForksApprove.
const (
	ForksApprove Forks = "Approve" // those of unknown authors wait for approval
	ForksAlways  Forks = "Always"
	ForksNever   Forks = "Never"
)

// SkipCI says whether a commit can ask not to be built, by [skip ci] in its message.
type SkipCI string

// Values of SkipCI. The default is SkipHonor.
const (
	SkipHonor  SkipCI = "Honor"
	SkipIgnore SkipCI = "Ignore"
)

// Commits says which commits of a push are run.
type Commits string

// Values of Commits. The default is CommitsHead.
const (
	CommitsHead  Commits = "head"  // the last one
	CommitsEvery Commits = "every" // each one, in order
)

// A SourceTrigger makes a task due when its repository changes.
type SourceTrigger struct {
	Name   string        `json:"name"`
	Status Status        `json:"status,omitempty"`
	Events []SourceEvent `json:"events,omitempty"` // default push
	// Branches are patterns of branch names, for pull requests of the branch they go to. None means the
	// context's branch.
	Branches Globs `json:"branches,omitempty"`
	Tags     Globs `json:"tags,omitempty"` // patterns of tag names; none means all
	// Paths are patterns of file names, one of which a change must touch; none means all.
	Paths   Globs    `json:"paths,omitempty"`
	SkipCI  SkipCI   `json:"skipCI,omitempty"`
	Forks   Forks    `json:"forks,omitempty"`
	Commits Commits  `json:"commits,omitempty"`
	Quiet   Duration `json:"quiet,omitempty"` // how long to wait for further changes; default 0
}

// BaseImageType says which base images a trigger acts on.
type BaseImageType string

// Values of BaseImageType. The default is Runtime.
const (
	Runtime BaseImageType = "Runtime" // the base of the image that is built
	All     BaseImageType = "All"     // also those of build stages
)

// A BaseImageTrigger makes a task due when an image it was built from moves. It is enabled unless disabled.
type BaseImageTrigger struct {
	Name   string        `json:"name,omitempty"`
	Status Status        `json:"status,omitempty"`
	Type   BaseImageType `json:"type,omitempty"`
	Quiet  *Duration     `json:"quiet,omitempty"` // default 30 s
}

// CatchUp says what becomes of times at which a timer was due while nobody looked.
type CatchUp string

// Values of CatchUp. The default is CatchUpOne.
const (
	CatchUpOne  CatchUp = "One"  // one run for all of them
	CatchUpNone CatchUp = "None" // they are left out
)

// A Timer makes a task due at times.
type Timer struct {
	Name     string  `json:"name"`
	Schedule string  `json:"schedule"`           // five fields; see package cron
	TimeZone string  `json:"timeZone,omitempty"` // IANA name; default UTC
	Status   Status  `json:"status,omitempty"`
	CatchUp  CatchUp `json:"catchUp,omitempty"`
}

// Timer returns the timer with a name.
func (t *Task) Timer(name string) (Timer, bool) {
	for _, timer := range t.Triggers.Timers {
		if timer.Name == name {
			return timer, true
		}
	}
	return Timer{}, false
}

// An Error is one mistake in a task; Property is its path, such as triggers.timers[0].schedule. It has a
// place if the task was read from a file.
type Error = taskspec.Error

// Errors are all mistakes of a task.
type Errors = taskspec.Errors
