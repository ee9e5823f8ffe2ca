package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

const (
	overheadMust   = 8 // milliseconds
	overheadFsyncs = 6 // of the data disk, on top
)

// overhead measures the time that a run takes beyond its solve: from the request until the solve reaches
// the daemon, and from the daemon's answer to the solve until the client reads that the run has succeeded.
// The first part is measured twice: from the moment the client has the answer that the request is accepted,
// which is when the run is stored, and from the moment it begins to send the request. A proxy before a stock
// daemon notes when the solve passes; both ends are read at the client, on a connection that is open, so the
// HTTP server and the loopback are included. Each run has a build argument of its own, which nothing uses,
// so that there is a solve.
func overhead(ctx context.Context, l *lab) (results []result, err error) {
	address, err := l.startBuildkitd(ctx)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(l.dir, "proxy.sock")
	p, err := startProxy(socket, address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	k, err := l.startKiln(ctx, "unix://"+socket)
	if err != nil {
		return nil, err
	}
	s, err := l.kilnSide(ctx, k)
	if err != nil {
		return nil, err
	}
	spec, err := l.specOf(ctx, k, s)
	if err != nil {
		return nil, err
	}
	var before, after, accepted, sent, answered []time.Duration
	client := k.client()
	for round := range warmUp + 2*l.n {
		p.take()
		spec.Build.BuildArgs = []string{unusedArgument()}
		t, err := timeRun(ctx, client, spec)
		if err != nil {
			return nil, err
		}
		solves := p.take()
		if len(solves) != 1 {
			return nil, fmt.Errorf("run %s made %d solves, 1 was expected", t.id, len(solves))
		}
		if round < warmUp {
			continue
		}
		after = append(after, t.visible.Sub(solves[0].ended))
		before = append(before, solves[0].begun.Sub(t.answered))
		answered = append(answered, t.answered.Sub(t.sent))
		last := len(after) - 1
		accepted = append(accepted, before[last]+after[last])
		sent = append(sent, answered[last]+accepted[last])
	}
	total, whole, b, a, q := summarize(accepted), summarize(sent), summarize(before), summarize(after), summarize(answered)
	return []result{
		{What: "request accepted to solve, solve answered to Succeeded", Unit: "ms", Value: total.P50, Must: overheadMust, Fsyncs: overheadFsyncs, Kiln: &total,
			Note: fmt.Sprintf("accepted to solve p50 %.1f p90 %.1f ms, solve answered to Succeeded read p50 %.1f p90 %.1f ms; cached build on a stock daemon", b.P50, b.P90, a.P50, a.P90)},
		{What: "the same from when the request is sent", Unit: "ms", Value: whole.P50, Kiln: &whole,
			Note: fmt.Sprintf("sent to accepted, which is stored and answered, p50 %.1f p90 %.1f ms", q.P50, q.P90)},
	}, nil
}

// specOf builds and pushes once with the command line and returns what it asked for, so that the same
// can be asked for again without it.
func (l *lab) specOf(ctx context.Context, k *kilnServer, s *side) (run.Spec, error) {
	if _, err := s.build(ctx); err != nil {
		return run.Spec{}, err
	}
	id := s.last[strings.LastIndexByte(s.last, ':')+1:] // the tag is the run's ID
	r, err := k.client().Run(ctx, id)
	return r.Spec, err
}

// timedRun is when a run was asked for, answered and seen to have succeeded.
type timedRun struct {
	id                      string
	sent, answered, visible time.Time
}

// timeRun executes a run and follows it to its end.
func timeRun(ctx context.Context, c *apiclient.Client, spec run.Spec) (timedRun, error) {
	t := timedRun{sent: time.Now()}
	r, err := c.Submit(ctx, apiclient.Submit{Spec: spec})
	if err != nil {
		return t, err
	}
	t.id, t.answered = r.ID, time.Now()
	err = c.Follow(ctx, r.ID, "", true, func(e apiclient.StreamEvent) error {
		if e.Run != nil && e.Run.State.Final() && t.visible.IsZero() {
			t.visible, r = time.Now(), *e.Run
		}
		return nil
	})
	if err == nil && r.State != run.Succeeded {
		err = fmt.Errorf("run %s ended %s: %s", r.ID, r.State, r.Reason)
	}
	return t, err
}
