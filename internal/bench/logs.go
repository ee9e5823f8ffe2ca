package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

const (
	logLines    = 200
	logInterval = 50 * time.Millisecond
	logRounds   = 2
	logExtra    = 15 // milliseconds that kiln's p99 may be above the raw one
)

// logs measures the lag of lines: a program in a container prints the time, every 50 ms, and a
// follower compares it with its own clock when the line arrives. Kiln's follower is its client, which
// reads the server's event stream; it follows a RUN of a build and the container of a cmd step. The
// raw follower reads the status channel of BuildKit's client for a RUN of its own solve; BuildKit has
// no such channel for the containers that cmd steps are. All use the same stock daemon at the same
// time: what else the machine does in a moment decides the worst lags, and must meet all alike.
func logs(ctx context.Context, l *lab) ([]result, error) {
	address, err := l.startBuildkitd(ctx)
	if err != nil {
		return nil, err
	}
	reg, err := l.startRegistry(ctx)
	if err != nil {
		return nil, err
	}
	k, err := l.startKiln(ctx, address)
	if err != nil {
		return nil, err
	}
	raw, err := l.rawFollower(ctx, address, reg)
	if err != nil {
		return nil, err
	}
	build, cmd, err := l.kilnFollowers(ctx, k)
	if err != nil {
		return nil, err
	}
	lags := make([][]time.Duration, 3)
	for range logRounds {
		g, gctx := errgroup.WithContext(ctx)
		for i, follow := range []follower{raw, build, cmd} {
			g.Go(func() error {
				lag, err := follow(gctx)
				lags[i] = append(lags[i], lag...)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
	}
	peer := summarize(lags[0])
	var out []result
	for i, what := range []string{"p99 lag of a RUN", "p99 lag of a cmd step"} {
		s := summarize(lags[i+1])
		out = append(out, result{What: what, Unit: "ms", Value: s.P99, Must: peer.P99 + logExtra, Kiln: &s, Peer: &peer,
			PeerName: "raw RUN", Note: fmt.Sprintf("%d lines; p99 %.1f ms, raw solve's RUN %.1f ms; max %.1f, raw %.1f ms", s.N, s.P99, peer.P99, s.Max, peer.Max)})
	}
	return out, nil
}

// A follower has the lines printed once and returns the lag of each.
type follower func(context.Context) ([]time.Duration, error)

var stampLines = fmt.Sprintf("/bin/stamp %d %s", logLines, logInterval)

// stampContext makes a context with a RUN that prints; the build argument NONCE keeps it out of the
// cache.
func (l *lab) stampContext(ctx context.Context, s store) (dir, base string, err error) {
	if base, err = l.pushBase(ctx, s); err != nil {
		return "", "", err
	}
	if dir, err = l.mkdir("context-" + unique()); err != nil {
		return "", "", err
	}
	dockerfile := fmt.Sprintf("FROM %s\nARG NONCE\nRUN : $NONCE; %s\n", base, stampLines)
	return dir, base, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644)
}

// rawFollower follows through BuildKit's own client.
func (l *lab) rawFollower(ctx context.Context, address string, s store) (follower, error) {
	dir, _, err := l.stampContext(ctx, s)
	if err != nil {
		return nil, err
	}
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) ([]time.Duration, error) {
		c, err := client.New(ctx, address)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		var st stamps
		status := make(chan *client.SolveStatus)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			_, err := c.Solve(ctx, nil, client.SolveOpt{Frontend: "dockerfile.v0",
				FrontendAttrs: map[string]string{"build-arg:NONCE": unique()},
				LocalMounts:   map[string]fsutil.FS{"context": tree, "dockerfile": tree}}, status)
			return err
		})
		g.Go(func() error {
			for s := range status {
				for _, line := range s.Logs {
					st.add(line.Data)
				}
			}
			return nil
		})
		if err := g.Wait(); err != nil {
			return nil, fmt.Errorf("raw solve: %w", err)
		}
		return st.result("raw solve")
	}, nil
}

// kilnFollowers follow a RUN of a build and a cmd step through kiln's client.
func (l *lab) kilnFollowers(ctx context.Context, k *kilnServer) (build, cmd follower, err error) {
	dir, base, err := l.stampContext(ctx, k.store)
	if err != nil {
		return nil, nil, err
	}
	warm := &side{name: "kiln", store: k.store, context: dir, digests: map[string]bool{}}
	warm.command = l.kilnCommand(k, warm)
	spec, err := l.specOf(ctx, k, warm) // uploads the context
	if err != nil {
		return nil, nil, err
	}
	task := fmt.Sprintf("version: v1.1.0\nsteps:\n  - cmd: %s %s\n", base, stampLines)
	c := k.client()
	build = func(ctx context.Context) ([]time.Duration, error) {
		s, b := spec, *spec.Build
		b.BuildArgs, b.NoPush = []string{"NONCE=" + unique()}, true
		s.Build = &b
		return followStamps(ctx, c, s)
	}
	cmd = func(ctx context.Context) ([]time.Duration, error) {
		return followStamps(ctx, c, run.Spec{TaskFile: &run.TaskFileSpec{Name: "acr-task.yaml", Content: []byte(task)}})
	}
	return build, cmd, nil
}

func followStamps(ctx context.Context, c *apiclient.Client, spec run.Spec) ([]time.Duration, error) {
	r, err := c.Submit(ctx, apiclient.Submit{Spec: spec})
	if err != nil {
		return nil, err
	}
	var st stamps
	err = c.Follow(ctx, r.ID, "", true, func(e apiclient.StreamEvent) error {
		if e.Run != nil {
			r = *e.Run
			return nil
		}
		for _, entry := range e.Log.Entries {
			st.add(entry.Data)
		}
		return nil
	})
	if err == nil && r.State != run.Succeeded {
		err = fmt.Errorf("run %s ended %s: %s\n%s", r.ID, r.State, r.Reason, st.other.String())
	}
	if err != nil {
		return nil, err
	}
	return st.result("run " + r.ID)
}

// stamps reads what the stamp program prints, in pieces.
type stamps struct {
	rest  []byte // of a line that has not ended
	lags  []time.Duration
	other bytes.Buffer // lines of others
	err   error
}

// add takes in output that has just arrived.
func (s *stamps) add(data []byte) {
	now := time.Now()
	s.rest = append(s.rest, data...)
	for {
		line, rest, whole := bytes.Cut(s.rest, []byte("\n"))
		if !whole {
			return
		}
		s.rest = rest
		text, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "stamp ")
		if !ok {
			s.other.Write(append(line, '\n'))
			continue
		}
		printed, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			s.err = errors.Join(s.err, fmt.Errorf("line %q: %w", line, err))
			continue
		}
		s.lags = append(s.lags, now.Sub(time.Unix(0, printed)))
	}
}

func (s *stamps) result(of string) ([]time.Duration, error) {
	if s.err == nil && len(s.lags) != logLines {
		s.err = fmt.Errorf("%d lines of %d arrived", len(s.lags), logLines)
	}
	if s.err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", of, s.err, s.other.String())
	}
	return s.lags, nil
}
