package index_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"kiln/internal/index"
	"kiln/internal/natstest"
	"kiln/internal/run"
	"kiln/internal/store"
)

const (
	history = 100_000 // runs
	tasks   = 10_000
)

// past is the n-th run of a history, as they are.
func past(n int) run.Run {
	created := t0.Add(time.Duration(n) * time.Minute)
	digest := fmt.Sprintf("sha256:%064x", n)
	commit := fmt.Sprintf("%08x%032x", uint32(n)*2654435761, n)
	states := []run.State{run.Succeeded, run.Succeeded, run.Succeeded, run.Failed, run.Succeeded, run.Canceled, run.Succeeded, run.Timeout}
	causes := []string{run.CauseCommit, run.CauseBase, run.CauseManual, run.CauseTimer, run.CausePull}
	task := n * 7919 % tasks
	repository := fmt.Sprint("team/app-", task)
	r := run.Run{ID: fmt.Sprintf("r%011d", n), Task: fmt.Sprint("app-", task), TaskUID: fmt.Sprintf("u%015d", task), State: states[n%len(states)],
		Lane: causes[n%5], Created: created, Started: created.Add(time.Second), Finished: created.Add(time.Minute), Attempt: 1,
		Cause: run.Cause{Kind: causes[n%5], Reason: "branch main moved to " + commit[:8], Event: fmt.Sprintf("%032x", n), Repository: "https://git.example.com/" + repository + ".git",
			Ref: fmt.Sprint("refs/heads/b", n%50), Commit: commit},
		Attempts: []run.Attempt{{N: 1, Worker: "w1", Instance: "8d2c1f0a", Assigned: created, Ended: created.Add(time.Minute), Outcome: "Succeeded"}},
		Spec:     run.Spec{Context: "https://git.example.com/" + repository + ".git#" + commit, Build: &run.BuildSpec{Images: []string{repository + ":{{.Run.ID}}", repository + ":latest"}}, Timeout: time.Hour},
		Steps:    []run.Step{{ID: "build", Kind: "build", State: run.StepSucceeded, Attempt: 1, Started: created, Finished: created.Add(time.Minute), Output: &run.Output{Digest: digest, Ref: "localhost:7070/kiln-staging/" + repository + "@" + digest}}},
		Images: []run.Image{{Registry: "localhost:7070", Repository: repository, Tag: fmt.Sprintf("r%011d", n), Digest: digest, Step: "build"},
			{Registry: "localhost:7070", Repository: repository, Tag: "latest", Digest: digest, Step: "build"}},
		Bases: []run.Base{{Ref: "docker.io/library/node:22", Digest: digest}, {Ref: fmt.Sprint("docker.io/library/golang:1.", n%300), Digest: digest}}}
	if n%20_000 == 19_999 {
		r.State, r.Finished = run.Queued, time.Time{}
	}
	return r
}

// seed stores a history.
func seed(b *testing.B) *store.Store {
	b.Helper()
	js := natstest.Start(b)
	s, err := store.Open(b.Context(), js.JetStream(), time.Minute)
	if err != nil {
		b.Fatal(err)
	}
	for n := range history {
		r := past(n)
		ack, err := js.ReplaceAsync("$KV.runs."+r.ID, 0, r)
		if err != nil {
			b.Fatal(err)
		}
		if n == history-1 {
			<-ack.Ok()
		}
	}
	<-js.JetStream().PublishAsyncComplete()
	return s
}

// run follows s until the returned function is called.
func start(b *testing.B, s *store.Store, file string) (x *index.Index, stop func()) {
	b.Helper()
	x, err := index.Open(file, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- x.Run(ctx, &s.Runs) }()
	return x, func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		if err := x.Close(); err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkHistory builds the index of a history of 100,000 runs, opens it again, and asks it for lists.
func BenchmarkHistory(b *testing.B) {
	s, file := seed(b), filepath.Join(b.TempDir(), "index")
	b.Run("rebuild", func(b *testing.B) {
		for b.Loop() {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				_ = os.Remove(file + suffix)
			}
			began := time.Now()
			x, stop := start(b, s, file)
			if ids, err := x.Active(b.Context()); err != nil || len(ids) != history/20_000 {
				b.Fatalf("Active: %d runs, %v", len(ids), err)
			}
			b.ReportMetric(float64(time.Since(began).Milliseconds()), "active-ms")
			if _, err := x.List(b.Context(), index.Query{Limit: 1}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(began).Milliseconds()), "complete-ms")
			stop()
		}
		if fi, err := os.Stat(file); err == nil {
			b.ReportMetric(float64(fi.Size())/(1<<20), "file-MB")
		}
	})
	before := heap()
	var x *index.Index
	stop := func() {}
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			stop()
			began := time.Now()
			x, stop = start(b, s, file)
			if _, err := x.Active(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(began).Milliseconds()), "ready-ms")
		}
	})
	b.Logf("heap in use: %.1f MB", float64(heap()-before)/(1<<20))
	for name, q := range queries() {
		b.Run("list/"+name, func(b *testing.B) { ask(b, x, q) })
	}
	stop()
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func queries() map[string]index.Query {
	r := past(50_007)
	return map[string]index.Query{
		"all":          {},
		"before":       {Before: r.ID},
		"prefix":       {Prefix: r.ID[:10]},
		"task":         {Task: r.Task},
		"uid":          {TaskUID: r.TaskUID},
		"status":       {States: []run.State{run.Timeout, run.Canceled}},
		"status-rare":  {States: []run.State{run.Queued}},
		"status-none":  {States: []run.State{run.Running}},
		"cause":        {Cause: run.CauseTimer},
		"lane":         {Lane: "timer"},
		"since":        {Since: r.Created},
		"until":        {Until: r.Created},
		"commit":       {Commit: r.Cause.Commit[:7]},
		"ref":          {Ref: "b7"},
		"base":         {Base: "node:22"},
		"base-repo":    {Base: "golang"},
		"base-rare":    {Base: "golang:1.7"},
		"base-none":    {Base: "alpine:3"},
		"image":        {Image: r.Images[0].Repository + ":" + r.Images[0].Tag},
		"image-digest": {Image: "localhost:7070/" + r.Images[0].Repository + "@" + r.Images[0].Digest},
		"contrary":     {Base: "node:22", States: []run.State{run.Timeout}, Cause: run.CauseTimer, Ref: "b49"},
	}
}

func ask(b *testing.B, x *index.Index, q index.Query) {
	q.Limit = 20
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		if _, err := x.List(b.Context(), q); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
