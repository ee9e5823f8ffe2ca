package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	warmUp        = 2 // rounds that do not count
	commandWithin = time.Minute
	repository    = "bench/app"
)

// A side is one way to build and push an image: a command and a context of its own.
type side struct {
	name    string
	store   store  // where the image is pushed
	context string // directory
	// command returns a command that builds the context and pushes it under a tag never used before,
	// and a function that tells from its output which.
	command func(ctx context.Context) (*exec.Cmd, func(stdout string) string)
	// vary gives every build of kiln an argument that its Dockerfile does not use: kiln does not know
	// that build and asks BuildKit, which has everything in its cache.
	vary bool

	times   []time.Duration
	digests map[string]bool
	cpu     []time.Duration // of the commands

	last         string    // image built last
	begun, ended time.Time // of its command
}

// newSide makes a context on a base image of its own in s.
func (l *lab) newSide(ctx context.Context, name string, s store) (*side, error) {
	base, err := l.pushBase(ctx, s)
	if err != nil {
		return nil, err
	}
	sd := &side{name: name, store: s, digests: map[string]bool{}}
	if sd.context, err = l.mkdir("context-" + unique()); err != nil {
		return nil, err
	}
	dockerfile := fmt.Sprintf("FROM %s\nRUN echo %s > /built\nCOPY app.txt /app.txt\n", base, unique())
	if err := os.WriteFile(filepath.Join(sd.context, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		return nil, err
	}
	return sd, sd.change()
}

// change gives the copied file a content that no build has seen.
func (s *side) change() error {
	return os.WriteFile(filepath.Join(s.context, "app.txt"), []byte(unique()+"\n"), 0o644)
}

// kilnSide builds with kiln.
func (l *lab) kilnSide(ctx context.Context, k *kilnServer) (*side, error) {
	s, err := l.newSide(ctx, "kiln", k.store)
	if err != nil {
		return nil, err
	}
	s.command = l.kilnCommand(k, s)
	return s, nil
}

func (l *lab) kilnCommand(k *kilnServer, s *side) func(context.Context) (*exec.Cmd, func(string) string) {
	return func(ctx context.Context) (*exec.Cmd, func(string) string) {
		args := []string{"build", "--data", k.data, "-t", repository, s.context}
		if s.vary {
			args = append(args, "--build-arg", unusedArgument())
		}
		return exec.CommandContext(ctx, l.kiln, args...), func(stdout string) string { // registry/repository:tag@digest
			image, _, _ := strings.Cut(strings.TrimSpace(stdout), "@")
			return image
		}
	}
}

// unusedArgument is a build argument that no Dockerfile uses, with a value that it never had.
func unusedArgument() string { return "BENCH_ROUND=" + unique() }

// buildctlSide builds with BuildKit's own client.
func (l *lab) buildctlSide(ctx context.Context, name, address string, to store) (*side, error) {
	s, err := l.newSide(ctx, name, to)
	if err != nil {
		return nil, err
	}
	s.command = func(ctx context.Context) (*exec.Cmd, func(string) string) {
		image := to.host + "/" + repository + ":" + unique()
		cmd := exec.CommandContext(ctx, l.buildctl, "--addr", address, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
			"--local", "context="+s.context, "--local", "dockerfile="+s.context, "--output", "type=image,name="+image+",push=true")
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+to.dockerConfig)
		return cmd, func(string) string { return image }
	}
	return s, nil
}

// build builds once and returns how long the command took, from its start to its exit.
func (s *side) build(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, commandWithin)
	defer cancel()
	cmd, image := s.command(ctx)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	s.begun = time.Now()
	err := cmd.Run()
	s.ended = time.Now()
	if err != nil {
		return 0, fmt.Errorf("%s: %s: %w\n%s%s", s.name, cmd, err, stdout.String(), stderr.String())
	}
	s.last = image(stdout.String())
	digest, err := lookUp(ctx, s.store, s.last)
	if err != nil {
		return 0, fmt.Errorf("%s: %s: %w\n%s%s", s.name, cmd, err, stdout.String(), stderr.String())
	}
	s.digests[digest] = true
	s.cpu = append(s.cpu, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	return s.ended.Sub(s.begun), nil
}

// compete lets the sides take turns, another one first in each round. With changed, every build finds
// one file changed.
func (l *lab) compete(ctx context.Context, changed bool, sides ...*side) error {
	for round := range warmUp + l.n {
		c, err := conditionsAt(l.dir)
		if err != nil {
			return err
		}
		l.during = append(l.during, c)
		for i := range sides {
			s := sides[(round+i)%len(sides)]
			if changed {
				if err := s.change(); err != nil {
					return err
				}
			}
			took, err := s.build(ctx)
			if err != nil {
				return err
			}
			if round >= warmUp {
				s.times = append(s.times, took)
			}
		}
	}
	for _, s := range sides {
		if want := warmUp + l.n; changed && len(s.digests) != want {
			return fmt.Errorf("%s: %d builds of changed contexts made %d images", s.name, want, len(s.digests))
		}
		if !changed && len(s.digests) != 1 {
			return fmt.Errorf("%s: builds of an unchanged context made %d images", s.name, len(s.digests))
		}
	}
	return nil
}

// reused is what is to be known of figures of identical builds.
const reused = "identical builds are not solved again: kiln uses the image of the first"

// compare returns the ratio of kiln to a peer.
func (l *lab) compare(kiln, peer *side, must, aim float64) result {
	k, p := summarize(kiln.times), summarize(peer.times)
	note := fmt.Sprintf("processor time of the command p50: kiln %.0f ms, peer %.0f ms; %s",
		summarize(kiln.cpu).P50, summarize(peer.cpu).P50, spread(l.during))
	return result{Note: note, What: kiln.name + " / " + peer.name, Unit: "x", Value: k.P50 / p.P50, Must: must, Aim: aim, Kiln: &k, Peer: &p, PeerName: peer.name}
}

func cachedEmbedded(ctx context.Context, l *lab) ([]result, error) {
	return l.embedded(ctx, false, 0.6, 0.4)
}

func changedEmbedded(ctx context.Context, l *lab) ([]result, error) {
	return l.embedded(ctx, true, 0.8, 0.7)
}

// embedded compares kiln with its own daemon and registry to the stock programs.
func (l *lab) embedded(ctx context.Context, changed bool, must, aim float64) ([]result, error) {
	address, err := l.startBuildkitd(ctx)
	if err != nil {
		return nil, err
	}
	reg, err := l.startRegistry(ctx)
	if err != nil {
		return nil, err
	}
	k, err := l.startKiln(ctx, "")
	if err != nil {
		return nil, err
	}
	kiln, err := l.kilnSide(ctx, k)
	if err != nil {
		return nil, err
	}
	peer, err := l.buildctlSide(ctx, "buildctl to docker-registry", address, reg)
	if err != nil {
		return nil, err
	}
	if changed {
		if err := l.compete(ctx, true, kiln, peer); err != nil {
			return nil, err
		}
		return []result{l.compare(kiln, peer, must, aim)}, nil
	}
	return l.unchanged(ctx, k, kiln, must, aim, peer)
}

// unchanged compares kiln with its peers where nothing changes from one build to the next.
func (l *lab) unchanged(ctx context.Context, k *kilnServer, kiln *side, must, aim float64, peers ...*side) ([]result, error) {
	solved, err := l.kilnSide(ctx, k)
	if err != nil {
		return nil, err
	}
	solved.name, solved.vary = "kiln through BuildKit", true
	if err := l.compete(ctx, false, append([]*side{kiln, solved}, peers...)...); err != nil {
		return nil, err
	}
	var results []result
	for _, p := range peers {
		r := l.compare(kiln, p, must, aim)
		r.Note = reused + "; " + r.Note
		results = append(results, r)
	}
	r := l.compare(solved, peers[0], 0, 0) // for orientation
	return append(results, r), nil
}

func cachedStock(ctx context.Context, l *lab) ([]result, error) { return l.stock(ctx, false) }

func changedStock(ctx context.Context, l *lab) ([]result, error) { return l.stock(ctx, true) }

// stock compares kiln and buildctl on the same daemon; buildctl pushes to either registry.
func (l *lab) stock(ctx context.Context, changed bool) ([]result, error) {
	const must, aim = 1.0, 0.9
	address, reg, k, err := l.startStock(ctx)
	if err != nil {
		return nil, err
	}
	kiln, err := l.kilnSide(ctx, k)
	if err != nil {
		return nil, err
	}
	stock, err := l.buildctlSide(ctx, "buildctl to docker-registry", address, reg)
	if err != nil {
		return nil, err
	}
	ours, err := l.buildctlSide(ctx, "buildctl to kiln's registry", address, k.store)
	if err != nil {
		return nil, err
	}
	if !changed {
		return l.unchanged(ctx, k, kiln, must, aim, stock, ours)
	}
	if err := l.compete(ctx, true, kiln, stock, ours); err != nil {
		return nil, err
	}
	return []result{l.compare(kiln, stock, must, aim), l.compare(kiln, ours, must, aim)}, nil
}
