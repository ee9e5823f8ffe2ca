// Package supervise keeps kiln's build daemon running as a child process.
//
// The child is this same program, executed with arguments of the caller's choice; it must call
// daemon.Child with its standard input. It is restarted when it dies, and each start removes what the
// one before left behind. The child stops when its supervisor ends, however that ends.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/moby/buildkit/client"

	"kiln/internal/buildkit/daemon"
)

const (
	defaultGrace = 40 * time.Second
	startTimeout = 60 * time.Second
	minBackoff   = 100 * time.Millisecond
	maxBackoff   = 30 * time.Second
	// firstAttempts is how often a daemon may fail before it has ever answered.
	firstAttempts = 3
	// stable is how long a daemon must have answered for its death to be unrelated to the one before.
	stable       = time.Minute
	pollInterval = 10 * time.Millisecond
	sweepTimeout = 30 * time.Second
)

// Config says what is supervised.
type Config struct {
	Daemon daemon.Config
	// Executable is the program to execute; "" is the running one.
	Executable string
	// Args are its arguments, the program's name left out.
	Args []string
	// Env is its environment; nil is this process's.
	Env []string
	// Grace is how long the daemon may take to stop before it is killed; 0 means 40 s.
	Grace time.Duration
	// RootWait is how long to wait for an earlier daemon to leave the root, one whose supervisor was
	// killed; 0 means a minute.
	RootWait time.Duration
	// OnState is called on every change of state, one at a time; it must not block. err is why the
	// daemon is Down. It may be nil.
	OnState func(s State, err error)
	// Logger takes the daemon's log and what happens to it; nil drops it.
	Logger *slog.Logger
}

// State is what the daemon is doing.
type State int

// States of a daemon.
const (
	Starting State = iota // executed, does not answer yet
	Ready                 // answers
	Down                  // has died and waits to be started again
	Stopped               // will not be started again
)

// String returns the state in lower case.
func (s State) String() string {
	return [...]string{"starting", "ready", "down", "stopped"}[s]
}

// ErrStopped is returned by Wait when the daemon will not be ready any more.
var ErrStopped = errors.New("the build daemon has been stopped")

// A Daemon is a supervised build daemon. Its methods may be called concurrently.
type Daemon struct {
	cfg Config

	mu      sync.Mutex
	pid     int
	state   State
	err     error         // why it is Down or Stopped
	changed chan struct{} // closed on the next change of state
}

// New returns a daemon that Run will start.
func New(cfg Config) (*Daemon, error) {
	if cfg.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("path of this program: %w", err)
		}
		cfg.Executable = exe
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.RootWait == 0 {
		cfg.RootWait = startTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnState == nil {
		cfg.OnState = func(State, error) {}
	}
	return &Daemon{cfg: cfg, changed: make(chan struct{})}, nil
}

// Address is where the daemon answers, for BuildKit's client.
func (d *Daemon) Address() string { return "unix://" + d.cfg.Daemon.Socket }

// PID returns the process ID of the daemon that was started last, 0 if none was.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pid
}

// Wait blocks until the daemon is ready. It returns the reason if it will not be, and ctx's error,
// together with what has gone wrong so far, if ctx ends first.
func (d *Daemon) Wait(ctx context.Context) error {
	for {
		d.mu.Lock()
		state, err, changed := d.state, d.err, d.changed
		d.mu.Unlock()
		switch state {
		case Ready:
			return nil
		case Stopped:
			return errors.Join(ErrStopped, err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("build daemon is %s: %w", state, context.Cause(ctx)), err)
		}
	}
}

// Run keeps the daemon running until ctx ends, then stops it and returns nil. It returns an error if
// the daemon cannot be started at all. It may be called once.
func (d *Daemon) Run(ctx context.Context) error {
	err := d.keepRunning(ctx)
	d.set(Stopped, err)
	return err
}

func (d *Daemon) keepRunning(ctx context.Context) error {
	if err := d.awaitRoot(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("build daemon does not start: %w", err)
	}
	backoff := minBackoff
	everReady := false
	for attempt := 1; ; attempt++ {
		readyFor, err := d.runOnce(ctx)
		if ctx.Err() != nil {
			return err
		}
		everReady = everReady || readyFor > 0
		if !everReady && attempt >= firstAttempts {
			return fmt.Errorf("build daemon does not start: %w", err)
		}
		if readyFor > stable {
			backoff = minBackoff
		}
		d.set(Down, err)
		d.cfg.Logger.Warn("build daemon died, it is started again", "after", backoff, "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// runOnce executes the daemon until it dies or ctx ends. It returns how long the daemon answered, and
// how it died; nil if it stopped because ctx ended.
func (d *Daemon) runOnce(ctx context.Context) (readyFor time.Duration, err error) {
	d.set(Starting, nil)
	c, err := startChild(&d.cfg)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	d.pid = c.cmd.Process.Pid
	d.mu.Unlock()
	if err := d.awaitReady(ctx, c); err != nil {
		stopErr := c.stop(&d.cfg)
		if ctx.Err() != nil {
			return 0, stopErr
		}
		return 0, errors.Join(err, stopErr)
	}
	since := time.Now()
	d.set(Ready, nil)
	select {
	case <-c.exited:
		return time.Since(since), c.failure()
	case <-ctx.Done():
		return time.Since(since), c.stop(&d.cfg)
	}
}

// awaitRoot returns when an earlier daemon has left the root.
func (d *Daemon) awaitRoot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.RootWait)
	defer cancel()
	return daemon.WaitFree(ctx, d.cfg.Daemon)
}

// awaitReady returns when the daemon answers. It returns an error if the daemon has died or answers
// too late.
func (d *Daemon) awaitReady(ctx context.Context, c *child) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no answer within %s", startTimeout))
	defer cancel()
	bk, err := client.New(ctx, d.Address())
	if err != nil {
		return err
	}
	defer bk.Close()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if answers(ctx, bk) {
			return nil
		}
		select {
		case <-c.exited:
			return c.failure()
		case <-ctx.Done():
			return fmt.Errorf("build daemon at %s: %w", d.Address(), context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// answers asks the daemon once. A daemon that is being started may take the connection and not
// answer at once.
func answers(ctx context.Context, bk *client.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := bk.ListWorkers(ctx)
	return err == nil
}

func (d *Daemon) set(s State, err error) {
	d.mu.Lock()
	d.state, d.err = s, err
	close(d.changed)
	d.changed = make(chan struct{})
	d.mu.Unlock()
	d.cfg.OnState(s, err)
}
