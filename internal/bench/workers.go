package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

const (
	fleet          = 3  // workers
	fleetSlots     = 2  // runs at once of each
	fleetRuns      = 18 // builds that wait for them
	fleetSleep     = 3  // seconds that each sleeps
	fleetMust      = 1 / 2.7
	slotRuns       = 1000 // that wait while slots become free
	slotMeasured   = 20   // of them, for each round that is asked for
	slotMust       = 15   // milliseconds, p50
	slotTail       = 60   // p99
	slotFsyncs     = 3
	lostMust       = 15 + 1 // seconds: the default of --lease, and one more
	lostRounds     = 3
	lostSleep      = 60 // seconds of the run that a killed worker has in hand
	awaitFleetRuns = 3 * time.Minute
)

// startDivided starts a server whose workers are processes of their own, of so many.
func (l *lab) startDivided(ctx context.Context, workers, parallel int) (*kilnServer, []*process, error) {
	nats, err := freeAddress(ctx)
	if err != nil {
		return nil, nil, err
	}
	k, err := l.startKiln(ctx, "", "--role", "api,triggers,scheduler,registry", "--nats-listen", nats)
	if err != nil {
		return nil, nil, err
	}
	var list []*process
	for i := range workers {
		p, err := l.startWorker(ctx, k, nats, i, parallel)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, p)
	}
	return k, list, nil
}

func workerNumber(i int) string { return fmt.Sprintf("w%d", i) }

// startWorker starts a worker with a build daemon of its own.
func (l *lab) startWorker(ctx context.Context, k *kilnServer, nats string, i, parallel int) (*process, error) {
	dir, err := l.mkdir(workerNumber(i))
	if err != nil {
		return nil, err
	}
	p, err := l.start("kiln worker", exec.CommandContext(context.WithoutCancel(ctx), l.kiln, "worker", "--data", dir, "--name", workerNumber(i),
		"--nats", "nats://"+nats, "--nats-token-file", filepath.Join(k.data, "nats.token"), "--parallel", fmt.Sprint(parallel)))
	if err != nil {
		return nil, err
	}
	c := k.client()
	return p, p.await(ctx, func(ctx context.Context) error {
		known, err := c.Workers(ctx)
		for _, w := range known {
			if w.Name == workerNumber(i) {
				return nil
			}
		}
		return errors.Join(err, errors.New("not registered"))
	})
}

// fleetThroughput compares the time that workers take for builds that sleep with that of one of them. The builds all
// wait before a worker gets any.
func fleetThroughput(ctx context.Context, l *lab) ([]result, error) {
	k, _, err := l.startDivided(ctx, fleet, fleetSlots)
	if err != nil {
		return nil, err
	}
	base, err := l.pushBase(ctx, k.store)
	if err != nil {
		return nil, err
	}
	dir, err := l.mkdir("sleeping")
	if err != nil {
		return nil, err
	}
	file := fmt.Sprintf("FROM %s\nARG BENCH_ROUND\nRUN [\"/bin/busybox\", \"sleep\", \"%d\"]\n", base, fleetSleep)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o644); err != nil {
		return nil, err
	}
	var one, all []time.Duration
	for round := range 1 + min(l.n, 3) { // the first warms the daemons up
		for _, side := range []struct {
			workers int
			times   *[]time.Duration
		}{{1, &one}, {fleet, &all}} {
			took, err := l.sleepingBuilds(ctx, k, dir, side.workers)
			if err != nil {
				return nil, err
			}
			if round > 0 {
				*side.times = append(*side.times, took)
			}
		}
	}
	a, b := summarize(all), summarize(one)
	return []result{{What: fmt.Sprintf("%d builds that sleep, %d workers", fleetRuns, fleet), Unit: "x", Value: a.P50 / b.P50, Must: fleetMust,
		Kiln: &a, Peer: &b, PeerName: "one worker", Note: fmt.Sprintf("throughput %.2f x", b.P50/a.P50)}}, nil
}

// sleepingBuilds has so many of the workers execute builds, and returns how long that takes from when they may.
func (l *lab) sleepingBuilds(ctx context.Context, k *kilnServer, dir string, workers int) (time.Duration, error) {
	c := k.client()
	for i := range fleet {
		if _, err := c.DrainWorker(ctx, workerNumber(i), true); err != nil {
			return 0, err
		}
	}
	var ids []string
	for range fleetRuns {
		cmd := exec.CommandContext(ctx, l.kiln, "build", "--data", k.data, "--no-wait", "--build-arg", unusedArgument(), dir)
		var out, text bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &text
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("%s: %w\n%s", cmd, err, &text)
		}
		ids = append(ids, strings.TrimSpace(out.String()))
	}
	begun := time.Now()
	for i := range workers {
		if _, err := c.DrainWorker(ctx, workerNumber(i), false); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, awaitFleetRuns)
	defer cancel()
	for _, id := range ids {
		if err := succeeded(ctx, c, id); err != nil {
			return 0, err
		}
	}
	return time.Since(begun), nil
}

// slots measures from the end of a run, as its worker tells it, to the start of the first step of the run that takes its
// place, while many runs wait.
func slots(ctx context.Context, l *lab) ([]result, error) {
	k, _, err := l.startDivided(ctx, 1, 1)
	if err != nil {
		return nil, err
	}
	base, err := l.pushBase(ctx, k.store)
	if err != nil {
		return nil, err
	}
	c := k.client()
	if _, err := c.DrainWorker(ctx, workerNumber(0), true); err != nil {
		return nil, err
	}
	spec := run.Spec{TaskFile: &run.TaskFileSpec{Name: "acr-task.yaml", Content: []byte("version: v1.1.0\nsteps:\n- cmd: " + base + " " + emptyWorkload + "\n")}}
	var ids []string
	for range slotRuns {
		r, err := c.Submit(ctx, apiclient.Submit{Spec: spec, Key: unique()})
		if err != nil {
			return nil, err
		}
		ids = append(ids, r.ID)
	}
	if _, err := c.DrainWorker(ctx, workerNumber(0), false); err != nil {
		return nil, err
	}
	measured := min(slotMeasured*l.n, slotRuns/2)
	var gaps []time.Duration
	var last time.Time
	for i, id := range ids[:warmUp+measured] {
		if err := succeeded(ctx, c, id); err != nil {
			return nil, err
		}
		r, err := c.Run(ctx, id)
		if err != nil {
			return nil, err
		}
		if i >= warmUp {
			gaps = append(gaps, r.Steps[0].Started.Sub(last))
		}
		last = r.Finished
	}
	s := summarize(gaps)
	note := fmt.Sprintf("%d slots that became free, at least %d runs waiting", s.N, slotRuns-len(gaps)-warmUp)
	return []result{
		{What: "slot free to first step started, p50", Unit: "ms", Value: s.P50, Must: slotMust, Fsyncs: slotFsyncs, Kiln: &s, Note: note},
		{What: "slot free to first step started, p99", Unit: "ms", Value: s.P99, Must: slotTail, Fsyncs: slotFsyncs, Kiln: &s},
	}, nil
}

// lostWorker measures from the death of a worker until another one has its run.
func lostWorker(ctx context.Context, l *lab) ([]result, error) {
	nats, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	k, err := l.startKiln(ctx, "", "--role", "api,triggers,scheduler,registry", "--nats-listen", nats)
	if err != nil {
		return nil, err
	}
	base, err := l.pushBase(ctx, k.store)
	if err != nil {
		return nil, err
	}
	c := k.client()
	spec := run.Spec{TaskFile: &run.TaskFileSpec{Name: "acr-task.yaml",
		Content: fmt.Appendf(nil, "version: v1.1.0\nsteps:\n- cmd: %s /bin/busybox sleep %d\n", base, lostSleep)}}
	worker, err := l.startWorker(ctx, k, nats, 0, 1)
	if err != nil {
		return nil, err
	}
	var times []time.Duration
	for round := range lostRounds {
		r, err := c.Submit(ctx, apiclient.Submit{Spec: spec, Key: unique()})
		if err != nil {
			return nil, err
		}
		begun := func(attempt int) error {
			return k.await(ctx, func(ctx context.Context) (err error) {
				if r, err = c.Run(ctx, r.ID); err == nil && (len(r.Attempts) < attempt || len(r.Steps) == 0 || r.Steps[0].Started.IsZero()) {
					err = fmt.Errorf("run %s: attempt %d has not begun: %s", r.ID, attempt, r.State)
				}
				return err
			})
		}
		if err := begun(1); err != nil {
			return nil, err
		}
		next, err := l.startWorker(ctx, k, nats, round+1, 1)
		if err != nil {
			return nil, err
		}
		killed := time.Now()
		if err := syscall.Kill(worker.cmd.Process.Pid, syscall.SIGKILL); err != nil {
			return nil, err
		}
		if err := begun(2); err != nil {
			return nil, err
		}
		times = append(times, r.Attempts[1].Assigned.Sub(killed))
		if _, err := c.Cancel(ctx, r.ID); err != nil {
			return nil, err
		}
		worker = next
	}
	s := summarize(times)
	return []result{{What: "worker killed to its run taken over, longest", Unit: "s", Value: s.Max / 1000, Must: lostMust, Kiln: &s}}, nil
}
