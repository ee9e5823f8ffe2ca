package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/taskspec"
)

// An attempt is one execution of a run's steps.
type attempt struct {
	w       *Worker
	run     run.Run // as assigned
	task    *taskspec.Task
	session solve.Session
	logs    *logs
	reports *reporter
	images  *images
	config  solve.SessionConfig
	// identity is that of the source's content, empty if it is not known.
	identity string
	tokens   event.Tokens // for the co-located registry
	secrets  event.Secrets
	src      Source // nil if the run has none
	origin   Origin // of the source, zero if it is no commit
	begun    time.Time
	vaulted  []string // values of secrets that the task file names
	signedIn signedIn
	warned   int         // warnings of the source that are in the log
	wrote    atomic.Bool // a cmd step was started
	services services
	docking  dockerSlots
}

// outcome is how an attempt ended.
type outcome struct {
	state     run.State // final, or event.HandedBack; empty when the attempt was superseded
	reason    string
	blameless bool
}

// execute works through one attempt and reports its outcome.
func (w *Worker) execute(ctx context.Context, cancel context.CancelCauseFunc, as event.Assignment) {
	log := w.Log.With("run", as.Run.ID, "attempt", as.Run.Attempt, "task", as.Run.Task)
	stopLease := w.keepLease(ctx, as, cancel)
	if as.Run.Spec.Timeout > 0 {
		t := time.AfterFunc(as.Run.Spec.Timeout-elapsed(as.Run), func() { cancel(errTimeLimit) })
		defer t.Stop()
	}
	begun := time.Now()
	a := &attempt{w: w, run: as.Run, begun: begun, reports: newReporter(w.Bus, as.Run, begun)}
	log.Info("attempt started")
	out := a.outcome(ctx, a.awaitRegistry(ctx, a.work(ctx, as)))
	log.Info("attempt ended", "outcome", out.state, "reason", out.reason)
	if out.state == event.HandedBack && !out.blameless { // before the next run comes
		if err := a.w.register(context.WithoutCancel(ctx)); err != nil {
			log.Warn("worker not registered, trying again", "err", err)
		}
	}
	a.finish(context.WithoutCancel(ctx), out)
	stopLease()
	a.retain(ctx)
	a.closeSession(ctx)
}

// elapsed is the time a run has used up in earlier attempts.
func elapsed(r run.Run) time.Duration {
	if r.Started.IsZero() {
		return 0
	}
	return time.Since(r.Started)
}

// work prepares and executes the steps. It leaves the session open.
func (a *attempt) work(ctx context.Context, as event.Assignment) error {
	var err error
	if a.tokens, err = a.w.tokens.open(a.w.Identity, as.Token); err != nil {
		return err
	}
	if err := a.openSecrets(as); err != nil {
		return err
	}
	a.logs = newLogs(a.w.Bus, as.Run, a.confidential(), a.w.MaxLog)
	if a.run.Attempt > 1 {
		a.logs.say("", "attempt %d, on worker %s", a.run.Attempt, a.w.Name)
	}
	if a.w.Notice != "" {
		a.logs.say("", "warning: %s", a.w.Notice)
	}
	a.images = newImages(a.w, a.run)
	src, err := a.openSource(ctx)
	if err != nil {
		return err
	}
	a.src = src
	if err := a.readTaskFile(ctx, src); err != nil {
		return err
	}
	if a.task, err = a.plan(ctx); err != nil {
		return err
	}
	a.reports.begin(a.steps())
	a.config, a.identity = a.sessionConfig(src), identityOf(src)
	a.session = a.w.Solver.Open(a.config)
	err = a.guarded(ctx, src)
	a.warnings(src)
	return err
}

// retain lets the engine prepare for the next run on the same source. Nobody waits for it, and a worker that
// stops does not.
func (a *attempt) retain(ctx context.Context) {
	if a.session == nil || a.src == nil || ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, retainTimeout)
	defer cancel()
	ctx, stop := a.src.Guard(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.session.Retain(ctx)
	}()
	select {
	case <-ended:
	case <-a.w.stopping:
		cancel()
		<-ended
	}
}

// retainTimeout bounds what is done for the next run.
const retainTimeout = 10 * time.Minute

// closeSession removes what the steps have left. Nobody waits for it: no step runs any more.
func (a *attempt) closeSession(ctx context.Context) {
	if a.session == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := a.session.Close(ctx); err != nil {
		a.w.Log.Warn("session not closed cleanly", "run", a.run.ID, "attempt", a.run.Attempt, "err", err)
	}
}

// guarded runs the steps until they end or the source cannot be read.
func (a *attempt) guarded(ctx context.Context, src Source) error {
	if src == nil {
		return a.runGraph(ctx)
	}
	gctx, stop := src.Guard(ctx)
	defer stop()
	err := a.runGraph(gctx)
	if err != nil && ctx.Err() == nil && gctx.Err() != nil {
		return fmt.Errorf("source: %w", context.Cause(gctx))
	}
	return err
}

// closeTimeout bounds the removal of an attempt's containers and workspace.
const closeTimeout = 30 * time.Second

// identityOf names the content of a source, if that has a name. No source is one content, too.
func identityOf(src Source) string {
	if src == nil {
		return "none"
	}
	if s, ok := src.(Identified); ok {
		return s.Identity()
	}
	return ""
}

func (a *attempt) sessionConfig(src Source) solve.SessionConfig {
	cfg := solve.SessionConfig{
		Run: a.run.ID, Attempt: a.run.Attempt, Registry: a.w.Registry, RegistryAt: a.w.RegistryAt, Aliases: a.w.Aliases, Insecure: a.w.Insecure,
		Credentials: a.credentials, CacheScope: a.cacheScope(),
		OwnFrontend: a.run.Spec.Restricted, Fetch: a.w.MayFetch,
	}
	if a.confined() {
		cfg.Images = a.mayUse
	}
	if src != nil {
		cfg.Source, cfg.SourceKey = src, src.Key()
	}
	return cfg
}

// outcome classifies the error that work returned.
func (a *attempt) outcome(ctx context.Context, err error) outcome {
	cause := context.Cause(ctx)
	var step *stepFailure
	var invalid *planError
	switch {
	case err == nil:
		return outcome{state: run.Succeeded}
	case errors.Is(cause, errTimeLimit):
		return outcome{state: run.Timeout, reason: fmt.Sprintf("the run took longer than %s; raise --timeout", a.run.Spec.Timeout)}
	case errors.Is(cause, errCanceled):
		return outcome{state: run.Canceled, reason: cause.Error()}
	case errors.Is(cause, errShutdown):
		return outcome{state: event.HandedBack, reason: cause.Error(), blameless: true}
	case errors.Is(cause, errLeaseLost), errors.Is(cause, errGivenUp), errors.Is(err, registry.ErrFenced):
		return outcome{reason: err.Error()} // another attempt has taken over: nobody listens to this one
	case errors.Is(err, solve.ErrUnavailable), errors.Is(err, errRegistryAway):
		return outcome{state: event.HandedBack, reason: a.clean(err)}
	case errors.As(err, &step), errors.As(err, &invalid):
		return outcome{state: run.Failed, reason: a.clean(err)}
	}
	return outcome{state: run.Error, reason: a.clean(err)}
}

// finish reports the outcome once every log line is stored.
func (a *attempt) finish(ctx context.Context, out outcome) {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	var end uint64
	if a.logs != nil {
		if out.state.Final() {
			a.summarise()
		}
		switch {
		case out.state == event.HandedBack:
			a.logs.say("", "attempt %d given up: %s", a.run.Attempt, out.reason)
		case out.state != run.Succeeded && out.reason != "":
			a.logs.say("", "%s", out.reason)
		}
		end = a.logs.close(ctx)
	}
	if out.state == "" {
		return
	}
	err := a.reports.final(ctx, out, end)
	if err != nil {
		a.w.Log.Error("outcome not reported; the run will be attempted again when the lease expires",
			"run", a.run.ID, "attempt", a.run.Attempt, "err", err)
	}
}

func decode(data []byte, v any) error { return json.Unmarshal(data, v) }
