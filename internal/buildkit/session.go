package buildkit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"kiln/internal/solve"
)

// runSession implements solve.Session.
type runSession struct {
	client *Client
	cfg    solve.SessionConfig
	redact *redactor
	token  string // unguessable: names the session's cache mounts

	gateway lazy[*gateway]

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
	cancels map[int]context.CancelCauseFunc // of what is executing
	next    int
	numbers map[string]map[string]int // of steps, by network: see package peers
}

func newSession(c *Client, cfg solve.SessionConfig) *runSession {
	return &runSession{
		client:  c,
		cfg:     cfg,
		redact:  &redactor{},
		token:   randomToken(),
		cancels: map[int]context.CancelCauseFunc{},
	}
}

// begin registers a step. The context it returns ends with ctx and with the session.
func (s *runSession) begin(ctx context.Context) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, errClosed
	}
	ctx, cancel := context.WithCancelCause(ctx)
	id := s.next
	s.next++
	s.cancels[id] = cancel
	s.running.Add(1)
	return ctx, func() {
		s.mu.Lock()
		delete(s.cancels, id)
		s.mu.Unlock()
		cancel(nil)
		s.running.Done()
	}, nil
}

// Prepare opens the gateway and makes the workspace.
func (s *runSession) Prepare(ctx context.Context) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return
	}
	go func() {
		defer end()
		if g, err := s.gateway.get(ctx, s.openGateway); err == nil {
			_, _ = g.workspace.get(ctx, g.createWorkspace) // a failure is not kept, Run tries again
		}
	}()
}

// Close cancels what is still executing, removes the containers and the workspace, and waits.
func (s *runSession) Close(ctx context.Context) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, cancel := range s.cancels {
		cancel(errClosed)
	}
	s.mu.Unlock()

	s.running.Wait()
	g, opened := s.gateway.peek()
	if !opened {
		return nil
	}
	if err := g.close(ctx); err != nil {
		return fmt.Errorf("run %s: close session: %w", s.cfg.Run, err)
	}
	return nil
}

func randomToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, says its documentation
	return hex.EncodeToString(b[:])
}

// causeOf returns why ctx ended in place of err, which then only says that it did.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return cause
	}
	return err
}
