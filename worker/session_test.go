package worker

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/solve"
)

// A script is a Solver and its only Session: it records what it is asked to execute and does what the
// test says.
type script struct {
	run   func(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error)
	build func(ctx context.Context, b solve.Build, log solve.LogFunc) (solve.Built, error)
	files map[string]string // of the workspace

	mu       sync.Mutex
	cfg      solve.SessionConfig
	asked    []string // steps, in order
	runs     []solve.Container
	builds   []solve.Build
	closed   int
	prepared int
	retain   func()
}

func (s *script) Open(cfg solve.SessionConfig) solve.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg = cfg
	return s
}

// Retain tells that it was asked for and takes until ctx ends.
func (s *script) Retain(ctx context.Context) {
	if s.retain != nil {
		s.retain()
		<-ctx.Done()
	}
}

func (s *script) Prepare(context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepared++
}

func (s *script) Run(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
	s.mu.Lock()
	s.asked, s.runs = append(s.asked, c.Step), append(s.runs, c)
	s.mu.Unlock()
	if s.run == nil {
		return 0, nil
	}
	return s.run(ctx, c, log)
}

func (s *script) Build(ctx context.Context, b solve.Build, log solve.LogFunc) (solve.Built, error) {
	s.mu.Lock()
	s.asked, s.builds = append(s.asked, b.Step), append(s.builds, b)
	s.mu.Unlock()
	if s.build == nil {
		return solve.Built{Digest: someDigest, Ref: b.Staging + "@" + someDigest}, nil
	}
	return s.build(ctx, b, log)
}

func (s *script) ReadFile(_ context.Context, name string, _ int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if content, ok := s.files[name]; ok {
		return []byte(content), nil
	}
	return nil, &solve.StepError{ExitCode: -1, Message: name + " is not there"}
}

func (s *script) WriteFile(_ context.Context, name string, content []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string]string{}
	}
	s.files[name] = string(content)
	return nil
}

func (s *script) Close(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed++
	return nil
}

func (s *script) steps() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// untilDone is a container that runs until it is stopped.
func untilDone(ctx context.Context, _ solve.Container, _ solve.LogFunc) (int, error) {
	<-ctx.Done()
	return -1, context.Cause(ctx)
}

// detached returns an attempt at r whose log and reports stay in memory, so that it can be executed on
// a test's own clock.
func detached(t *testing.T, r run.Run, s *script) *attempt {
	t.Helper()
	w := &Worker{Solver: s, Registry: "reg.test:5000", Log: slog.New(slog.DiscardHandler)}
	l := &logs{run: r.ID, attempt: r.Attempt, max: DefaultMaxLog, whole: secret.NewRedactor(nil), steps: map[string]*stepLog{},
		index: map[string]int{"": -1}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	l.room = sync.NewCond(&l.mu)
	a := &attempt{w: w, run: r, logs: l, session: s, images: newImages(w, r), reports: &reporter{ended: true}}
	task, err := a.plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.task = task
	a.reports.begin(a.steps())
	return a
}

// record returns what the attempt has reported of a step.
func (a *attempt) record(id string) run.Step {
	a.reports.mu.Lock()
	defer a.reports.mu.Unlock()
	for _, s := range a.reports.all.Steps {
		if s.ID == id {
			return s
		}
	}
	return run.Step{}
}

// text returns what a detached attempt has logged of a step.
func (a *attempt) text(step string) string {
	a.logs.mu.Lock()
	defer a.logs.mu.Unlock()
	var b []byte
	if s := a.logs.steps[step]; s != nil {
		for _, e := range s.entries {
			b = append(b, e.Data...)
		}
	}
	return string(b)
}

func output(text string) event.LogEntry {
	return event.LogEntry{Stream: event.StreamStdout, Data: []byte(text)}
}
