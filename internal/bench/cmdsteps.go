package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"

	"kiln/internal/apiclient"
	"kiln/internal/run"
)

const (
	cmdSteps      = 10 // of a run
	cmdOverhead   = 10 // milliseconds that a step may take longer than a container
	emptyWorkload = "/bin/busybox true"
)

// cmdStep measures what a cmd step that does nothing takes longer than a container of the same image that
// BuildKit's own client starts, waits for and removes. Both are on the same stock daemon, one after the
// other in one session, and the runs of both take turns. A step is measured from its start to that of the
// step that waits for it, as the run's record tells: what kiln does between two steps is part of it.
func cmdStep(ctx context.Context, l *lab) ([]result, error) {
	address, reg, k, err := l.startStock(ctx)
	if err != nil {
		return nil, err
	}
	base, err := l.pushBase(ctx, reg)
	if err != nil {
		return nil, err
	}
	var steps, containers []time.Duration
	for round := range warmUp + max(2, l.n/2) {
		ours, err := stepTimes(ctx, k.client(), base)
		if err != nil {
			return nil, err
		}
		theirs, err := containerTimes(ctx, address, base)
		if err != nil {
			return nil, fmt.Errorf("raw containers: %w", err)
		}
		if round >= warmUp {
			steps, containers = append(steps, ours...), append(containers, theirs...)
		}
	}
	a, b := summarize(steps), summarize(containers)
	return []result{{What: "a cmd step beyond a container of BuildKit's", Unit: "ms", Value: max(a.P50-b.P50, 0.1), Must: cmdOverhead,
		Kiln: &a, Peer: &b, PeerName: "NewContainer, Start, Wait, Release"}}, nil
}

// stepTimes runs steps one after the other and returns how long each but the last took.
func stepTimes(ctx context.Context, c *apiclient.Client, image string) ([]time.Duration, error) {
	var task strings.Builder
	task.WriteString("version: v1.1.0\nsteps:\n")
	for range cmdSteps {
		fmt.Fprintf(&task, "- cmd: %s %s\n", image, emptyWorkload)
	}
	r, err := c.Submit(ctx, apiclient.Submit{Spec: run.Spec{TaskFile: &run.TaskFileSpec{Name: "acr-task.yaml", Content: []byte(task.String())}}})
	if err != nil {
		return nil, err
	}
	if err := succeeded(ctx, c, r.ID); err != nil {
		return nil, err
	}
	if r, err = c.Run(ctx, r.ID); err != nil {
		return nil, err
	}
	if len(r.Steps) != cmdSteps {
		return nil, fmt.Errorf("run %s has %d steps, want %d", r.ID, len(r.Steps), cmdSteps)
	}
	var times []time.Duration
	for i := range cmdSteps - 1 {
		if i > 0 { // the first step makes the session
			times = append(times, r.Steps[i+1].Started.Sub(r.Steps[i].Started))
		}
	}
	return times, nil
}

// containerTimes does the same with BuildKit's client.
func containerTimes(ctx context.Context, address, image string) ([]time.Duration, error) {
	c, err := client.New(ctx, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var times []time.Duration
	_, err = c.Build(ctx, client.SolveOpt{Internal: true}, "", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		def, err := llb.Image(image).Marshal(ctx, llb.LinuxAmd64)
		if err != nil {
			return nil, err
		}
		img, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return nil, err
		}
		for i := range cmdSteps {
			began := time.Now()
			if err := startContainer(ctx, g, img.Ref); err != nil {
				return nil, err
			}
			if i > 0 {
				times = append(times, time.Since(began))
			}
		}
		return gateway.NewResult(), nil
	}, nil)
	return times, err
}

func startContainer(ctx context.Context, g gateway.Client, root gateway.Reference) error {
	ctr, err := g.NewContainer(ctx, gateway.NewContainerRequest{NetMode: pb.NetMode_UNSET,
		Mounts: []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: root}}})
	if err != nil {
		return err
	}
	p, err := ctr.Start(ctx, gateway.StartRequest{Args: strings.Fields(emptyWorkload), Cwd: "/"})
	if err == nil {
		err = p.Wait()
	}
	if rerr := ctr.Release(ctx); err == nil {
		err = rerr
	}
	return err
}

// succeeded follows a run until it has succeeded.
func succeeded(ctx context.Context, c *apiclient.Client, id string) error {
	var last run.Run
	err := c.Follow(ctx, id, "", true, func(e apiclient.StreamEvent) error {
		if e.Run != nil {
			last = *e.Run
		}
		return nil
	})
	if err == nil && last.State != run.Succeeded {
		err = fmt.Errorf("run %s ended %s: %s", id, last.State, last.Reason)
	}
	return err
}
