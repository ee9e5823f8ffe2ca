package apiclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"kiln/internal/event"
	"kiln/internal/run"
)

const (
	defaultPatience = time.Minute
	firstRetry      = 50 * time.Millisecond
	maxRetry        = 2 * time.Second
	// silence is how long a stream may say nothing, heartbeats included, before it counts as dead.
	silence = 3 * StreamBeat
)

// A StreamEvent is one event of a run's log stream. Exactly one of Log and Run is set.
type StreamEvent struct {
	ID  string // of the log event; resumes the stream after it
	Log *event.LogChunk
	Run *run.Run
}

// errSilent is why a stream that says nothing any more is given up.
var errSilent = errors.New("the stream fell silent")

// Follow streams the log of a run to fn, in order, from the beginning or after lastID. With follow
// it goes on until the run is final and its log complete, else it ends with what there is. It then
// returns nil; it returns fn's error if that fails, and ctx's cause if ctx ends.
//
// When the connection breaks and the server has answered before, Follow connects again and resumes
// after the last log event it delivered: none is lost or repeated, while the run itself is
// delivered again. It gives up with ErrUnreachable when the server stays away for c.Patience.
func (c *Client) Follow(ctx context.Context, runID, lastID string, follow bool, fn func(StreamEvent) error) error {
	if err := checkID(runID); err != nil {
		return err
	}
	f := &follower{c: c, path: LogPath(runID), last: lastID, fn: fn}
	if follow {
		f.path += "?follow=1"
	}
	for p := (retries{c: c}); ; {
		heard, err := f.once(ctx)
		switch {
		case f.failed != nil:
			return f.failed
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil || !c.met.Load() || !temporary(err):
			return err
		}
		if heard {
			p.heard()
		}
		if err := p.again(ctx, "log of run "+runID, err); err != nil {
			return err
		}
	}
}

// retries are those of something that a server is followed for.
type retries struct {
	c    *Client
	lost time.Time     // when the server was lost; zero while it is there
	wait time.Duration // before the next one
}

// heard notes that the server is there.
func (r *retries) heard() { r.lost, r.wait = time.Time{}, 0 }

// again waits before another try after one that has ended with an error, which it returns when the server stays away
// for too long.
func (r *retries) again(ctx context.Context, what string, err error) error {
	if r.lost.IsZero() {
		r.lost, r.wait = time.Now(), firstRetry
		if r.c.Lost != nil {
			r.c.Lost(err)
		}
	}
	patience := r.c.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	if time.Since(r.lost) > patience {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer func() { r.wait = min(2*r.wait, maxRetry) }()
	return pause(ctx, r.wait)
}

// pause waits for about d.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// temporary reports whether a later attempt may succeed where this one failed.
func temporary(err error) bool {
	var e *Error
	if errors.As(err, &e) {
		return e.Status >= 500
	}
	return errors.Is(err, ErrUnreachable)
}

// A follower is the state of one Follow across its connections.
type follower struct {
	c    *Client
	path string
	last string // ID of the last log event delivered
	fn   func(StreamEvent) error

	failed error // what fn returned
}

// once streams over one connection. It returns nil if the stream came to its proper end; heard says
// whether the server said anything on it.
func (f *follower) once(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()

	req, err := f.c.request(ctx, http.MethodGet, f.path, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("Accept", "text/event-stream")
	if f.last != "" {
		req.Header.Set("Last-Event-ID", f.last)
	}
	resp, err := f.c.do(req)
	if err != nil {
		return false, f.explain(ctx, err)
	}
	defer resp.Body.Close()

	r := newEventReader(resp.Body)
	r.onLine = func() { watchdog.Reset(silence) }
	for {
		e, err := r.next()
		switch {
		case errors.Is(err, errEventSize):
			return heard, fmt.Errorf("%s: %w", f.path, err)
		case err != nil:
			return heard, f.explain(ctx, err)
		}
		heard = true
		if e.name == StreamEnd {
			return true, nil
		}
		if err := f.deliver(e); err != nil {
			return true, err
		}
	}
}

// explain makes an error of the connection one that is recognised as such.
func (f *follower) explain(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		err = errSilent
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	var e *Error
	if errors.As(err, &e) || errors.Is(err, ErrUnreachable) {
		return err
	}
	return &unreachableError{url: f.c.BaseURL, err: err, broken: true}
}

func (f *follower) deliver(e sseEvent) error {
	switch e.name {
	case StreamLog:
		var chunk event.LogChunk
		if err := json.Unmarshal(e.data, &chunk); err != nil {
			return fmt.Errorf("%s: log event %q: %w", f.path, e.id, err)
		}
		if f.failed = f.fn(StreamEvent{ID: e.id, Log: &chunk}); f.failed != nil {
			return f.failed
		}
		f.last = e.id
	case StreamRun:
		var r run.Run
		if err := json.Unmarshal(e.data, &r); err != nil {
			return fmt.Errorf("%s: run event: %w", f.path, err)
		}
		f.failed = f.fn(StreamEvent{Run: &r})
		return f.failed
	}
	return nil // a later server's event: not for us
}
