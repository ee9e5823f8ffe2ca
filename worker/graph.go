package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kiln/internal/run"
	"kiln/taskspec"
)

// errSibling is why a step is cancelled when another one has failed.
var errSibling = errors.New("another step failed")

// A stepFailure is the end of a run by a step that failed: the user's result.
type stepFailure struct {
	id  string
	err error
}

func (e *stepFailure) Error() string { return fmt.Sprintf("step %s: %v", e.id, e.err) }
func (e *stepFailure) Unwrap() error { return e.err }

// runGraph executes the steps, each as soon as the steps it waits for have succeeded. The first failure
// cancels what runs and leaves out what has not started; it is what is returned.
func (a *attempt) runGraph(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer a.services.watch(ctx, cancel)()
	a.prepare(ctx)
	waits, children := edges(a.task)
	done := make(chan result)
	running := 0
	start := func(i int) {
		running++
		go func() { done <- result{i, a.step(ctx, i)} }()
	}
	for i := range a.task.Steps {
		if waits[i] == 0 {
			start(i)
		}
	}
	left := len(a.task.Steps)
	var first error
	for running > 0 {
		r := <-done
		running--
		left--
		if r.err != nil && first == nil {
			first = r.err
			cancel(errSibling)
		}
		if first != nil {
			continue
		}
		a.reports.kick()
		for _, c := range children[r.step] {
			if waits[c]--; waits[c] == 0 {
				start(c)
			}
		}
	}
	return a.services.end(ctx, first)
}

// prepare has the workspace made ready while the steps are executed that come before the first one that
// works in it.
func (a *attempt) prepare(ctx context.Context) {
	if slices.ContainsFunc(a.task.Steps, func(s *taskspec.Step) bool { return s.Kind == taskspec.KindCmd && s.Cmd.InContainer() }) {
		a.session.Prepare(ctx)
	}
}

type result struct {
	step int
	err  error
}

// edges returns, for each step, how many steps it waits for and which wait for it.
func edges(t *taskspec.Task) (waits []int, children [][]int) {
	at := map[string]int{}
	for i, s := range t.Steps {
		at[s.ID] = i
	}
	waits, children = make([]int, len(t.Steps)), make([][]int, len(t.Steps))
	for i, s := range t.Steps {
		waits[i] = len(s.After)
		for _, id := range s.After {
			children[at[id]] = append(children[at[id]], i)
		}
	}
	return waits, children
}

// step executes one step, with its delay, time limit, retries and repetitions, and reports it.
func (a *attempt) step(ctx context.Context, index int) error {
	s := a.task.Steps[index]
	if _, ok := a.finished(s); ok {
		a.logs.say(s.ID, "finished by an earlier attempt, not repeated")
		return nil
	}
	if why := a.skip(s); why != "" {
		a.logs.say(s.ID, "%s", why)
		a.reports.step(run.Step{ID: s.ID, Kind: string(s.Kind), State: run.StepSkipped, Attempt: a.run.Attempt})
		return nil
	}
	if err := pause(ctx, s.StartDelay); err != nil {
		return err
	}
	// Pushes cost the build daemon nothing, and for a service those may be waiting who have their turns.
	if s.Kind != taskspec.KindPush && !s.Detach {
		done, err := a.w.turns.take(ctx, a.run.ID, func() {
			a.logs.say(s.ID, "waits: the worker executes as many steps as it may")
		})
		if err != nil {
			return err
		}
		defer done()
	}
	rec := run.Step{ID: s.ID, Kind: string(s.Kind), State: run.StepRunning, Attempt: a.run.Attempt, Started: time.Now().UTC()}
	a.reports.step(rec)
	a.reports.kick()
	tctx, cancel := context.WithTimeoutCause(ctx, s.Timeout, errStepTimeout)
	defer cancel()
	err := a.repeat(tctx, s, &rec)
	if a.attend(s, rec) {
		return nil
	}
	a.logs.end(s.ID)
	rec.Finished = time.Now().UTC()
	rec.State, err = a.judge(ctx, tctx, s, &rec, err)
	if err != nil || rec.State != run.StepSucceeded {
		rec.Error = a.clean(firstOf(err, rec.Error))
	}
	a.reports.step(rec)
	return err
}

func firstOf(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

// errStepTimeout is the cause of a step that took too long.
var errStepTimeout = errors.New("step time limit exceeded")

// judge turns how a step's execution ended into the step's state and the error for the graph.
func (a *attempt) judge(ctx, tctx context.Context, s *taskspec.Step, rec *run.Step, err error) (run.StepState, error) {
	switch {
	case err == nil:
		return run.StepSucceeded, nil
	case ctx.Err() != nil:
		return run.StepCanceled, fmt.Errorf("step %s: %w", s.ID, context.Cause(ctx))
	}
	state := run.StepFailed
	if errors.Is(context.Cause(tctx), errStepTimeout) {
		state = run.StepTimeout
		err = &stepFailure{s.ID, fmt.Errorf("timed out after %s; raise the step's timeout property, or the task's stepTimeout", s.Timeout)}
	}
	var failure *stepFailure
	if s.IgnoreErrors && errors.As(err, &failure) {
		a.logs.say(s.ID, "failed, and ignoreErrors is set: %v", failure.err)
		rec.Error = failure.err.Error()
		return run.StepSucceeded, nil
	}
	return state, err
}

// repeat executes a step Repeat+1 times, each with its retries. It goes on after a failure and returns
// all of them.
func (a *attempt) repeat(ctx context.Context, s *taskspec.Step, rec *run.Step) error {
	var errs []string
	var last error
	var code *int // of the last failure
	for i := range s.Repeat + 1 {
		if i > 0 && s.Detach {
			break // there is one service of that name
		}
		err := a.retry(ctx, s, rec)
		var failure *stepFailure
		if err != nil && (!errors.As(err, &failure) || ctx.Err() != nil) {
			return err
		}
		if err != nil {
			errs, code = append(errs, failure.err.Error()), rec.ExitCode
			last = failure.err
		}
	}
	if len(errs) > 1 {
		last = errors.New(strings.Join(errs, "; "))
	}
	if last != nil {
		rec.ExitCode = code
		return &stepFailure{s.ID, last}
	}
	return nil
}

// retry executes a step until it succeeds or its retries are used up.
func (a *attempt) retry(ctx context.Context, s *taskspec.Step, rec *run.Step) error {
	for try := 0; ; try++ {
		rec.Tries++
		rec.ExitCode = nil
		found := a.logs.watch(s.ID, s.RetryOn)
		err := a.once(ctx, s, rec)
		var failure *stepFailure
		if err == nil || !errors.As(err, &failure) || ctx.Err() != nil || try >= s.Retries || !found() && !mentions(failure, s.RetryOn) {
			return err
		}
		a.logs.say(s.ID, "failed: %v; retry %d of %d in %s", failure.err, try+1, s.Retries, s.RetryDelay)
		if err := pause(ctx, s.RetryDelay); err != nil {
			return err
		}
	}
}

// mentions reports whether the failure speaks of one of the words: that an image could not be pulled no
// process has printed.
func mentions(f *stepFailure, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(f.err.Error(), w) })
}

// pause waits for d or returns the context's cause.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
