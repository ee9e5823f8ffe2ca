// Package solve is the contract between a worker, which decides what a run's steps are, and the
// engine that executes them. It declares interfaces and values only, so that both sides may import
// it without knowing each other.
package solve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/tonistiigi/fsutil"

	"kiln/internal/event"
	"kiln/internal/run"
)

// A Solver opens sessions on a BuildKit daemon.
type Solver interface {
	// Open returns a session for one attempt of a run. It does not block on the daemon: connecting
	// and opening the gateway happen when a step first needs them. The caller closes the session.
	Open(cfg SessionConfig) Session
}

// A Session executes the steps of one attempt on one daemon. Its methods may be called concurrently.
//
// A step that fails by itself returns a *StepError; any other error is the engine's (the daemon
// went away, its disk is full) and makes the attempt, not the step, fail.
type Session interface {
	// Prepare begins to make ready what every Run needs, the workspace above all, and returns at once. It
	// may be called while steps that need nothing of it are executed. What goes wrong the next Run meets.
	Prepare(ctx context.Context)
	// Build executes a build step and stages the image by digest. It blocks until the image is
	// staged or ctx ends. Everything the build says goes to log, in order.
	Build(ctx context.Context, b Build, log LogFunc) (Built, error)
	// Run executes a cmd step's container and blocks until its process has ended. It returns the
	// process's exit code, whatever it is, with a nil error, and a *StepError when there was no
	// process: no such image, no such program. When ctx ends the process gets SIGTERM, after a grace
	// period SIGKILL, and Run returns why ctx ended once the process is gone.
	//
	// Containers of one network find each other by the names of their steps as long as they run.
	Run(ctx context.Context, c Container, log LogFunc) (exitCode int, err error)
	// ReadFile returns the content of a regular file, by its slash path below /workspace, of at most limit
	// bytes. A *StepError says why it cannot be had.
	ReadFile(ctx context.Context, name string, limit int) ([]byte, error)
	// WriteFile writes a file, by its slash path below /workspace, over what is there, and makes the directories
	// that it is in. A *StepError says why that cannot be.
	WriteFile(ctx context.Context, name string, content []byte) error
	// Retain keeps on the engine what makes later sessions on the same source faster, if that pays. It is for
	// the time after the last step, when nobody waits: it may take minutes, and gives up when ctx ends.
	Retain(ctx context.Context)
	// Close ends the session, removes its containers and its workspace, and waits for both. It must
	// be called with a context that outlives the run's.
	Close(ctx context.Context) error
}

// A LogFunc takes log entries of one step. It never blocks for long, may be called from several
// goroutines, and owns the entries it is given.
type LogFunc func(...event.LogEntry)

// SessionConfig says for whom a session is.
type SessionConfig struct {
	Run     string
	Attempt int
	// Source is the run's source tree, read only when something needs it. Nil means none.
	Source fsutil.FS
	// SourceKey identifies where the tree comes from, not its content: trees under one key are
	// transferred as differences.
	SourceKey string
	// Registry is the host of the co-located registry; the session talks plain HTTP to it when
	// Insecure is set.
	Registry string
	Insecure bool
	// RegistryAt is the host at which the engine reaches the co-located registry to push to it; empty is Registry.
	// What is pushed is named by Registry all the same. To pull, the engine is to know both names.
	RegistryAt string
	// Aliases are other names of the co-located registry: an image that a Dockerfile gives by one of them is the
	// one in Registry, which is also how Built names it.
	Aliases []string
	// Credentials returns the user and password for a registry host, empty for anonymous.
	Credentials func(host string) (user, password string)
	// CacheScope separates the cache mounts of Dockerfiles (RUN --mount=type=cache): only builds of
	// equal scope share them. Empty means the daemon's common scope.
	CacheScope string
	// OwnFrontend has every Dockerfile read by the engine's own frontend, whatever image its syntax line or
	// BUILDKIT_SYNTAX names: such an image decides what is built, and need not keep to the CacheScope.
	OwnFrontend bool
	// Images reports whether the session may use the image at a reference, normalised as those of
	// Build.Images, besides those themselves. What it refuses makes the step fail that names it. Nil means
	// that it may use any.
	Images func(ref string) bool
	// Fetch reports why nothing may be fetched from a host that a Dockerfile names in a URL, as ADD does. Nil
	// means that it may be any.
	Fetch func(ctx context.Context, host string) error
}

// A Build is one build step, ready to solve.
type Build struct {
	Step       string
	Dockerfile string // slash path inside the source or, with FromWorkspace, below /workspace; "" is Dockerfile in Context
	// DockerfileInline replaces the file when not nil.
	DockerfileInline []byte
	Context          string // slash path of the context directory, relative to the source's root; "." is the root
	// FromWorkspace says that a cmd step may have changed the workspace, so the context must be
	// read from there and not from the source.
	FromWorkspace bool
	Target        string
	Platforms     []string
	BuildArgs     map[string]string
	// Hidden are values that the image's history, in which build arguments are, must not show.
	Hidden      []string
	Labels      map[string]string
	Annotations map[string]string
	NoCache     bool
	// NoCacheFilter names stages to build anew.
	NoCacheFilter []string
	Pull          bool
	AddHosts      []string
	// Network is that of the Dockerfile's RUN instructions.
	Network Network
	// ShmSize is the size of /dev/shm of RUN instructions in bytes, zero for the default.
	ShmSize int64
	// Ulimits are limits of RUN instructions as docker writes them: nofile=1024:2048.
	Ulimits []string
	// Remote, if not nil, is the tree in which Context and Dockerfile are paths, in place of the session's
	// source and workspace.
	Remote *Tree
	// Contexts are the named contexts that the Dockerfile may use as images, by name.
	Contexts map[string]Context
	// Secrets are what RUN --mount=type=secret may mount, by ID. The session never logs them.
	Secrets map[string]Secret
	// SSH are the private keys, in PEM, of the agents that RUN --mount=type=ssh may mount, by ID.
	SSH map[string]Secret
	// CacheFrom and CacheTo are caches in registries, or inline in the image, to use and to write.
	CacheFrom, CacheTo []Cache
	// Images maps references as a Dockerfile writes them (normalised: docker.io/library/x:latest)
	// to digests of images built earlier in the run: "host/repo@sha256:...".
	Images map[string]string
	// Pins maps references, normalised as those of Images, to the digests that they stand for in this
	// build. Images wins over it, and a reference that the build does not use does no harm.
	Pins map[string]string
	// Staging is the repository, host included, that the image is pushed to by digest.
	Staging string
	// Epoch is SOURCE_DATE_EPOCH, zero for none; the layers' times are rewritten to it.
	Epoch time.Time
}

// A Tree is a tree of files that is not the session's source.
type Tree struct {
	FS  fsutil.FS
	Key string // where it comes from, as SessionConfig.SourceKey
}

// A Context is one that a Dockerfile uses by name. Exactly one field is set.
type Context struct {
	Dir   string // slash path of a directory of the session's source or, with FromWorkspace, workspace
	Image string // reference of an image
	Tree  *Tree
}

// A Secret is a value, or the file of the session's source or, with FromWorkspace, workspace that holds it.
type Secret struct {
	Value []byte
	File  string // slash path, used if Value is nil
}

// A Cache is a place for the results of a build's steps: a reference in a registry, or the image itself.
type Cache struct {
	Ref    string // empty for the image itself, of CacheTo
	Max    bool   // keep the results of all stages, not only those that the image consists of
	Ignore bool   // of CacheTo: a cache that cannot be written does not fail the build
}

// Built is what a build step produced.
type Built struct {
	Digest string     `json:"digest"` // of the manifest or index
	Ref    string     `json:"ref"`    // Staging@Digest
	Bases  []run.Base `json:"bases,omitempty"`
	// Runtime is the image that the result is based on, as reference@digest: one of Bases or of Build.Images.
	// Empty means that there is none, or that it is not known.
	Runtime string `json:"runtime,omitempty"`
	// BuiltBy is the run that has built it, if that is an earlier one. An engine leaves it empty.
	BuiltBy string `json:"builtBy,omitempty"`
	// Tagged are the references among those of Bases that were given by tag, so that another build may
	// find other images there.
	Tagged []string `json:"tagged,omitempty"`
	// Closed says that the build was made from its context, the run's own images and Bases, and from
	// nothing else: what was fetched by URL or made by another frontend is not known by its content.
	Closed bool `json:"closed,omitempty"`
}

// A Container is one execution of a cmd step.
type Container struct {
	Step string
	// Image is a reference to resolve and pull, or "host/repo@sha256:..." of a run-local image.
	Image      string
	Args       []string // replaces the image's CMD when not empty
	EntryPoint []string // replaces the image's ENTRYPOINT (and drops its CMD) when not nil
	Env        []string // over the image's
	Dir        string   // working directory; "" means the image's
	User       string   // "" means the image's
	Network    Network
	// NetworkName is which of the run's own networks NetworkRun means; "" is the one that a run has
	// without declaring any.
	NetworkName string
	// Peers are the steps of the run that the container may want to reach, for an engine that must know
	// before it starts.
	Peers      []string
	Hosts      map[string]string // extra names to addresses
	Privileged bool
	// Started is called once, when the process is being started. Nil calls nobody.
	Started func()
	// Pull has a tag resolved again, though the session has used it before.
	Pull bool
	// CPUs and Memory bound what the container may use: processors and bytes, zero for no bound. A daemon
	// that cannot do that says so in the step's log.
	CPUs   float64
	Memory int64
	// Options change the container further. The zero value changes nothing.
	Options Options
	// Volumes are directories that exist in memory only, with these files, and end with the container.
	Volumes []Volume
	// Tmpfs are directories in memory that are empty at first and end with the container.
	Tmpfs []Tmpfs
	// Shares are directories on the engine's disk that are neither of the workspace nor of the image.
	Shares []Share
	// Binds, if not nil, are what the container sees of the directories that the session's containers share,
	// in place of all of /workspace and /acb/home.
	Binds []Bind
	// Stdin is what the process reads from its standard input; nil is an empty one.
	Stdin []byte
	// Docker serves the docker program that the container then has. Nil means that it has none but its own,
	// as has one whose environment names a DOCKER_HOST.
	Docker DockerFunc
}

// Options are what docker run can do with a container and no property of a step can. A daemon may not be able
// to do all of it; the step's log then says what has no effect.
type Options struct {
	ReadOnly bool   // nothing of the image can be changed; what is mounted can
	Hostname string // "" means the engine's choice
	// Names are further names by which containers of the same network find it.
	Names []string
	// Nameservers, Search and Resolver replace the daemon's own in /etc/resolv.conf, each unless it is empty.
	// They open no way to an address that the container does not reach anyway.
	Nameservers, Search, Resolver []string
	ShmSize                       int64 // of /dev/shm in bytes, zero for the default
	Ulimits                       []Ulimit
	Groups                        []string // further groups of the process, names in the image or numbers
	// Capabilities, if not nil, are the only ones to keep of those that the container would have: CAP_CHOWN.
	Capabilities    []string
	NoNewPrivileges bool
	Platform        string // linux/arm64; "" means the daemon's own
	// StopSignal is what the process gets at first when it is to end, SIGINT or 2; "" means what the image says,
	// or else SIGTERM. StopTimeout is how long it may take to end then: zero means the engine's choice, and less
	// than that no time at all.
	StopSignal  string
	StopTimeout time.Duration
	Pids        int64  // processes and threads, zero for no limit
	CPUShares   uint64 // of 1024, when processors are scarce; zero for 1024
	MemorySwap  int64  // memory and swap in bytes, -1 for no limit, zero for the default
	CPUSet      string // the processors that may be used, 0-3,7; "" means all, as in NodeSet
	NodeSet     string // the memory nodes
	// Sysctls are settings of the kernel that a container has for itself: net.*, fs.mqueue.* and those of shared memory.
	Sysctls map[string]string
}

// A Ulimit is a limit of the kernel's for each process of a container; -1 is none.
type Ulimit struct {
	Name       string // nofile
	Soft, Hard int64
}

// A Tmpfs is a directory in memory.
type Tmpfs struct {
	Path     string   // absolute
	Options  []string // as mount has them: size=65536, mode=0700, uid=1000, gid=1000, nr_inodes=100, noexec
	ReadOnly bool
}

// A Share is a directory that is made when it is first used, with what the image has at its path, and is
// removed with the session.
type Share struct {
	Name     string // containers that name it share it; "" is the container's own
	Path     string // absolute
	ReadOnly bool
	Empty    bool // it begins without what the image has there
}

// A DockerFunc executes a docker command for a program of a container and returns its exit code. Its context
// ends when nobody waits for it any more, at the latest with the container; then it has to return. It may be
// called concurrently.
type DockerFunc func(ctx context.Context, c DockerCommand) (exitCode int)

// A DockerCommand is what a program of a container has asked docker for.
type DockerCommand struct {
	Args []string // without the program's name
	Dir  string   // working directory, absolute; "" if it could not be told
	Env  []string // NAME=VALUE
	// Stdin returns all of the standard input, not more than a megabyte. Who does not call it leaves it alone.
	Stdin          func() ([]byte, error)
	Stdout, Stderr io.Writer
}

// A Bind is a file or directory of those that a session's containers share, under another path.
type Bind struct {
	Source   string // absolute path in /workspace or /acb/home
	Path     string // absolute
	ReadOnly bool
	Create   bool // a source that is not there is made, as a directory
}

// A Volume is a directory of a container with files that no other container sees.
type Volume struct {
	Path  string            // absolute
	Files map[string][]byte // by name, exact content; read-only and readable by every user
}

// Network is how a container is connected.
type Network int

// Networks of a container. None of them is the host's.
const (
	NetworkRun   Network = iota // shared with other containers of the run
	NetworkAlone                // the world outside, but no other container
	NetworkNone                 // loopback only
)

// A StepError is the user's result: the step was executed and failed.
type StepError struct {
	ExitCode int    // of the process; -1 when there was none
	Message  string // one line for the user
	Source   string // what it is about ("Dockerfile:3"), may be empty
	Pull     bool   // an image could not be had
}

func (e *StepError) Error() string {
	if e.Source != "" {
		return fmt.Sprintf("%s: %s", e.Source, e.Message)
	}
	return e.Message
}

// ErrUnavailable marks an engine error that another attempt may not meet: the daemon went away.
var ErrUnavailable = errors.New("build daemon unavailable")

// ErrNoSource is returned when a step needs the source of a run that has none.
var ErrNoSource = fmt.Errorf("the run has no source: %w", fs.ErrNotExist)
