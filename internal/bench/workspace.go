package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/source"
	"kiln/internal/task"
)

const (
	treeFiles  = 50_000
	treeSize   = 20 << 10 // bytes of each file: 1 GB together
	treePerDir = 100      // files
	treeFile   = "d0001/f000100"
	treeTask   = "workspace"
	treeRounds = 5
	seededMust = 500 // milliseconds
)

// workspaceUploaded measures how long a cmd step waits for its workspace, of 50,000 files and 1 GB: from the moment
// that the source is there until the step's container prints its first line. A git source is there when its
// commit has been fetched to the worker's mirror, which the run's log tells; an uploaded one when the run
// begins. Kiln is as it comes, with its own build daemon. In each round one file differs from the source
// before, and it is what the step prints. The first round is the one in which the daemon has nothing of it.
func workspaceUploaded(ctx context.Context, l *lab) ([]result, error) {
	return l.workspace(ctx, uploadedTree)
}

// workspaceGit measures the same for a commit of a git repository.
func workspaceGit(ctx context.Context, l *lab) ([]result, error) {
	return l.workspace(ctx, gitTree)
}

func (l *lab) workspace(ctx context.Context, kind func(context.Context, *lab, *kilnServer, string) (*treeSide, error)) ([]result, error) {
	k, err := l.startKiln(ctx, "", "--allow-source", "127.0.0.0/8")
	if err != nil {
		return nil, err
	}
	base, err := l.pushBase(ctx, k.store)
	if err != nil {
		return nil, err
	}
	s, err := kind(ctx, l, k, base)
	if err != nil {
		return nil, err
	}
	defer s.close()
	return s.measure(ctx, min(l.n, treeRounds))
}

// A treeSide runs a cmd step on a large source.
type treeSide struct {
	name  string
	dir   string // of the source
	api   *apiclient.Client
	begin func(context.Context) (run.Run, error) // makes the source known and starts a run on it
	there func(seededRun) time.Time
	close func()
}

// A seededRun is what is read of a run.
type seededRun struct {
	run.Run
	source time.Time // when the log told of the source
	first  time.Time // when the step's first line was printed
	output bytes.Buffer
}

func (s *treeSide) measure(ctx context.Context, rounds int) ([]result, error) {
	var fresh, same, changed []time.Duration
	take := func(series *[]time.Duration, content string) error {
		took, err := s.turn(ctx, content)
		*series = append(*series, took)
		return err
	}
	content := unique()
	if err := s.write(content); err != nil {
		return nil, err
	}
	if err := take(&fresh, content); err != nil {
		return nil, err
	}
	for range rounds {
		if err := take(&same, content); err != nil {
			return nil, err
		}
		content = unique()
		if err := s.write(content); err != nil {
			return nil, err
		}
		if err := take(&changed, content); err != nil {
			return nil, err
		}
	}
	f, a, c := summarize(fresh), summarize(same), summarize(changed)
	return []result{
		{What: s.name + ", one file changed", Unit: "ms", Value: c.P50, Must: seededMust, Kiln: &c},
		{What: s.name + ", the same again", Unit: "ms", Value: a.P50, Must: seededMust, Kiln: &a},
		{What: s.name + ", all of it new", Unit: "ms", Value: f.P50, Must: seededMust, Kiln: &f},
	}, nil
}

func (s *treeSide) write(content string) error {
	return os.WriteFile(filepath.Join(s.dir, treeFile), []byte(content+"\n"), 0o644)
}

// turn runs the task once and returns how long its step waited.
func (s *treeSide) turn(ctx context.Context, content string) (time.Duration, error) {
	r, err := s.begin(ctx)
	if err != nil {
		return 0, err
	}
	seen := seededRun{Run: r}
	err = s.api.Follow(ctx, r.ID, "", true, func(e apiclient.StreamEvent) error {
		if e.Run != nil {
			seen.Run = *e.Run
			return nil
		}
		seen.add(e.Log)
		return nil
	})
	switch {
	case err != nil:
		return 0, err
	case seen.State != run.Succeeded:
		return 0, fmt.Errorf("run %s ended %s: %s", r.ID, seen.State, seen.Reason)
	case strings.TrimSpace(seen.output.String()) != content:
		return 0, fmt.Errorf("run %s printed %q, want %q", r.ID, clipped(seen.output.String()), content)
	}
	return seen.first.Sub(s.there(seen)), nil
}

func clipped(s string) string { return s[:min(len(s), 200)] }

func (r *seededRun) add(c *event.LogChunk) {
	for _, e := range c.Entries {
		switch {
		case c.Step == "" && r.source.IsZero() && bytes.HasPrefix(e.Data, []byte("source ")):
			r.source = e.Time
		case c.Step != "" && e.Stream == event.StreamStdout:
			if r.first.IsZero() {
				r.first = e.Time
			}
			r.output.Write(e.Data)
		}
	}
}

// makeTree writes the files of a source, and a task that prints the one that changes.
func (l *lab) makeTree(base string) (string, error) {
	dir, err := l.mkdir("tree-" + unique())
	if err != nil {
		return "", err
	}
	content, rnd := make([]byte, treeSize), rand.NewChaCha8([32]byte([]byte(unique()+unique())))
	for i := range treeFiles {
		sub := filepath.Join(dir, fmt.Sprintf("d%04d", i/treePerDir))
		if i%treePerDir == 0 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				return "", err
			}
		}
		_, _ = rnd.Read(content) // never fails
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%06d", i)), content, 0o644); err != nil {
			return "", err
		}
	}
	text := "version: v1.1.0\nsteps:\n- cmd: " + base + " /bin/busybox cat " + treeFile + "\n"
	return dir, os.WriteFile(filepath.Join(dir, "acr-task.yaml"), []byte(text), 0o644)
}

// uploadedTree is a directory that the client uploads.
func uploadedTree(_ context.Context, l *lab, k *kilnServer, base string) (*treeSide, error) {
	dir, err := l.makeTree(base)
	if err != nil {
		return nil, err
	}
	s := &treeSide{name: "uploaded", dir: dir, api: k.client(), there: func(r seededRun) time.Time { return r.Started },
		close: func() {}}
	s.begin = func(ctx context.Context) (run.Run, error) {
		tree, err := source.Scan(ctx, dir, source.ScanOptions{})
		if err != nil {
			return run.Run{}, err
		}
		key, err := source.Key(dir)
		if err == nil {
			err = source.Upload(ctx, s.api.HTTP, s.api.BaseURL, s.api.Token, key, tree, dir, nil)
		}
		if err != nil {
			return run.Run{}, err
		}
		return s.api.Submit(ctx, apiclient.Submit{Spec: run.Spec{Context: source.Ref(tree.ID()), TaskFile: &run.TaskFileSpec{FromContext: true}}})
	}
	return s, nil
}

// gitTree is a repository of which each run builds the newest commit.
func gitTree(ctx context.Context, l *lab, k *kilnServer, base string) (*treeSide, error) {
	g, err := l.startGit(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := l.makeTree(base)
	if err != nil {
		return nil, err
	}
	repo, err := g.newRepo(ctx, dir)
	if err != nil {
		return nil, err
	}
	for _, where := range []string{repo.work, repo.bare} { // git would compress for minutes what cannot be compressed
		for _, setting := range [][]string{{"core.compression", "0"}, {"pack.window", "0"}} {
			if _, err := git(ctx, where, "config", setting[0], setting[1]); err != nil {
				return nil, err
			}
		}
	}
	s := &treeSide{name: "git", dir: dir, api: k.client(), there: func(r seededRun) time.Time { return r.source },
		close: g.Close}
	created := false
	s.begin = func(ctx context.Context) (run.Run, error) {
		if out, err := git(ctx, dir, "status", "--porcelain"); err != nil || out != "" {
			if _, err := repo.push(ctx); err != nil {
				return run.Run{}, err
			}
		}
		if !created {
			t := task.Task{Name: treeTask, Context: repo.url + "#main", Step: task.Step{File: &task.File{Path: "acr-task.yaml"}}}
			if _, err := s.api.CreateTask(ctx, t, false); err != nil {
				return run.Run{}, err
			}
			created = true
		}
		return s.api.RunTask(ctx, treeTask, apiclient.TaskRun{})
	}
	return s, nil
}
