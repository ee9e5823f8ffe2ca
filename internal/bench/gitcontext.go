package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// A gitCase is a repository of so many files, and a disk for the daemon.
type gitCase struct {
	files  int
	memory bool // the daemon's root is on tmpfs
	must   float64
}

var (
	onDisk    = gitCase{10_000, false, 0.3}
	inMemory  = gitCase{10_000, true, 0.1}
	manyFiles = gitCase{100_000, false, 0.05}
)

const (
	gitRounds    = 5   // at most
	sourceMemory = 100 // MB that sources may take
	gitTask      = "git-context"
)

// gitContexts measures how long a change of a large git repository takes until the registry has the image of
// the commit under its tag. The commit changes one file, and the Dockerfile copies one directory. For kiln
// the time begins when a signed delivery is sent that tells of the commit. Beside it buildctl builds the same by
// BuildKit's own git source, from a URL that names the commit, which is what kiln builds, and from one that names
// the branch, with which BuildKit fetches less; there the time begins with the start of the command. Each side has a
// repository of its own, of which it has built the commit before; the daemon and the registry are the same.
func gitContexts(c gitCase) func(context.Context, *lab) ([]result, error) {
	return func(ctx context.Context, l *lab) ([]result, error) { return l.gitContext(ctx, c) }
}

func (l *lab) gitContext(ctx context.Context, c gitCase) ([]result, error) {
	if c.memory {
		if err := l.tmpfs("buildkitd"); err != nil {
			return nil, err
		}
	}
	address, err := l.startBuildkitd(ctx)
	if err != nil {
		return nil, err
	}
	k, err := l.startKiln(ctx, address)
	if err != nil {
		return nil, err
	}
	g, err := l.startGit(ctx)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	kiln, peers, err := l.gitSides(ctx, c, k, g, address)
	if err != nil {
		return nil, err
	}
	before, _, err := k.memory()
	if err == nil {
		err = k.forgetPeak()
	}
	if err != nil {
		return nil, err
	}
	turns := []func(context.Context) (time.Duration, error){kiln.turn}
	for _, p := range peers {
		turns = append(turns, p.turn)
	}
	times := make([][]time.Duration, len(turns))
	for round := range warmUp + min(l.n, gitRounds) {
		for i := range turns {
			i = (round + i) % len(turns)
			took, err := turns[i](ctx)
			if err != nil {
				return nil, err
			}
			if round >= warmUp {
				times[i] = append(times[i], took)
			}
		}
	}
	_, peak, err := k.memory()
	if err != nil {
		return nil, err
	}
	where := "disk"
	if c.memory {
		where = "tmpfs"
	}
	a := summarize(times[0])
	var results []result
	for i, p := range peers {
		b := summarize(times[i+1])
		results = append(results, result{What: fmt.Sprintf("one file of %d changed, daemon on %s / %s", c.files, where, p.name), Unit: "x",
			Value: a.P50 / b.P50, Must: c.must, Kiln: &a, Peer: &b, PeerName: p.name})
	}
	results[0].Note = kiln.parts()
	return append(results, result{What: fmt.Sprintf("memory for a source of %d files", c.files), Unit: "MB", Value: max(peak-before, 0.1),
		Must: sourceMemory, Note: fmt.Sprintf("from %.0f MB to at most %.0f", before, peak)}), nil
}

// gitSides makes repositories with the same files, and what builds each.
func (l *lab) gitSides(ctx context.Context, c gitCase, k *kilnServer, g *gitServer, address string) (*pusher, []*urlBuilder, error) {
	ours, err := g.importRepo(ctx, c.files)
	if err != nil {
		return nil, nil, err
	}
	builder := urlBuilder{store: k.store, program: l.buildctl, address: address, http: &http.Client{}}
	byCommit, byBranch := builder, builder
	byCommit.name, byCommit.version = "buildctl with the commit's URL", func(p pushed) string { return p.after }
	byBranch.name, byBranch.version = "buildctl with the branch's URL", func(pushed) string { return "main" }
	peers := []*urlBuilder{&byCommit, &byBranch}
	for _, p := range peers {
		if p.repo, err = g.clone(ours); err != nil {
			return nil, nil, err
		}
	}
	for _, r := range []*repo{ours, byCommit.repo, byBranch.repo} {
		base, err := l.pushBase(ctx, k.store)
		if err == nil {
			_, err = r.commit(ctx, "Dockerfile", "FROM "+base+"\nCOPY "+importDir+" /d\n")
		}
		if err != nil {
			return nil, nil, err
		}
	}
	kiln, err := newPusher(ctx, k, gitTask, ours, ours.change)
	return kiln, peers, err
}

// change commits a new content of one of the files that are copied.
func (r *repo) change(ctx context.Context) (pushed, error) {
	return r.commit(ctx, importFile, unique()+"\n")
}

// tmpfs mounts a file system in memory on a directory of the lab.
func (l *lab) tmpfs(name string) error {
	dir, err := l.mkdir(name)
	if err != nil {
		return err
	}
	return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4g")
}

// A urlBuilder builds a repository with BuildKit's own client and git source.
type urlBuilder struct {
	store
	name             string
	repo             *repo
	version          func(pushed) string // what the URL names
	program, address string
	http             *http.Client
}

// turn commits a change, and then measures.
func (b *urlBuilder) turn(ctx context.Context) (time.Duration, error) {
	made, err := b.repo.change(ctx)
	if err != nil {
		return 0, err
	}
	tag := unique()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, b.program, "--addr", b.address, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
		"--opt", "context="+b.repo.url+"#"+b.version(made), "--output", "type=image,name="+b.host+"/"+repository+":"+tag+",push=true")
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+b.dockerConfig)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := cmd.Wait(); err != nil {
			cancel(fmt.Errorf("%s: %w\n%s", cmd, err, said.String()))
		}
	}()
	seen, err := b.visible(ctx, b.http, tag)
	if err != nil {
		cancel(err)
	}
	<-ended
	return seen.Sub(begin), context.Cause(ctx)
}
