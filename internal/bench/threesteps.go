package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	stepsMust, stepsAim   = 0.95, 0.85 // beside buildctl
	dockerMust, dockerAim = 0.45, 0.35
)

// threeSteps measures a run of three steps, one of whose layers has changed: build, a test in the image,
// push. Beside it the same is scripted with buildctl on the same stock daemon, which builds the stage that
// tests and then pushes the image, and with Debian's docker, which builds, runs and pushes. The last two
// push to docker-registry, the second also to kiln's.
func threeSteps(ctx context.Context, l *lab) ([]result, error) {
	address, reg, k, err := l.startStock(ctx)
	if err != nil {
		return nil, err
	}
	kiln, err := l.stepsSide(ctx, "kiln run", k.store)
	if err != nil {
		return nil, err
	}
	kiln.command = l.runCommand(k, kiln)
	stock, err := l.stepsSide(ctx, "buildctl to docker-registry", reg)
	if err != nil {
		return nil, err
	}
	stock.command = l.buildctlScript(address, stock)
	ours, err := l.stepsSide(ctx, "buildctl to kiln's registry", k.store)
	if err != nil {
		return nil, err
	}
	ours.command = l.buildctlScript(address, ours)
	docker, err := l.dockerSide(ctx, reg)
	if err != nil {
		return nil, err
	}
	if err := l.compete(ctx, true, kiln, stock, ours, docker); err != nil {
		return nil, err
	}
	return []result{
		l.compare(kiln, stock, stepsMust, stepsAim),
		l.compare(kiln, ours, stepsMust, stepsAim),
		l.compare(kiln, docker, dockerMust, dockerAim),
	}, nil
}

// stepsTask is the task of kiln's side.
const stepsTask = `version: v1.1.0
steps:
- build: -t $Registry/` + repository + `:$ID --target app .
- cmd: $Registry/` + repository + `:$ID /bin/busybox test -f /app.txt
- push: [$Registry/` + repository + `:$ID]
`

// stepsSide makes a context that can be tested by a stage of its own.
func (l *lab) stepsSide(ctx context.Context, name string, s store) (*side, error) {
	sd, err := l.newSide(ctx, name, s)
	if err != nil {
		return nil, err
	}
	dockerfile := filepath.Join(sd.context, "Dockerfile")
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		return nil, err
	}
	staged := strings.Replace(string(text), "\nRUN", " AS app\nRUN", 1) + "FROM app AS test\nRUN /bin/busybox test -f /app.txt\n"
	if err := os.WriteFile(dockerfile, []byte(staged), 0o644); err != nil {
		return nil, err
	}
	return sd, os.WriteFile(filepath.Join(sd.context, "acr-task.yaml"), []byte(stepsTask), 0o644)
}

// runCommand runs the task of a side's context.
func (l *lab) runCommand(k *kilnServer, s *side) func(context.Context) (*exec.Cmd, func(string) string) {
	return func(ctx context.Context) (*exec.Cmd, func(string) string) {
		return exec.CommandContext(ctx, l.kiln, "run", "--data", k.data, s.context), func(stdout string) string {
			image, _, _ := strings.Cut(strings.TrimSpace(stdout), "@")
			return image
		}
	}
}

// buildctlScript builds the stage that tests, and then builds and pushes the image.
func (l *lab) buildctlScript(address string, s *side) func(context.Context) (*exec.Cmd, func(string) string) {
	return func(ctx context.Context) (*exec.Cmd, func(string) string) {
		image := s.store.host + "/" + repository + ":" + unique()
		build := fmt.Sprintf("%q --addr %q build --progress plain --frontend dockerfile.v0 --local context=%q --local dockerfile=%q",
			l.buildctl, address, s.context, s.context)
		cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", build+" --opt target=test\n"+
			build+" --opt target=app --output type=image,name="+image+",push=true\n")
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+s.store.dockerConfig)
		return cmd, func(string) string { return image }
	}
}

// dockerSide builds, runs and pushes with Debian's docker, on a daemon of its own.
func (l *lab) dockerSide(ctx context.Context, reg store) (*side, error) {
	host, err := l.startDockerd(ctx)
	if err != nil {
		return nil, err
	}
	s, err := l.stepsSide(ctx, "docker build, run, push", reg)
	if err != nil {
		return nil, err
	}
	s.command = func(ctx context.Context) (*exec.Cmd, func(string) string) {
		image := reg.host + "/" + repository + ":" + unique()
		cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", fmt.Sprintf("docker build -q --network none --target app -t %[1]s %[2]q\n"+
			"docker run --rm --network none %[1]s /bin/busybox test -f /app.txt\ndocker push -q %[1]s\n", image, s.context))
		cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "DOCKER_HOST="+host, "DOCKER_CONFIG="+reg.dockerConfig, "DOCKER_BUILDKIT=1")
		return cmd, func(string) string { return image }
	}
	return s, nil
}

// startDockerd starts Debian's docker without a network for containers and returns its address.
func (l *lab) startDockerd(ctx context.Context) (string, error) {
	dir, err := l.mkdir("dockerd")
	if err != nil {
		return "", err
	}
	host, config := "unix://"+filepath.Join(dir, "sock"), filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}"), 0o644); err != nil {
		return "", err
	}
	p, err := l.start("dockerd", exec.CommandContext(context.WithoutCancel(ctx), "/usr/sbin/dockerd", "--host", host,
		"--data-root", filepath.Join(dir, "root"), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"--bridge", "none", "--iptables=false", "--ip-forward=false", "--config-file", config))
	if err != nil {
		return "", fmt.Errorf("%w; install it with: apt-get install docker.io", err)
	}
	return host, p.await(ctx, func(ctx context.Context) error {
		return exec.CommandContext(ctx, "/usr/bin/docker", "--host", host, "version").Run()
	})
}
