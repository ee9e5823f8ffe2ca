package daemon

import (
	"context"
	"errors"
	"sync"
	"syscall"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"

	"kiln/internal/buildkit/limits"
)

var (
	errHostNetwork = errors.New("the host's network is not available to builds: start the daemon with host networking allowed")
	errInsecure    = errors.New("privileged containers are not available to builds: start the daemon with insecure containers allowed")
)

// guarded is the executor of every container of the daemon. It refuses what the control plane
// should have refused before, and it is the place where limits on a container are set.
type guarded struct {
	executor.Executor
	runc          string
	allowInsecure bool
}

// Run executes a container, as executor.Executor says.
func (g *guarded) Run(ctx context.Context, id string, rootfs executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	if process.Meta.SecurityMode == pb.SecurityMode_INSECURE && !g.allowInsecure {
		return nil, errInsecure
	}
	if process.Signal != nil {
		forwarded := make(chan syscall.Signal)
		sctx, end := context.WithCancel(ctx)
		var forwarding sync.WaitGroup
		in := process.Signal
		forwarding.Go(func() { g.forward(sctx, id, in, forwarded) })
		defer forwarding.Wait()
		defer end()
		process.Signal = forwarded
	}
	limit(&process.Meta)
	ctx, mounts = shape(ctx, &process.Meta, mounts)
	return g.Executor.Run(ctx, id, rootfs, mounts, process, started)
}

// limit bounds a container as its client has asked for, unless the build itself has.
func limit(meta *executor.Meta) {
	var want limits.Taken
	want, meta.Env = limits.Take(meta.Env)
	if want == (limits.Taken{}) || meta.LinuxResources != nil {
		return
	}
	meta.LinuxResources = &pb.LinuxResources{Memory: want.Memory}
	if want.Quota > 0 {
		meta.LinuxResources.CpuQuota, meta.LinuxResources.CpuPeriod = want.Quota, limits.Period
	}
}

// Exec executes a further process in a container, as executor.Executor says. It shares the container's
// limits.
func (g *guarded) Exec(ctx context.Context, id string, process executor.ProcessInfo) error {
	_, process.Meta.Env = limits.Take(process.Meta.Env)
	_, process.Meta.Env = limits.TakeOptions(process.Meta.Env)
	return g.Executor.Exec(ctx, id, process)
}

// refusedNetwork is a network.Provider that gives no network.
type refusedNetwork struct{}

func (refusedNetwork) New(context.Context, string, network.NamespaceOptions) (network.Namespace, error) {
	return nil, errHostNetwork
}

func (refusedNetwork) Close() error { return nil }
