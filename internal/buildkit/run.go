package buildkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"kiln/internal/event"
	"kiln/internal/solve"
)

// Run executes c in a container that shares the session's workspace.
func (s *runSession) Run(ctx context.Context, c solve.Container, log solve.LogFunc) (int, error) {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return -1, err
	}
	defer end()
	if c.Privileged && !s.client.cfg.Privileged {
		return -1, stepError("privileged containers are not allowed on this build daemon")
	}
	g, err := s.gateway.get(ctx, s.openGateway)
	if err != nil {
		return -1, err
	}
	img, shared, err := g.prepare(ctx, c)
	if err != nil {
		return -1, causeOf(ctx, err)
	}
	start, err := startRequest(c, img.config)
	if err != nil {
		return -1, err
	}
	docker, endDocker, err := g.docker(ctx, c, start.Env)
	if err != nil {
		return -1, err
	}
	defer endDocker()
	if start.Env, err = g.limited(ctx, c, img, start.Env, log); err != nil {
		return -1, err
	}
	dirs, err := shared.of(ctx, g, c)
	if err != nil {
		return -1, err
	}
	extra, err := g.extra(ctx, c, img)
	if err != nil {
		return -1, err
	}
	volumes, forget := g.volumes.mounts(c.Volumes)
	defer forget()
	root := gwclient.Mount{Dest: "/", MountType: pb.MountType_BIND, Ref: img.rootfs}
	ctr, err := g.newContainer(ctx, c, slices.Concat([]gwclient.Mount{root}, dirs, docker, extra, volumes))
	if err != nil {
		return -1, err
	}
	defer g.release(ctx, ctr)
	if c.Stdin != nil {
		start.Stdin = io.NopCloser(bytes.NewReader(c.Stdin))
	}
	stderr := &output{stream: event.StreamStderr, log: log}
	start.Stdout, start.Stderr = &output{stream: event.StreamStdout, log: log}, stderr
	code, err := g.execute(ctx, ctr, start, stderr, course{started: c.Started, signal: stopSignal(c, img), grace: s.grace(c)})
	if err == nil && code != 0 && g.foreign(ctx, c.Options.Platform) && stderr.wrongFormat() {
		return -1, stepError("%s", notExecutable(c.Options.Platform))
	}
	return code, err
}

// prepare brings to the daemon what c needs.
func (g *gateway) prepare(ctx context.Context, c solve.Container) (img *image, shared *workspace, err error) {
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() (err error) {
		img, err = g.image(ctx, c.Image, c.Options.Platform, c.Pull)
		return err
	})
	all.Go(func() (err error) {
		shared, err = g.workspace.get(ctx, g.createWorkspace)
		return err
	})
	if c.Docker != nil {
		all.Go(func() error {
			_, err := g.program.get(ctx, g.makeProgram)
			return err
		})
	}
	return img, shared, all.Wait()
}

// newContainer makes the container of c with what is mounted in it.
func (g *gateway) newContainer(ctx context.Context, c solve.Container, mounts []gwclient.Mount) (gwclient.Container, error) {
	place, err := g.session.place(ctx, c)
	if err != nil {
		return nil, err
	}
	if c.Options.Hostname != "" {
		place.hosts = maps.Clone(place.hosts)
		if place.hosts == nil {
			place.hosts = map[string]string{}
		}
		if place.hosts[c.Options.Hostname] == "" {
			place.hosts[c.Options.Hostname] = "127.0.0.1"
		}
	}
	hosts, err := extraHosts(place.hosts)
	if err != nil {
		return nil, err
	}
	ctx, cancel := g.while(ctx)
	defer cancel()
	of, err := g.platform(ctx, c.Options.Platform)
	if err != nil {
		return nil, err
	}
	ctr, err := g.NewContainer(ctx, gwclient.NewContainerRequest{
		Platform:   &pb.Platform{OS: of.OS, Architecture: of.Architecture, Variant: of.Variant},
		Mounts:     mounts,
		Hostname:   place.hostname,
		NetMode:    place.mode,
		ExtraHosts: hosts,
	})
	if err != nil {
		failure, _ := g.failure(ctx, err)
		return nil, fmt.Errorf("container: %w", failure)
	}
	return ctr, nil
}

// execute starts the process in ctr and returns its exit code once it is gone, also when ctx ends.
func (g *gateway) execute(ctx context.Context, ctr gwclient.Container, start gwclient.StartRequest, stderr *output, how course) (int, error) {
	// The daemon lets a process run on when the context that started it ends.
	life, kill := g.while(context.WithoutCancel(ctx))
	defer kill()
	started := make(chan gwclient.ContainerProcess, 1)
	exited := make(chan error, 1)
	go func() {
		p, err := ctr.Start(life, start)
		if err == nil {
			started <- p
			if how.started != nil {
				how.started()
			}
			err = p.Wait()
		}
		exited <- err
	}()
	select {
	case err := <-exited:
		return g.exitCode(ctx, err, stderr)
	case <-ctx.Done():
	}
	grace := time.NewTimer(how.grace)
	defer grace.Stop()
	select {
	case p := <-started:
		_ = p.Signal(life, how.signal) // what does not get it is killed below
	default: // not started yet: there is nothing to end gracefully
		grace.Reset(0)
	}
	select {
	case <-exited:
	case <-grace.C:
		g.release(ctx, ctr)
		kill()
		<-exited
	}
	if err := g.notStarted(stderr); err != nil { // whoever stopped it has not ended anything
		return -1, err
	}
	return -1, context.Cause(ctx)
}

// notStarted returns why there was no process, nil if there was one. It must be called after that has ended.
func (g *gateway) notStarted(stderr *output) error {
	reason := stderr.startFailure()
	if reason == "" {
		return nil
	}
	return &solve.StepError{ExitCode: notFoundCode, Message: g.session.redact.String(reason)}
}

// exitCode interprets how a process ended.
func (g *gateway) exitCode(ctx context.Context, err error, stderr *output) (int, error) {
	if err == nil {
		return 0, nil
	}
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) {
		if err := g.notStarted(stderr); err != nil {
			return -1, err
		}
		if exit.ExitCode == killedCode && strings.Contains(exit.Error(), syscall.ENOMEM.Error()) {
			return -1, &solve.StepError{ExitCode: int(exit.ExitCode), Message: "killed: out of memory"}
		}
		return int(exit.ExitCode), nil
	}
	if failure, engine := g.failure(ctx, err); engine {
		return -1, failure
	}
	return -1, stepError("%s", clip(tidy(g.session.redact.String(oneLine(err.Error()))), maxMessage))
}

// startRequest combines c with its image's configuration by the rules of docker run.
func startRequest(c solve.Container, image ocispecs.ImageConfig) (gwclient.StartRequest, error) {
	entrypoint, args := image.Entrypoint, image.Cmd
	if c.EntryPoint != nil {
		entrypoint, args = c.EntryPoint, nil
	}
	if len(c.Args) > 0 {
		args = c.Args
	}
	start := gwclient.StartRequest{
		Args: slices.Concat(entrypoint, args),
		Env:  mergeEnv(image.Env, c.Env),
		User: image.User,
		Cwd:  image.WorkingDir,
	}
	if len(start.Args) == 0 || start.Args[0] == "" {
		return start, stepError("image %s has no command of its own and the step gives none", c.Image)
	}
	if c.User != "" {
		start.User = c.User
	}
	if c.Dir != "" {
		start.Cwd = c.Dir
	}
	start.Cwd = path.Join("/", start.Cwd)
	if c.Privileged {
		start.SecurityMode = pb.SecurityMode_INSECURE
	}
	return start, nil
}

// mergeEnv returns base with over's variables set, each name once.
func mergeEnv(base, over []string) []string {
	out := make([]string, 0, len(base)+len(over))
	at := map[string]int{}
	for _, kv := range slices.Concat(base, over) {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			out[i] = kv
			continue
		}
		at[k] = len(out)
		out = append(out, kv)
	}
	return out
}

func extraHosts(hosts map[string]string) ([]*pb.HostIP, error) {
	out := make([]*pb.HostIP, 0, len(hosts))
	for h, ip := range hosts {
		if net.ParseIP(ip) == nil {
			return nil, stepError("host %q: %q is not an IP address", h, ip)
		}
		out = append(out, &pb.HostIP{Host: h, IP: ip})
	}
	slices.SortFunc(out, func(a, b *pb.HostIP) int { return strings.Compare(a.Host, b.Host) })
	return out, nil
}
