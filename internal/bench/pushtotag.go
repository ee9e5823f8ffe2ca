package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/run"
	"kiln/internal/task"
)

const (
	pushMust, pushAim = 1.0, 0.9
	pollEvery         = 4 * time.Millisecond // of the tag
	visibleWithin     = 3 * time.Minute
	knownWithin       = 3 * time.Minute // a task, whose repository has to be fetched
)

// pushToTag measures from the moment a signed delivery is sent, of a push that the git server has, until
// the registry has the image of that commit under its tag; beside the whole command of buildctl that
// builds and pushes the same from a directory. One file changes from round to round. All use the same
// stock daemon; the sides take turns, and their contents differ in a word.
func pushToTag(ctx context.Context, l *lab) (results []result, err error) {
	address, reg, k, err := l.startStock(ctx, "--allow-source", "127.0.0.0/8")
	if err != nil {
		return nil, err
	}
	g, err := l.startGit(ctx)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	kiln, err := l.smallPusher(ctx, k, g)
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
	turns := []func(context.Context) (time.Duration, error){kiln.turn, changed(stock), changed(ours)}
	times := make([][]time.Duration, len(turns))
	for round := range warmUp + l.n {
		c, err := conditionsAt(l.dir)
		if err != nil {
			return nil, err
		}
		l.during = append(l.during, c)
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
	a := summarize(times[0])
	for i, peer := range []*side{stock, ours} {
		b := summarize(times[i+1])
		results = append(results, result{What: "push webhook to tag / " + peer.name, Unit: "x", Value: a.P50 / b.P50, Must: pushMust, Aim: pushAim,
			Kiln: &a, Peer: &b, PeerName: peer.name, Note: kiln.parts() + "; " + spread(l.during)})
	}
	return results, nil
}

// changed is a turn of a command: one file changes, and it builds and pushes.
func changed(s *side) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		if err := s.change(); err != nil {
			return 0, err
		}
		return s.build(ctx)
	}
}

// A pusher has kiln build what is pushed to a repository.
type pusher struct {
	store
	task    string
	repo    *repo
	next    func(context.Context) (pushed, error) // pushes a change
	client  *apiclient.Client
	http    *http.Client
	hook    apiclient.Hook
	digests map[string]bool

	decided, assigned, begun, steps, published []time.Duration // since the delivery was sent
}

const pushTask = "push-to-tag"

// smallPusher pushes changes of a small directory.
func (l *lab) smallPusher(ctx context.Context, k *kilnServer, g *gitServer) (*pusher, error) {
	s, err := l.newSide(ctx, "kiln", k.store)
	if err != nil {
		return nil, err
	}
	r, err := g.newRepo(ctx, s.context)
	if err != nil {
		return nil, err
	}
	if _, err := r.push(ctx); err != nil {
		return nil, err
	}
	return newPusher(ctx, k, pushTask, r, func(ctx context.Context) (pushed, error) {
		if err := s.change(); err != nil {
			return pushed{}, err
		}
		return r.push(ctx)
	})
}

// newPusher creates a task of the repository's branch, whose images have the commit as their tag.
func newPusher(ctx context.Context, k *kilnServer, name string, r *repo, next func(context.Context) (pushed, error)) (*pusher, error) {
	p := &pusher{store: k.store, task: name, repo: r, next: next, client: k.client(), http: &http.Client{}, digests: map[string]bool{}}
	var err error
	if p.hook, err = p.client.CreateHook(ctx, apiclient.CreateHook{Name: "bench", Provider: "generic"}); err != nil {
		return nil, err
	}
	_, err = p.client.CreateTask(ctx, task.Task{Name: name, Context: r.url + "#main",
		Step:     task.Step{Build: &task.Build{Images: []string{repository + ":{{.Run.Commit}}"}}},
		Triggers: task.Triggers{Source: []task.SourceTrigger{{Name: "push"}}}}, false)
	if err != nil {
		return nil, err
	}
	return p, k.awaitWithin(ctx, knownWithin, func(ctx context.Context) error { return decidedOnce(ctx, p.client, name) })
}

// decidedOnce fails until something was decided about a task: from then on it is followed.
func decidedOnce(ctx context.Context, c *apiclient.Client, name string) error {
	d, err := c.Decisions(ctx, name, time.Time{})
	if err == nil && len(d.Decisions) == 0 {
		err = fmt.Errorf("task %q is not followed yet", name)
	}
	return err
}

// turn pushes a change, and then measures.
func (p *pusher) turn(ctx context.Context) (time.Duration, error) {
	made, err := p.next(ctx)
	if err != nil {
		return 0, err
	}
	req, err := p.repo.delivery(ctx, p.hook, made)
	if err != nil {
		return 0, err
	}
	sent := time.Now()
	if err := exchange(p.http, req, http.StatusAccepted); err != nil {
		return 0, err
	}
	seen, err := p.visible(ctx, made.after)
	if err != nil {
		return 0, err
	}
	digest, err := lookUp(ctx, p.store, p.store.host+"/"+repository+":"+made.after)
	if err != nil {
		return 0, err
	}
	if p.digests[digest] {
		return 0, fmt.Errorf("kiln: commit %s made an image that was there before", made.after)
	}
	p.digests[digest] = true
	return seen.Sub(sent), p.note(ctx, made.after, sent)
}

// visible returns when a tag is there.
func (p *pusher) visible(ctx context.Context, tag string) (time.Time, error) {
	seen, err := p.store.visible(ctx, p.http, tag)
	if err != nil {
		runs, lerr := p.client.TaskRuns(context.WithoutCancel(ctx), p.task, apiclient.RunsQuery{Limit: 1})
		if len(runs) > 0 {
			err = fmt.Errorf("%w; run %s is %s: %s", err, runs[0].ID, runs[0].State, runs[0].Reason)
		}
		err = errors.Join(err, lerr)
	}
	return seen, err
}

// visible returns when a tag of the images that are built is there.
func (s store) visible(ctx context.Context, c *http.Client, tag string) (time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, visibleWithin, fmt.Errorf("tag %s is not there after %s", tag, visibleWithin))
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://"+s.host+"/v2/"+repository+"/manifests/"+tag, nil)
		if err != nil {
			return time.Time{}, err
		}
		if s.password != "" {
			req.SetBasicAuth("kiln", s.password)
		}
		req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
		err = exchange(c, req, http.StatusOK)
		if err == nil {
			return time.Now(), nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, errors.Join(context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// note waits until the run of a commit has ended, and notes when its parts were done.
func (p *pusher) note(ctx context.Context, commit string, sent time.Time) error {
	var r run.Run
	for r.State == "" || !r.State.Final() {
		runs, err := p.client.TaskRuns(ctx, p.task, apiclient.RunsQuery{Commit: commit})
		if err != nil {
			return err
		}
		if len(runs) > 1 {
			return fmt.Errorf("commit %s has %d runs", commit, len(runs))
		}
		if len(runs) == 1 {
			r = runs[0]
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
	if r.State != run.Succeeded || len(r.Attempts) != 1 {
		return fmt.Errorf("run %s ended %s after %d attempts: %s", r.ID, r.State, len(r.Attempts), r.Reason)
	}
	var steps time.Time
	for _, s := range r.Steps {
		if s.Kind == "build" && s.Finished.After(steps) {
			steps = s.Finished
		}
	}
	why, err := p.client.Why(ctx, r.ID)
	if err != nil {
		return err
	}
	if why.Decision == nil {
		return fmt.Errorf("run %s has no decision", r.ID)
	}
	for _, part := range []struct {
		series *[]time.Duration
		at     time.Time
	}{{&p.decided, why.Decision.Time}, {&p.assigned, r.Attempts[0].Assigned}, {&p.begun, r.Started}, {&p.steps, steps}, {&p.published, r.Finished}} {
		*part.series = append(*part.series, part.at.Sub(sent))
	}
	return nil
}

// parts says when what was done.
func (p *pusher) parts() string {
	return fmt.Sprintf("p50 since the delivery was sent, as the server recorded it: looked at after %.0f ms, assigned %.0f, commit fetched and begun %.0f, built %.0f, ended %.0f",
		summarize(p.decided).P50, summarize(p.assigned).P50, summarize(p.begun).P50, summarize(p.steps).P50, summarize(p.published).P50)
}

// exchange makes a request whose answer has that status.
func exchange(c *http.Client, req *http.Request, want int) error {
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, showOutput))
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("%s %s: %s: %s", req.Method, req.URL, resp.Status, body)
	}
	return err
}
