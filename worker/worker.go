// Package worker executes runs.
//
// A Worker registers itself, takes the assignments that the scheduler sends it, never more than it has
// slots for, and executes each: source, steps, publication. It holds a lease while an attempt is under
// way and reports every change; it decides nothing about a run's record. An attempt is executed at
// least once, its effects are fenced: the registry refuses what an attempt publishes after it was
// given up. The end of the context stops the intake; work in hand gets the grace period and is then
// handed back.
package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/solve"
	"kiln/internal/store"
)

// A Worker executes runs. Its fields are set before Run is called and not changed after.
type Worker struct {
	Bus       *bus.Bus
	Store     *store.Store
	Solver    solve.Solver
	Publisher Publisher
	// Resolver looks up what earlier builds have used and staged. Without one every build is solved.
	Resolver Resolver
	// Open returns the source that a request names. The context bounds the source's life.
	Open func(ctx context.Context, r OpenRequest) (Source, error)
	// Outside sends the requests of steps to registries other than the co-located one. Nil means that they may
	// be anywhere.
	Outside http.RoundTripper
	// MayFetch reports why the build daemon must not fetch from a host that a Dockerfile names. Nil means that
	// it may be any.
	MayFetch func(ctx context.Context, host string) error

	Name      string // stays the same over restarts, and is no other worker's
	Host      string // that it runs on
	Instance  string // new at each start
	Pool      string
	Parallel  int      // runs at once
	Steps     int      // build and cmd steps of all runs at once, at least Parallel; 0 is no limit
	BuildKit  string   // its version
	Platforms []string // that its build daemon builds for, the native one first
	Address   string   // of its build daemon
	// Apart says that it reaches the co-located registry over the network.
	Apart bool
	// Healthy reports why the build daemon can execute nothing now. The worker asks every few seconds, and gets no
	// runs while there is a reason. Nil means that it always can.
	Healthy  func(ctx context.Context) error
	Version  string          // of kiln
	Builder  string          // URI of the server, as provenances name it
	Identity secret.Identity // opens what the scheduler seals to this worker

	Registry string   // canonical host of the co-located registry
	Aliases  []string // its other names
	// RegistryAt is the host at which the build daemon reaches it, if not by its canonical name.
	RegistryAt string
	Insecure   bool              // it speaks plain HTTP
	Own        http.RoundTripper // for requests to it; nil for the default
	Images     map[string]string // image aliases of the task language, nil for the default table
	// Vault returns the value of the secret at the URL that a task file names. Nil means that there is none.
	Vault func(ctx context.Context, url string) (string, error)
	// SSHKeys are private keys in PEM, by ID, that builds may use for --ssh if they bring none.
	SSHKeys map[string][]byte
	// Purge deletes old images of the co-located registry for a run that may. Nil means that none may.
	Purge func(ctx context.Context, r run.Run, p apiclient.Purge) (apiclient.Purged, error)
	// Privileged says that the daemon executes privileged containers, for runs that allow them.
	Privileged bool

	// Notice is what whoever reads a run's log has to know of this worker, "" if nothing.
	Notice string

	// MaxLog is how many bytes of output are kept of one attempt. Zero means DefaultMaxLog.
	MaxLog   int64
	LeaseTTL time.Duration
	Grace    time.Duration // how long attempts in hand may take once the context is done
	Log      *slog.Logger

	registering sync.Mutex
	unfit       string // as registered
	heard       atomic.Pointer[time.Time]
	started     time.Time

	mu       sync.Mutex
	attempts map[string]context.CancelCauseFunc // by lease key
	tokens   openedTokens
	builds   builds
	turns    turns
	stopping <-chan struct{} // closed when the intake has ended
}

// openedTokens remembers the last tokens that were opened: they may be the same for many runs.
type openedTokens struct {
	mu     sync.Mutex
	sealed []byte
	tokens event.Tokens
}

func (t *openedTokens) open(id secret.Identity, sealed []byte) (event.Tokens, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sealed != nil && bytes.Equal(t.sealed, sealed) {
		return t.tokens, nil
	}
	var tokens event.Tokens
	if err := id.Open(sealed, &tokens); err != nil {
		return tokens, fmt.Errorf("registry tokens: %w", err)
	}
	t.sealed, t.tokens = sealed, tokens
	return tokens, nil
}

// Reasons for which an attempt is stopped.
var (
	errCanceled  = errors.New("canceled")
	errShutdown  = errors.New("worker is shutting down")
	errLeaseLost = errors.New("lease could not be kept")
	errGivenUp   = errors.New("this attempt was given up, another one takes its place")
	errTimeLimit = errors.New("time limit of the run exceeded")
)

// Run executes runs until ctx is done, and returns when the attempts in hand have ended.
func (w *Worker) Run(ctx context.Context) error {
	w.attempts, w.started = map[string]context.CancelCauseFunc{}, time.Now().UTC()
	w.stopping = ctx.Done()
	w.turns.steps, w.turns.runs = w.Steps, w.Parallel
	// Attempts outlive ctx: its end stops the intake, not the work.
	work, abort := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abort(nil)
	defer context.AfterFunc(ctx, func() {
		time.AfterFunc(w.Grace, func() { abort(errShutdown) })
	})()

	unsubscribe, err := w.Bus.Subscribe(event.ControlSubject(w.Instance), w.control)
	if err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	defer unsubscribe()
	if err := bus.Patiently(ctx, func() error { return w.register(ctx) }); err != nil {
		return fmt.Errorf("worker: %w", err)
	}
	var runs sync.WaitGroup
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.heartbeat(gctx) })
	g.Go(func() error {
		return w.Bus.Consume(gctx, bus.Consumer{Stream: bus.StreamWork, Name: "worker-" + w.Instance,
			Filter: event.WorkSubject(w.Instance), Expire: time.Hour}, func(m bus.Message) { w.take(work, m, &runs) })
	})
	err = g.Wait()
	w.withdraw(context.WithoutCancel(ctx))
	runs.Wait()
	return err
}

// take starts the attempt that an assignment names. The assignment is settled at once: from here on the
// lease says that somebody is at work.
func (w *Worker) take(ctx context.Context, m bus.Message, runs *sync.WaitGroup) {
	var as event.Assignment
	if err := m.Decode(&as); err != nil {
		m.Settle(err)
		return
	}
	key := event.LeaseKey(as.Run.ID, as.Run.Attempt)
	actx, cancel := context.WithCancelCause(ctx)
	w.mu.Lock()
	_, again := w.attempts[key]
	if !again {
		w.attempts[key] = cancel
	}
	w.mu.Unlock()
	m.Settle(nil)
	if again {
		cancel(nil)
		return
	}
	runs.Go(func() {
		defer func() {
			cancel(nil)
			w.mu.Lock()
			delete(w.attempts, key)
			w.mu.Unlock()
		}()
		w.execute(actx, cancel, as)
	})
}

// control stops an attempt that the scheduler wants stopped.
func (w *Worker) control(data []byte) {
	var c event.Control
	if err := decode(data, &c); err != nil {
		w.Log.Warn("control message not understood", "err", err)
		return
	}
	w.mu.Lock()
	cancel := w.attempts[event.LeaseKey(c.Run, c.Attempt)]
	w.mu.Unlock()
	switch {
	case cancel == nil:
	case c.Superseded:
		cancel(errGivenUp)
	default:
		cancel(fmt.Errorf("%w %s", errCanceled, c.Reason))
	}
}

// keepLease refreshes an attempt's lease until the returned function is called. An attempt that cannot
// keep its lease is aborted, because another one will be started.
func (w *Worker) keepLease(ctx context.Context, as event.Assignment, abort context.CancelCauseFunc) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	key := event.LeaseKey(as.Run.ID, as.Run.Attempt)
	lease := event.Lease{Attempt: as.Run.Attempt, Worker: w.Name, Instance: w.Instance}
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(w.LeaseTTL / 3)
		defer t.Stop()
		kept := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			_, err := w.Store.Leases.Put(ctx, key, lease)
			switch {
			case err == nil:
				kept = time.Now()
			case ctx.Err() == nil && time.Since(kept) > w.LeaseTTL:
				abort(errLeaseLost)
			}
		}
	}()
	return func() { cancel(); <-done }
}
