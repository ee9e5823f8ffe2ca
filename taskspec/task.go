package taskspec

import "time"

// A Task is a rendered, validated task: what a worker executes.
//
// Every default of the language is filled in, so a consumer never asks "and if it is empty?".
type Task struct {
	Version          string        // as written, or "v1.0.0" when the document has none
	StepTimeout      time.Duration // default time limit of a step
	WorkingDirectory string        // absolute, inside /workspace unless written absolute
	Env              []string      // task-level K=V entries, before merging
	Networks         []Network
	Volumes          []Volume
	Secrets          []Secret
	Steps            []*Step // in file order
}

// Kind is what a step does.
type Kind string

// The three kinds of step.
const (
	KindBuild Kind = "build"
	KindCmd   Kind = "cmd"
	KindPush  Kind = "push"
)

// A Step is one node of a task's graph. Exactly one of Build, Cmd and Push is set, as Kind says.
type Step struct {
	ID   string
	Kind Kind
	// After lists the IDs of the steps this one waits for, without duplicates; empty means it starts at once.
	After []string

	Build *Build
	Cmd   *Cmd
	Push  []string // references to push, normalised, without duplicates

	Timeout      time.Duration // covers all attempts and repetitions
	StartDelay   time.Duration // before the step; not part of Timeout
	Retries      int           // extra attempts after a failure
	RetryDelay   time.Duration
	RetryOn      []string // retry only if one of these occurs in the attempt's output; empty: always
	Repeat       int      // the step runs Repeat+1 times
	IgnoreErrors bool     // a failure counts as success

	Env              []string // merged, in order: step, then task, then outer; HOME first
	WorkingDirectory string   // absolute
	KeepImageWorkdir bool     // disableWorkingDirectoryOverride: the image's WORKDIR applies
	User             string
	// Network is the name of a network, "host", "none", "" for the run's own network, or "bridge" for a
	// step without network in a task whose networks have no default: it meets no other step.
	Network    string
	Privileged bool
	Detach     bool
	Keep       bool
	Ports      []string
	Expose     []string
	CPUs       string
	Memory     string // docker run's --memory, as written
	Isolation  string
	Mounts     []Mount

	Line int // line of the step in the author's source, 1-based
}

// A Build is a build step: the docker build command line, parsed once.
type Build struct {
	Args       []string // the words after "docker build", as written
	Context    string   // last positional word; default "."
	Dockerfile string   // -f; "" means Dockerfile inside the context
	Tags       []string // -t, in order, normalised
	BuildArgs  []KeyValue
	Target     string
	Platforms  []string
	Labels     []KeyValue
	Annotation []KeyValue
	NoCache    bool
	Pull       bool
	Quiet      bool
	Network    string
	AddHosts   []string
	Secrets    []string // --secret values as written: id=x,src=y
	SSH        []string
	CacheFrom  []string
	CacheTo    []string
	Contexts   []KeyValue // --build-context
	Ulimits    []string
	ShmSize    string
	Provenance string
	SBOM       string
	Output     []string // --output values as written
	Attest     []string // --attest values as written
	// NoCacheFilter has the --no-cache-filter values: stages to build without cache.
	NoCacheFilter []string
	Cache         bool // the step's "cache: enabled"
	// IIDFile and MetadataFile are files to write once the image is built, with its digest and with what docker says
	// of it, by their paths from the step's directory.
	IIDFile, MetadataFile string
}

// A KeyValue is one K=V flag. Bare is true when no "=V" was written.
type KeyValue struct {
	Key   string
	Value string
	Bare  bool
}

// A Cmd is a cmd step: an image and the arguments for its entrypoint.
type Cmd struct {
	Image         string   // reference as the author means it after alias expansion, not normalised
	Args          []string // after word splitting; replaces the image's CMD when not empty
	EntryPoint    []string // overrides the image's ENTRYPOINT when not nil
	Flags         []string // docker run flags written before the image; those with an effect are applied to the Step already
	Pull          bool
	PullRetries   int
	PullDelay     time.Duration
	Interactively bool
	AddHosts      []string // --add-host values as written: HOST:IP
	EnvFiles      []string // --env-file values as written; what they say comes before the step's environment
	Options       RunOptions
	Docker        *Docker // set if no container is needed: the step is a docker command
	Purge         *Purge  // likewise: it is acr purge
}

// InContainer reports whether the step needs a container: whether the worker does not do by itself what it says.
func (c *Cmd) InContainer() bool { return c.Docker == nil && c.Purge == nil }

// A Network is one entry of the task's networks.
type Network struct {
	Name         string
	Driver       string
	IPv6         bool
	SkipCreation bool
	Default      bool
}

// A Volume is a volume filled from secret values.
type Volume struct {
	Name  string
	Files map[string][]byte // file name to exact content
}

// A Mount attaches a volume to a step.
type Mount struct {
	Volume string
	Path   string
}

// A Secret names a value that a provider must deliver before the task can be rendered.
type Secret struct {
	ID       string
	KeyVault string // the URL as written, lower-cased
	ClientID string
}
