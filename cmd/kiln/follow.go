package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"kiln/cmd/kiln/internal/render"
	"kiln/internal/apiclient"
	"kiln/internal/run"
)

// minColumns is the width below which a terminal is too narrow to draw on.
const minColumns = 30

// errLeft is why following ends when the user leaves before the run has ended.
var errLeft = errors.New("left before the run ended")

// display returns the Display for a run that is followed.
func (c *cli) display(ctx context.Context) render.Display {
	if c.quiet {
		return render.Discard{}
	}
	if f, ok := c.Err.(*os.File); ok && c.env("TERM") != "dumb" && term.IsTerminal(int(f.Fd())) {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w >= minColumns {
			if d, err := render.NewTerminal(ctx, f); err == nil {
				return d
			}
		}
	}
	return render.NewPlain(c.Err)
}

// follow shows a run until it has ended and returns it as it is then. When ctx ends it asks the
// server to cancel the run and goes on; a second signal ends it with errLeft.
func (c *cli) follow(ctx context.Context, client *apiclient.Client, r run.Run) (run.Run, error) {
	work, leave := context.WithCancelCause(context.WithoutCancel(ctx))
	defer leave(nil)
	view := &view{display: c.display(ctx)}
	view.run(r)
	client.Lost = func(err error) { view.note("connection lost, trying again: " + err.Error()) }

	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-work.Done():
			return
		case <-ctx.Done():
		}
		again, stop := signal.NotifyContext(work, os.Interrupt, syscall.SIGTERM)
		defer stop()
		view.note("canceling the run; interrupt again to leave it to the server")
		if err := cancelRun(again, client, r.ID); err != nil && again.Err() == nil {
			view.note(err.Error())
		}
		<-again.Done()
		leave(errLeft) // does nothing if the work is over
	})
	err := client.Follow(work, r.ID, "", true, view.event)
	leave(nil)
	wg.Wait()
	view.display.Close()

	switch {
	case err != nil:
		return view.last, &followError{r.ID, err}
	case !view.last.State.Final():
		return client.Run(context.WithoutCancel(ctx), r.ID)
	}
	return view.last, nil
}

// A followError is why a run is not followed to its end. The run goes on.
type followError struct {
	id  string
	err error
}

func (e *followError) Error() string { return fmt.Sprintf("run %s: %v", e.id, e.err) }
func (e *followError) Unwrap() error { return e.err }

// cancelRun asks for the end of a run until the server has heard it.
func cancelRun(ctx context.Context, client *apiclient.Client, id string) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		_, err := client.Cancel(ctx, id)
		if !errors.Is(err, apiclient.ErrUnreachable) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// A view feeds a display, which knows no locks, from several goroutines.
type view struct {
	mu      sync.Mutex
	display render.Display
	last    run.Run
}

func (v *view) event(e apiclient.StreamEvent) error {
	if e.Run != nil {
		v.run(*e.Run)
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.display.Chunk(*e.Log)
	return nil
}

func (v *view) run(r run.Run) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = r
	v.display.Run(r)
}

func (v *view) note(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.display.Note(s)
}
