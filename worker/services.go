package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"kiln/internal/run"
	"kiln/internal/solve"
	"kiln/taskspec"
)

// errStepsEnded is why services are stopped when a run has ended by itself.
var errStepsEnded = errors.New("the run's steps have ended")

// services are the detached steps of an attempt. Each lives until the steps have ended, or the attempt is
// to end for any other reason: then it is stopped at the same time as the steps are. The zero services are
// ready to use.
type services struct {
	mu      sync.Mutex
	started map[string]*service // by step, until somebody attends to it
	stops   []context.CancelCauseFunc
	ended   error // why they were stopped, nil before
	fail    context.CancelCauseFunc
	failed  error // why the run fails: a service that did not come up
	running sync.WaitGroup
}

// A service is one container of a detached step.
type service struct {
	begun time.Time
	stop  context.CancelCauseFunc
	ended chan struct{} // closed when the process is gone; then code and err hold
	code  int
	err   error
}

// watch has the services stopped when ctx ends. What it returns undoes that.
func (v *services) watch(ctx context.Context, fail context.CancelCauseFunc) func() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fail = fail
	return context.AfterFunc(ctx, func() { v.stop(context.Cause(ctx)) })
}

// stop begins to stop all services, those to come included.
func (v *services) stop(cause error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended == nil {
		v.ended = cause
	}
	for _, stop := range v.stops {
		stop(v.ended)
	}
}

// end stops all services, waits until they are gone and returns why the run fails: because of its steps, or
// of a service that did not come up.
func (v *services) end(ctx context.Context, steps error) error {
	cause := context.Cause(ctx)
	if cause == nil {
		cause = errStepsEnded
	}
	v.stop(cause)
	v.running.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed != nil {
		return v.failed
	}
	return steps
}

// add counts one service among those to be stopped and waited for.
func (v *services) add(step string, s *service) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended != nil {
		s.stop(v.ended)
	}
	if v.started == nil {
		v.started = map[string]*service{}
	}
	v.started[step] = s
	v.stops = append(v.stops, s.stop)
	v.running.Add(1)
}

// take returns the service that a step has started, nil if it has not, and forgets it.
func (v *services) take(step string) *service {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.started[step]
	delete(v.started, step)
	return s
}

// giveUp ends the run because a service did not come up, unless something else has ended it.
func (v *services) giveUp(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed == nil && (v.ended == nil || v.ended == errStepsEnded) {
		v.failed = err
		v.fail(errSibling)
	}
}

// stopped reports whether the services were to end, and why.
func (v *services) stopped() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ended
}

// serve starts the container of a detached step. It returns once its process is being started; the process
// lives on when ctx has ended, until the services are stopped.
func (a *attempt) serve(ctx context.Context, s *taskspec.Step, c solve.Container) error {
	life, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	v := &service{begun: time.Now(), stop: stop, ended: make(chan struct{})}
	started := make(chan struct{})
	c.Started = func() { close(started) }
	a.services.add(s.ID, v)
	go func() {
		defer a.services.running.Done()
		defer stop(nil)
		v.code, v.err = a.runPatiently(life, s, c)
		close(v.ended)
	}()
	select {
	case <-started:
		return nil
	case <-v.ended:
		return a.notStarted(s, v)
	case <-ctx.Done():
		stop(context.Cause(ctx))
		<-v.ended
		a.services.take(s.ID)
		return context.Cause(ctx)
	}
}

// notStarted returns the error of a service that has ended before it was seen to start.
func (a *attempt) notStarted(s *taskspec.Step, v *service) error {
	if v.err == nil {
		return nil // it was as quick as that; who attends to it says so
	}
	a.services.take(s.ID)
	return v.err
}

// attend follows the service that a step has started, if it has, and reports how it ends. Until then the
// step is running; that others wait for it no more is the caller's business.
func (a *attempt) attend(s *taskspec.Step, rec run.Step) bool {
	v := a.services.take(s.ID)
	if v == nil {
		return false
	}
	a.logs.say(s.ID, "the service %s is being started; it lives until the run ends", s.ID)
	a.services.running.Go(func() {
		<-v.ended
		a.logs.end(s.ID)
		rec.Finished = time.Now().UTC()
		rec.State = a.serviceEnd(s, v, &rec)
		a.reports.step(rec)
		a.reports.kick()
	})
	return true
}

// serviceEnd returns the state in which a service has ended, and completes its record. That a service ends
// by itself does not fail the run: steps that need it do. That it could not be started does.
func (a *attempt) serviceEnd(s *taskspec.Step, v *service, rec *run.Step) run.StepState {
	var failed *solve.StepError
	down := errors.As(v.err, &failed) && failed.ExitCode < firstSignalCode // it never came up
	cause := a.services.stopped()
	switch {
	case down:
	case cause == errStepsEnded:
		return run.StepSucceeded
	case cause != nil:
		rec.Error = a.clean(fmt.Errorf("step %s: %w", s.ID, cause))
		return run.StepCanceled
	case v.err == nil && v.code == 0:
		rec.ExitCode = &v.code
		a.logs.say(s.ID, "the service has ended by itself after %s, with exit code 0", v.lasted())
		return run.StepSucceeded
	}
	err := v.err
	switch {
	case err == nil:
		rec.ExitCode = &v.code
		err = fmt.Errorf("the service has ended by itself after %s, with exit code %d", v.lasted(), v.code)
	case failed == nil: // the engine's
		a.services.giveUp(err)
	case failed.ExitCode >= 0:
		rec.ExitCode = &failed.ExitCode
	}
	rec.Error = a.clean(&stepFailure{s.ID, err})
	a.logs.say(s.ID, "%s", rec.Error)
	switch {
	case s.IgnoreErrors:
		return run.StepSucceeded
	case down:
		a.services.giveUp(&stepFailure{s.ID, err})
	}
	return run.StepFailed
}

// firstSignalCode is the lowest exit code that says that a process was killed. An error of the engine with a
// lower one says that there was none.
const firstSignalCode = 128

func (v *service) lasted() time.Duration { return time.Since(v.begun).Round(time.Millisecond) }
