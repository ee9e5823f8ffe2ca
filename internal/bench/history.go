package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/run"
)

const (
	historyRuns   = 100_000
	historyTasks  = 10_000
	historyMust   = 5   // milliseconds, p99 of a list
	readyMust     = 2   // seconds
	historyMemory = 120 // MB
	historyAsked  = 300 // times, each list
	historyLimit  = 20  // runs of a list

	indexWithin = 3 * time.Minute // until the first list is answered
)

// history measures a server with much behind it: how soon it is ready after it was stopped and after it
// was killed, how much memory it has when it has nothing to do, and how long lists of runs take. Those are
// measured at the other end of a connection that is open, until the answer is there. Runs and tasks are
// written into the store while the server is down.
func history(ctx context.Context, l *lab) ([]result, error) {
	dir, err := l.mkdir("kiln")
	if err != nil {
		return nil, err
	}
	if err := fillTasks(ctx, dir, "registry.invalid/base:1", historyTasks); err != nil {
		return nil, err
	}
	if err := fillRuns(ctx, dir); err != nil {
		return nil, err
	}
	first, firstList, k, err := l.timeStart(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(k.quiet(ctx), k.stop()); err != nil { // it has looked at its tasks for the first time
		return nil, err
	}
	stopped, stoppedList, k, err := l.timeStart(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.quiet(ctx); err != nil {
		return nil, err
	}
	k.kill()
	killed, killedList, k, err := l.timeStart(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(k.quiet(ctx), pause(ctx, settle)); err != nil {
		return nil, err
	}
	_, peak, err := k.memory()
	if err != nil {
		return nil, err
	}
	t, err := readTree(k.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	rss, _, err := k.memory()
	if err != nil {
		return nil, err
	}
	results := []result{
		{What: "ready after a stop", Unit: "s", Value: stopped.Seconds(), Must: readyMust, Note: fmt.Sprintf("the first list is answered after %.2f s", stoppedList.Seconds())},
		{What: "ready after a kill", Unit: "s", Value: killed.Seconds(), Must: readyMust, Note: fmt.Sprintf("the first list is answered after %.2f s", killedList.Seconds())},
		{What: "ready without an index", Unit: "s", Value: first.Seconds(), Note: fmt.Sprintf("the first list is answered after %.2f s", firstList.Seconds())},
		{What: "RSS of the server, idle", Unit: "MB", Value: rss, Must: historyMemory, Note: fmt.Sprintf("at most %.0f MB since the start; %s", peak, t)},
	}
	lists, err := timeLists(ctx, k)
	return append(results, lists...), err
}

// timeStart starts kiln as it comes and returns how long it takes until it is ready, and until it has
// answered a list.
func (l *lab) timeStart(ctx context.Context) (ready, answered time.Duration, k *kilnServer, err error) {
	if err := os.Remove(filepath.Join(l.dir, "kiln", apiclient.ServerFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil, err
	}
	begin := time.Now()
	if k, err = l.startKiln(ctx, "", "--reconcile-every", "24h", "--poll-every", "24h"); err != nil {
		return 0, 0, nil, err
	}
	ready = time.Since(begin)
	for { // an index that has to be made anew takes longer than a client waits
		_, err = k.client().Runs(ctx, apiclient.RunsQuery{Limit: 1})
		if err == nil || time.Since(begin) > indexWithin {
			return ready, time.Since(begin), k, err
		}
	}
}

// fillRuns stores a history of runs.
func fillRuns(ctx context.Context, data string) error {
	d, err := openDepot(ctx, data, true)
	if err != nil {
		return err
	}
	defer d.close()
	acks := make([]bus.Ack, historyRuns)
	for n := range acks {
		r := pastRun(n)
		if acks[n], err = d.ReplaceAsync("$KV.runs."+r.ID, 0, r); err != nil {
			return err
		}
	}
	return settled(ctx, acks)
}

// historyBegin is when the first run of the history was created: all of them are still kept.
var historyBegin = time.Now().UTC().Truncate(time.Minute).Add(-historyRuns * time.Minute)

// pastRun is the n-th run of the history, as they are.
func pastRun(n int) run.Run {
	created := historyBegin.Add(time.Duration(n) * time.Minute)
	digest := fmt.Sprintf("sha256:%064x", n)
	commit := fmt.Sprintf("%08x%032x", uint32(n)*2654435761, n)
	states := []run.State{run.Succeeded, run.Succeeded, run.Succeeded, run.Failed, run.Succeeded, run.Canceled, run.Succeeded, run.Timeout}
	causes := []string{run.CauseCommit, run.CauseBase, run.CauseManual, run.CauseTimer, run.CausePull}
	number := n * 7919 % historyTasks
	repository := "team/" + taskName(number)
	source := "https://git.example.com/" + repository + ".git"
	return run.Run{ID: fmt.Sprintf("r%011d", n), Task: taskName(number), TaskUID: fmt.Sprintf("u%015d", number), State: states[n%len(states)],
		Lane: causes[n%len(causes)], Created: created, Started: created.Add(time.Second), Finished: created.Add(time.Minute), Attempt: 1,
		Cause: run.Cause{Kind: causes[n%len(causes)], Reason: "branch main moved to " + commit[:8], Event: fmt.Sprintf("%032x", n), Repository: source,
			Ref: fmt.Sprint("refs/heads/b", n%50), Commit: commit},
		Attempts: []run.Attempt{{N: 1, Worker: "w1", Instance: "8d2c1f0a", Assigned: created, Ended: created.Add(time.Minute), Outcome: "Succeeded"}},
		Spec:     run.Spec{Context: source + "#" + commit, Build: &run.BuildSpec{Images: []string{repository + ":{{.Run.ID}}", repository + ":latest"}}, Timeout: time.Hour},
		Steps: []run.Step{{ID: "build", Kind: "build", State: run.StepSucceeded, Attempt: 1, Started: created, Finished: created.Add(time.Minute),
			Output: &run.Output{Digest: digest, Ref: "localhost:7070/kiln-staging/" + repository + "@" + digest}}},
		Images: []run.Image{{Registry: "localhost:7070", Repository: repository, Tag: fmt.Sprintf("r%011d", n), Digest: digest, Step: "build"},
			{Registry: "localhost:7070", Repository: repository, Tag: "latest", Digest: digest, Step: "build"}},
		Bases: []run.Base{{Ref: "docker.io/library/node:22", Digest: digest}, {Ref: fmt.Sprint("docker.io/library/golang:1.", n%300), Digest: digest}}}
}

// A list is a question for runs.
type list struct {
	name string
	task string // whose runs are asked for, empty for all
	apiclient.RunsQuery
}

func lists() []list {
	r := pastRun(historyRuns / 2)
	image := r.Images[0]
	return []list{
		{"all", "", apiclient.RunsQuery{}},
		{"before", "", apiclient.RunsQuery{Before: r.ID}},
		{"prefix", "", apiclient.RunsQuery{Prefix: r.ID[:10]}},
		{"task", "", apiclient.RunsQuery{Task: r.Task}},
		{"of a task", r.Task, apiclient.RunsQuery{}},
		{"status", "", apiclient.RunsQuery{Status: []string{string(run.Timeout), string(run.Canceled)}}},
		{"status of none", "", apiclient.RunsQuery{Status: []string{string(run.Running)}}},
		{"cause", "", apiclient.RunsQuery{Cause: run.CauseTimer}},
		{"since", "", apiclient.RunsQuery{Since: r.Created}},
		{"until", "", apiclient.RunsQuery{Until: r.Created}},
		{"commit", "", apiclient.RunsQuery{Commit: r.Cause.Commit[:7]}},
		{"branch", "", apiclient.RunsQuery{Branch: "b7"}},
		{"base", "", apiclient.RunsQuery{Base: "node:22"}},
		{"rare base", "", apiclient.RunsQuery{Base: "golang:1.7"}},
		{"base of none", "", apiclient.RunsQuery{Base: "alpine:3"}},
		{"image by tag", "", apiclient.RunsQuery{Image: image.Repository + ":" + image.Tag}},
		{"image by digest", "", apiclient.RunsQuery{Image: image.Registry + "/" + image.Repository + "@" + image.Digest}},
		{"contrary filters", "", apiclient.RunsQuery{Base: "node:22", Status: []string{string(run.Timeout)}, Cause: run.CauseTimer, Branch: "b49"}},
	}
}

// timeLists asks for every list many times, one after the other.
func timeLists(ctx context.Context, k *kilnServer) ([]result, error) {
	c := k.client()
	watch := &stopwatch{below: c.HTTP.Transport}
	c.HTTP = &http.Client{Transport: watch}
	var served, seen slowest
	for _, q := range lists() {
		q.Limit = historyLimit
		ask := func() ([]run.Run, error) { return c.Runs(ctx, q.RunsQuery) }
		if q.task != "" {
			ask = func() ([]run.Run, error) { return c.TaskRuns(ctx, q.task, q.RunsQuery) }
		}
		watch.served, watch.seen = nil, nil
		found := 0
		for range historyAsked {
			runs, err := ask()
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", q.name, err)
			}
			found = len(runs)
		}
		served.add(q.name, found, watch.served)
		seen.add(q.name, found, watch.seen)
	}
	return []result{
		{What: "p99 of the slowest list in the server, " + served.name, Unit: "ms", Value: served.p99, Must: historyMust, Note: served.note, Kiln: &served.stats},
		{What: "p99 of the slowest list at a client, " + seen.name, Unit: "ms", Value: seen.p99, Note: seen.note + "on loopback, until the answer was read", Kiln: &seen.stats},
	}, nil
}

// slowest is the list with the worst p99.
type slowest struct {
	name  string
	p99   float64
	stats summary
	note  string // of all lists
}

func (w *slowest) add(name string, found int, took []time.Duration) {
	s := summarize(took)
	if w.note == "" {
		w.note = "p99 of each, in ms: "
	}
	w.note += fmt.Sprintf("%s %.1f (p50 %.1f, %d runs), ", name, s.P99, s.P50, found)
	if s.P99 > w.p99 {
		w.name, w.p99, w.stats = name, s.P99, s
	}
}

// A stopwatch takes the time of calls: what the server says that it took, and until the answer was read,
// before it is looked at.
type stopwatch struct {
	below        http.RoundTripper
	served, seen []time.Duration
}

func (s *stopwatch) RoundTrip(req *http.Request) (*http.Response, error) {
	begin := time.Now()
	resp, err := s.below.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	s.seen = append(s.seen, time.Since(begin))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	timing := resp.Header.Get("Server-Timing")
	ms, err := strconv.ParseFloat(strings.TrimPrefix(timing, "app;dur="), 64)
	if err != nil {
		return nil, fmt.Errorf("an answer with Server-Timing %q", timing)
	}
	s.served = append(s.served, time.Duration(ms*float64(time.Millisecond)))
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}
