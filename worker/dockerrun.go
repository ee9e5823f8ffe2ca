package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"kiln/internal/event"
	"kiln/internal/solve"
	"kiln/taskspec"
)

// maxDockerRuns is how many containers the scripts of a run have at once besides those of its steps. Who wants
// another waits.
const maxDockerRuns = 4

// Exit codes of docker run itself.
const (
	runRefused     = 125 // it has not started a container
	runUnstartable = 126 // the container's program cannot be executed
)

// dockerSlots number the containers of a run's scripts, so that each has a name of its own on its network. The
// zero value has them all.
type dockerSlots struct {
	once sync.Once
	free chan int
}

func (d *dockerSlots) take(ctx context.Context) (slot int, done func(), err error) {
	d.once.Do(func() {
		d.free = make(chan int, maxDockerRuns)
		for i := range maxDockerRuns {
			d.free <- i + 1
		}
	})
	select {
	case slot = <-d.free:
		return slot, func() { d.free <- slot }, nil
	case <-ctx.Done():
		return 0, nil, context.Cause(ctx)
	}
}

// An exited is how the program of docker run has ended, other than well.
type exited struct {
	code int
	err  error // nil if the program has ended by itself
}

func (e *exited) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

// run executes a container in the run's session until its program has ended.
func (c *scripted) run(ctx context.Context, r *taskspec.DockerRun) error {
	container, err := c.container(ctx, r)
	if err != nil {
		return &exited{runRefused, err}
	}
	if r.Input {
		if container.Stdin, err = c.Stdin(); err != nil {
			return &exited{runRefused, err}
		}
	}
	slot, done, err := c.a.docking.take(ctx)
	if err != nil {
		return err
	}
	defer done()
	container.Step = fmt.Sprintf("%s-docker-%d", c.step.ID, slot)
	code, err := c.a.session.Run(ctx, container, c.print)
	var failed *solve.StepError
	switch {
	case errors.As(err, &failed) && failed.ExitCode >= runUnstartable:
		return &exited{failed.ExitCode, err}
	case err != nil:
		return &exited{runRefused, err}
	case code != 0:
		return &exited{code: code}
	}
	return nil
}

// print hands on what a container says.
func (c *scripted) print(entries ...event.LogEntry) {
	for _, e := range entries {
		to := c.Stderr
		if e.Stream == event.StreamStdout {
			to = c.Stdout
		}
		_, _ = to.Write(e.Data) // if nobody reads it any more the command's context ends
	}
}

// container makes the container of docker run. It has the limits of the step, and never more privileges.
func (c *scripted) container(ctx context.Context, r *taskspec.DockerRun) (out solve.Container, err error) {
	s := r.Step
	if s.Network == "" {
		s.Network = c.step.Network
	}
	known := slices.ContainsFunc(c.a.task.Networks, func(n taskspec.Network) bool { return n.Name == s.Network })
	if !known && !slices.Contains([]string{"", netNone, netBridge, netDefault}, s.Network) {
		return out, fmt.Errorf("--network %s: want one of the task's networks, none or bridge; without the option it is that of the step", clip(s.Network, 100))
	}
	for _, f := range slices.Concat(unfitOptions(s), unfitRun(s, privileges{})) {
		if f.found {
			return out, errors.New(f.property + ": " + f.why)
		}
	}
	image, err := c.a.imageOf(s)
	if err != nil {
		return out, err
	}
	s.Mounts = c.step.Mounts
	env, err := c.a.environment(ctx, s, c.Dir, c.Env)
	if err != nil {
		return out, err
	}
	s.Mounts = nil
	out = solve.Container{Image: image, Args: s.Cmd.Args, EntryPoint: s.Cmd.EntryPoint, Env: env, Dir: s.WorkingDirectory, User: s.User, Binds: []solve.Bind{}}
	c.a.connect(s, &out)
	c.a.equip(&out, s)
	cpus, _ := parseCPUs(c.step.CPUs)
	memory, _ := parseMemory(c.step.Memory)
	out.CPUs, out.Memory = lower(out.CPUs, cpus), lower(out.Memory, memory)
	return out, c.a.mount(&out, s.Cmd.Options.Mounts, c.Dir, c.step.Mounts)
}
