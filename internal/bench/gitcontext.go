package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/run"
	"kiln/internal/task"
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
	gitFileSize  = 3 << 10 // bytes of each file, about
	gitPerDir    = 100     // files
	sourceMemory = 100     // MB that sources may take
	gitTask      = "git-context"
)

// gitContexts measures a run of a task whose context is a large git repository, of which a commit has
// changed one file and the Dockerfile copies one directory: from the request for the run until the image has
// its tag. Beside it buildctl builds the same repository from its URL, by BuildKit's own git source. Both
// have built the commit before; each has a daemon of its own.
func gitContexts(c gitCase) func(context.Context, *lab) ([]result, error) {
	return func(ctx context.Context, l *lab) ([]result, error) { return l.gitContext(ctx, c) }
}

func (l *lab) gitContext(ctx context.Context, c gitCase) (results []result, err error) {
	sub, err := newLab(options{n: min(l.n, 5), dir: l.dir}, l.binaries)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sub.close()) }()
	if c.memory {
		if err := sub.tmpfs("buildkitd"); err != nil {
			return nil, err
		}
	}
	address, err := sub.startBuildkitd(ctx)
	if err != nil {
		return nil, err
	}
	k, err := sub.startKiln(ctx, address, "--allow-source", "127.0.0.0/8")
	if err != nil {
		return nil, err
	}
	g, err := sub.startGit(ctx)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	kiln, err := sub.gitSide(ctx, "kiln", c.files, k.store, g)
	if err != nil {
		return nil, err
	}
	kiln.build, err = kiln.task(ctx, k)
	if err != nil {
		return nil, err
	}
	peer, err := sub.gitSide(ctx, "buildctl with a git URL", c.files, k.store, g)
	if err != nil {
		return nil, err
	}
	peer.build = peer.buildctl(l.buildctl, address)
	before, _, err := k.memory()
	if err != nil {
		return nil, err
	}
	times := map[*gitSide][]time.Duration{}
	for round := range warmUp + sub.n {
		for i := range 2 {
			s := []*gitSide{kiln, peer}[(round+i)%2]
			took, err := s.turn(ctx)
			if err != nil {
				return nil, err
			}
			if round >= warmUp {
				times[s] = append(times[s], took)
			}
		}
	}
	_, peak, err := k.memory()
	if err != nil {
		return nil, err
	}
	a, b := summarize(times[kiln]), summarize(times[peer])
	where := "disk"
	if c.memory {
		where = "tmpfs"
	}
	return []result{
		{What: fmt.Sprintf("one file of %d changed, daemon on %s / buildctl with a git URL", c.files, where), Unit: "x", Value: a.P50 / b.P50,
			Must: c.must, Kiln: &a, Peer: &b, PeerName: peer.name},
		{What: fmt.Sprintf("memory for a source of %d files", c.files), Unit: "MB", Value: max(peak-before, 0.1), Must: sourceMemory,
			Note: fmt.Sprintf("from %.0f MB to at most %.0f", before, peak)},
	}, nil
}

// tmpfs mounts a file system in memory on a directory of the lab.
func (l *lab) tmpfs(name string) error {
	dir, err := l.mkdir(name)
	if err != nil {
		return err
	}
	return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4g")
}

// A gitSide builds the head of a repository of its own.
type gitSide struct {
	name  string
	store store
	repo  *repo
	n     int // commits
	build func(ctx context.Context) (image string, err error)
}

// gitSide makes a repository with so many files, one of which is copied by its Dockerfile with its directory.
func (l *lab) gitSide(ctx context.Context, name string, files int, s store, g *gitServer) (*gitSide, error) {
	base, err := l.pushBase(ctx, s)
	if err != nil {
		return nil, err
	}
	dir, err := l.mkdir("tree-" + unique())
	if err != nil {
		return nil, err
	}
	var noise [gitFileSize / 2]byte
	content, rnd := make([]byte, gitFileSize), rand.NewChaCha8([32]byte{})
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("d%04d", i/gitPerDir))
		if i%gitPerDir == 0 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				return nil, err
			}
		}
		rnd.Read(noise[:])
		hex.Encode(content, noise[:]) // shrinks to about a half, as source text does
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%06d", i)), content, 0o644); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+base+"\nCOPY d0001 /d\n"), 0o644); err != nil {
		return nil, err
	}
	sd := &gitSide{name: name, store: s}
	sd.repo, err = g.newRepo(ctx, dir)
	if err == nil {
		_, err = sd.repo.push(ctx)
	}
	return sd, err
}

// turn changes one file, pushes the commit and returns how long it takes to build it.
func (s *gitSide) turn(ctx context.Context) (time.Duration, error) {
	s.n++
	if err := os.WriteFile(filepath.Join(s.repo.work, "d0001", "f000100"), []byte(unique()+"\n"), 0o644); err != nil {
		return 0, err
	}
	if _, err := s.repo.push(ctx); err != nil {
		return 0, err
	}
	begin := time.Now()
	image, err := s.build(ctx)
	took := time.Since(begin)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.name, err)
	}
	_, err = lookUp(ctx, s.store, image)
	return took, err
}

// task creates a task of the repository and returns what runs it.
func (s *gitSide) task(ctx context.Context, k *kilnServer) (func(context.Context) (string, error), error) {
	c := k.client()
	_, err := c.CreateTask(ctx, task.Task{Name: gitTask, Context: s.repo.url + "#main",
		Step: task.Step{Build: &task.Build{Images: []string{repository + ":{{.Run.ID}}"}}}}, false)
	return func(ctx context.Context) (string, error) {
		r, err := c.RunTask(ctx, gitTask, apiclient.TaskRun{})
		if err != nil {
			return "", err
		}
		if err := succeeded(ctx, c, r.ID); err != nil {
			return "", err
		}
		return k.host + "/" + repository + ":" + r.ID, nil
	}, err
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

// buildctl builds the repository with BuildKit's own client and git source.
func (s *gitSide) buildctl(program, address string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		image := s.store.host + "/" + repository + ":" + unique()
		cmd := exec.CommandContext(ctx, program, "--addr", address, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
			"--opt", "context="+s.repo.url+"#main", "--output", "type=image,name="+image+",push=true")
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+s.store.dockerConfig)
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		return image, err
	}
}
