package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/run"
	"kiln/internal/task"
)

const (
	dispatchMust, dispatchTail = 8, 40 // milliseconds, p50 and p99
	dispatchFsyncs             = 4
	dispatchRounds             = 10 // for each that is asked for: a p99 needs many
	restBetween                = 30 * time.Millisecond
)

// dispatch measures from the decision that a run is due until a worker that had nothing to do has begun
// with it. Both times are the server's own, as it recorded them: the decision's is taken just before
// the image that has moved is resolved, which happens inside the process, and the beginning is the
// worker's, when it has unsealed and planned the run. So it is slightly more than what it is named after.
func dispatch(ctx context.Context, l *lab) ([]result, error) {
	address, err := l.startBuildkitd(ctx)
	if err != nil {
		return nil, err
	}
	k, err := l.startKiln(ctx, address)
	if err != nil {
		return nil, err
	}
	base, err := l.newMovingBase(ctx, k)
	if err != nil {
		return nil, err
	}
	const name = "dispatch"
	c := k.client()
	if _, err := c.CreateTask(ctx, followerOf(name, base.ref, "/bin/busybox true"), false); err != nil {
		return nil, err
	}
	if err := k.await(ctx, func(ctx context.Context) error { return decidedOnce(ctx, c, name) }); err != nil {
		return nil, err
	}
	var assigned, begun []time.Duration
	for round := range warmUp + dispatchRounds*l.n {
		if _, err := base.move(ctx); err != nil {
			return nil, err
		}
		r, err := nthRun(ctx, c, name, round+1)
		if err != nil {
			return nil, err
		}
		why, err := c.Why(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		if why.Decision == nil {
			return nil, fmt.Errorf("run %s has no decision", r.ID)
		}
		if round >= warmUp {
			decided := why.Decision.Time
			assigned, begun = append(assigned, r.Attempts[0].Assigned.Sub(decided)), append(begun, r.Started.Sub(decided))
		}
		if err := pause(ctx, restBetween); err != nil {
			return nil, err
		}
	}
	s, a := summarize(begun), summarize(assigned)
	note := fmt.Sprintf("%d runs; of that until the scheduler has chosen the worker p50 %.1f, p99 %.1f ms", s.N, a.P50, a.P99)
	return []result{
		{What: "image resolved to run begun by an idle worker, p50", Unit: "ms", Value: s.P50, Must: dispatchMust, Fsyncs: dispatchFsyncs, Kiln: &s, Note: note},
		{What: "image resolved to run begun by an idle worker, p99", Unit: "ms", Value: s.P99, Must: dispatchTail, Fsyncs: dispatchFsyncs, Kiln: &s},
	}, nil
}

// followerOf is a task that runs a command in an image, and again at once when the image moves.
func followerOf(name, image, command string) task.Task {
	none := task.Duration(0)
	return task.Task{Name: name, Step: task.Step{Inline: &task.Inline{Task: "version: v1.1.0\nsteps:\n- cmd: " + image + " " + command + "\n"}},
		Triggers: task.Triggers{BaseImage: task.BaseImageTrigger{Type: task.All, Quiet: &none}}}
}

// nthRun returns the last run of a task when it has had n, and the last has succeeded.
func nthRun(ctx context.Context, c *apiclient.Client, name string, n int) (run.Run, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, commandWithin, fmt.Errorf("run %d of task %q has not ended after %s", n, name, commandWithin))
	defer cancel()
	for {
		runs, err := c.TaskRuns(ctx, name, apiclient.RunsQuery{Limit: 1000})
		if err != nil {
			return run.Run{}, err
		}
		if len(runs) > n {
			return run.Run{}, fmt.Errorf("task %q has %d runs, want %d", name, len(runs), n)
		}
		if len(runs) == n && runs[0].State.Final() {
			if runs[0].State != run.Succeeded || len(runs[0].Attempts) != 1 {
				return runs[0], fmt.Errorf("run %s ended %s: %s", runs[0].ID, runs[0].State, runs[0].Reason)
			}
			return runs[0], nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return run.Run{}, err
		}
	}
}

// A movingBase is an image in kiln's registry whose tag can be moved by one request.
type movingBase struct {
	ref      string // with its tag
	url      string // of its manifest
	password string
	manifest map[string]any
	client   *http.Client
}

func (l *lab) newMovingBase(ctx context.Context, k *kilnServer) (*movingBase, error) {
	ref, err := l.pushBase(ctx, k.store)
	if err != nil {
		return nil, err
	}
	b := &movingBase{ref: ref, url: "http://" + k.store.host + "/v2/bench/base/manifests/1", password: k.store.password, client: &http.Client{}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth("kiln", b.password)
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&b.manifest); err != nil {
		return nil, fmt.Errorf("manifest of %s: %s: %w", ref, resp.Status, err)
	}
	return b, nil
}

// move pushes another manifest with the same layers, and returns when the request was sent.
func (b *movingBase) move(ctx context.Context) (sent time.Time, err error) {
	b.manifest["annotations"] = map[string]string{"bench": unique()}
	body, err := json.Marshal(b.manifest)
	if err != nil {
		return sent, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, b.url, bytes.NewReader(body))
	if err != nil {
		return sent, err
	}
	req.Header.Set("Content-Type", fmt.Sprint(b.manifest["mediaType"]))
	req.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("kiln:"+b.password)))
	sent = time.Now()
	return sent, exchange(b.client, req, http.StatusCreated)
}
