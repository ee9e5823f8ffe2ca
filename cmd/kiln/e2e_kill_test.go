package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/gittest"
	"kiln/internal/run"
	"kiln/internal/store"
)

// TestProcessesAreKilled has runs of every kind executed by a server of several processes, each of which is killed
// and stopped meanwhile; a worker stands still for longer than its lease. Every run ends once, and nothing is
// published twice or left. The long form is TestSoakProcessesAreKilled.
func TestProcessesAreKilled(t *testing.T) {
	t.Parallel()
	killProcesses(t, 60)
}

// killProcesses is the test with that many runs.
func killProcesses(t *testing.T, runs int) {
	k := newMassacre(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("progress:\n" + k.story.String())
		}
	})
	plan := k.plan()
	var customers sync.WaitGroup
	var next atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for range 6 {
		customers.Go(func() {
			for i := next.Add(1); i <= int64(runs) && ctx.Err() == nil; i = next.Add(1) {
				if err := k.customer(ctx, int(i)); err != nil {
					t.Errorf("run %d: %v", i, err)
				}
				k.done.Add(1)
			}
		})
	}
	for i, what := range plan {
		due := int64(runs * (i + 1) / (len(plan) + 1))
		waitUntil(t, 3*time.Minute, func() bool { return k.done.Load() >= due }, func() string {
			return fmt.Sprintf("%d of %d runs have ended, and no more do:\n%s", k.done.Load(), runs, k.kiln("runs"))
		})
		fmt.Fprintf(k.story, "%s after %d runs: %s\n", time.Now().Format("15:04:05.000"), due, what.name)
		what.do()
	}
	customers.Wait()
	k.settle(ctx)
	k.checkLedger(ctx)
	k.checkEmpty()
}

// A massacre is a cluster whose processes are killed.
type massacre struct {
	*cluster
	story   *syncBuffer
	context string // uploaded
	done    atomic.Int64
	zombie  string // run whose first worker stood still

	base   sync.Mutex // is pushed by one at a time
	digest string     // of the base image that was pushed last

	mu   sync.Mutex
	kept map[string]string // runs by key of their request
}

const killedFiles = "Dockerfile"

func newMassacre(t *testing.T) *massacre {
	t.Helper()
	k := &massacre{cluster: newCluster(t, "127.0.0.1", ",api,triggers,scheduler", nil), story: &syncBuffer{}, kept: map[string]string{}}
	one := k.work("w1")
	k.work("w2", "--buildkit", "unix://"+one.data+"/buildkitd.sock")
	k.work("w3")
	id := strings.TrimSpace(k.kiln("build", "--no-wait", "-t", "kill/box:1", files(t, map[string]string{killedFiles: base, "f": "0"})))
	r, err := k.record(t.Context(), id, ended)
	if err != nil || r.State != run.Succeeded {
		t.Fatalf("base image: %v, %s %s", err, r.State, r.Reason)
	}
	k.context = r.Spec.Context
	k.pushBase(t.Context(), 0)
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "killed.git")
	repo.Write("Dockerfile", "FROM "+k.host+"/kill/base:1\nCOPY Dockerfile /f\n", 0)
	repo.Commit("first")
	apply := filepath.Join(t.TempDir(), "tasks.yaml")
	document := fmt.Sprintf("apiVersion: kiln/v1\nkind: Task\nname: killed\ncontext: %s#main\n"+
		"step: {build: {images: ['kill/task:{{.Run.ID}}', 'kill/task:latest']}}\ntriggers: {baseImage: {quiet: 0s}}\n", gittest.Serve(t, root, "", "").URL+"/killed.git")
	if err := os.WriteFile(apply, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	k.kiln("apply", "-f", apply)
	return k
}

// customer has one run executed, of one kind or another, and checks how it ends.
func (k *massacre) customer(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	build := func(images ...string) run.Spec {
		return run.Spec{Context: k.context, Build: &run.BuildSpec{Images: images,
			DockerfileInline: fmt.Appendf(nil, "FROM scratch\nCOPY f /f\nCOPY <<n /n\n%d\nn\n", i)}}
	}
	script := func(s string) run.Spec { return taskFile("", "- cmd: $Registry/kill/box:1 sh -c '"+s+"'\n") }
	switch i % 7 {
	case 1:
		return k.order(ctx, i, build(fmt.Sprintf("kill/quick:n%d", i)), run.Succeeded)
	case 2:
		return k.order(ctx, i, build(fmt.Sprintf("kill/two:n%d", i), "kill/more"), run.Succeeded)
	case 3:
		return k.order(ctx, i, script("echo $((6 * 7))"), run.Succeeded)
	case 4:
		return k.order(ctx, i, script("exit 3"), run.Failed)
	case 5:
		return k.order(ctx, i, script("sleep 600"), run.Canceled)
	case 6:
		key, id := fmt.Sprint("task-", i), ""
		return k.follow(ctx, key, run.Succeeded, func(c *apiclient.Client) error {
			r, err := c.RunTask(ctx, "killed", apiclient.TaskRun{Key: key})
			id = r.ID
			return err
		}, &id)
	}
	k.pushBase(ctx, i)
	return nil
}

// taskFile is the request of a run of these steps.
func taskFile(context, steps string) run.Spec {
	return run.Spec{Context: context, TaskFile: &run.TaskFileSpec{Name: "acr-task.yaml", Content: []byte("version: v1.1.0\nsteps:\n" + steps)}}
}

// order has a run executed.
func (k *massacre) order(ctx context.Context, i int, spec run.Spec, want run.State) error {
	key, id := fmt.Sprint("order-", i), ""
	return k.follow(ctx, key, want, func(c *apiclient.Client) error {
		r, err := c.Submit(ctx, apiclient.Submit{Key: key, Spec: spec})
		id = r.ID
		return err
	}, &id)
}

// follow asks for a run until it is told which it is, and waits for its end.
func (k *massacre) follow(ctx context.Context, key string, want run.State, ask func(*apiclient.Client) error, id *string) error {
	if err := k.any(ctx, ask); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	k.mu.Lock()
	k.kept[key] = *id
	k.mu.Unlock()
	if want == run.Canceled {
		begun := func(r run.Run) bool { return r.State.Final() || r.State == run.Running }
		if _, err := k.record(ctx, *id, begun); err != nil {
			return err
		}
		if err := k.any(ctx, func(c *apiclient.Client) error { _, err := c.Cancel(ctx, *id); return err }); err != nil {
			return fmt.Errorf("cancel %s: %w", *id, err)
		}
	}
	r, err := k.record(ctx, *id, ended)
	if err == nil && r.State != want && !givenUp(r) {
		err = fmt.Errorf("run %s of %s is %s, want %s: %s", r.ID, key, r.State, want, r.Reason)
	}
	return err
}

// pushBase pushes another version of the base image that the task follows, by way of either server.
func (k *massacre) pushBase(ctx context.Context, i int) {
	k.base.Lock()
	defer k.base.Unlock()
	image := imageOf(k.t, fmt.Sprint("version ", i))
	err := k.any(ctx, func(c *apiclient.Client) error {
		ref, err := name.ParseReference(strings.TrimPrefix(c.BaseURL, "http://")+"/kill/base:1", name.Insecure)
		if err != nil {
			return err
		}
		return remote.Write(ref, image, remote.WithContext(ctx), remote.WithAuth(&authn.Basic{Username: "kiln", Password: c.Token}))
	})
	digest, derr := image.Digest()
	if err = errors.Join(err, derr); err != nil {
		k.t.Errorf("push: %v", err)
	}
	k.digest = digest.String()
}

// A blow is done to the cluster.
type blow struct {
	name string
	do   func()
}

// plan is what is done to the cluster, in this order, while runs are executed.
func (k *massacre) plan() []blow {
	end := func(p *process, s syscall.Signal) blow {
		return blow{fmt.Sprintf("%s gets %s", p.name, s), func() { p.end(s); p.start() }}
	}
	daemon := func(p *process, s syscall.Signal) blow {
		return blow{fmt.Sprintf("the build daemon of %s gets %s", p.name, s), func() {
			if pid := p.daemon(); pid > 0 {
				_ = syscall.Kill(pid, s)
			}
		}}
	}
	one, two, three := k.workers[0], k.workers[1], k.workers[2]
	return []blow{
		{"the first server is killed", func() { k.takeOver(k.first, k.second, syscall.SIGKILL) }},
		end(three, syscall.SIGKILL),
		end(k.nats, syscall.SIGKILL),
		daemon(one, syscall.SIGKILL),
		{"the second server is stopped", func() { k.takeOver(k.second, k.first, syscall.SIGTERM) }},
		end(two, syscall.SIGKILL),
		daemon(three, syscall.SIGTERM),
		{"a worker stands still", k.standStill},
		end(one, syscall.SIGTERM),
		end(k.nats, syscall.SIGTERM),
		{"the first server is stopped", func() { k.takeOver(k.first, k.second, syscall.SIGTERM) }},
		end(three, syscall.SIGTERM),
		daemon(one, syscall.SIGTERM),
		{"the second server is killed", func() { k.takeOver(k.second, k.first, syscall.SIGKILL) }},
		end(two, syscall.SIGTERM),
		daemon(three, syscall.SIGKILL),
		end(one, syscall.SIGKILL),
	}
}

// takeOver ends the server that acts, and waits until the other one does.
func (k *massacre) takeOver(acts, stands *process, s syscall.Signal) {
	says := func(p *process) int { return strings.Count(p.log.String(), `"acts now" role=scheduler`) }
	before := says(stands)
	begun := time.Now()
	acts.end(s)
	waitUntil(k.t, time.Minute, func() bool { return says(stands) > before }, func() string {
		return stands.name + " does not take over from " + acts.name
	})
	took := time.Since(begun)
	k.t.Logf("%s acts %s after %s got %s", stands.name, took.Round(10*time.Millisecond), acts.name, s)
	if took > 15*time.Second {
		k.t.Errorf("%s took over from %s after %s, want 5 s", stands.name, acts.name, took)
	}
	acts.start()
}

// standStill stops a worker for longer than its lease while it executes a run that is to publish. Another one
// takes the run over; when the worker goes on, it publishes nothing.
func (k *massacre) standStill() {
	ctx, cancel := context.WithTimeout(k.t.Context(), 3*time.Minute)
	defer cancel()
	spec := taskFile(k.context, "- build: -t $Registry/kill/zombie:$ID .\n- cmd: $Registry/kill/box:1 sleep 4\n- push: [$Registry/kill/zombie:$ID]\n")
	for n := 0; k.zombie == "" && ctx.Err() == nil; n++ {
		var r run.Run
		err := k.any(ctx, func(c *apiclient.Client) (err error) {
			r, err = c.Submit(ctx, apiclient.Submit{Key: fmt.Sprint("zombie-", n), Spec: spec})
			return err
		})
		if err == nil {
			r, err = k.record(ctx, r.ID, func(r run.Run) bool {
				return r.State.Final() || len(r.Steps) > 1 && r.Steps[1].State == run.StepRunning
			})
		}
		if err != nil {
			k.t.Fatal(err)
		}
		if !r.State.Final() {
			k.freeze(ctx, r)
		}
	}
}

// freeze has the worker of a run stand still until another one has the run.
func (k *massacre) freeze(ctx context.Context, r run.Run) {
	for _, w := range k.workers {
		if w.name != r.Attempts[r.Attempt-1].Worker {
			continue
		}
		_ = w.cmd.Process.Signal(syscall.SIGSTOP)
		defer func() { _ = w.cmd.Process.Signal(syscall.SIGCONT) }()
		now, err := k.record(ctx, r.ID, func(now run.Run) bool { return ended(now) || now.Attempt > r.Attempt && now.State == run.Running })
		if err != nil {
			k.t.Fatal(err)
		}
		if now.Attempt > r.Attempt { // else it was just about to end
			k.zombie = r.ID
			fmt.Fprintf(k.story, "%s stood still with run %s, attempt %d\n", w.name, r.ID, r.Attempt)
		}
	}
}

// settle waits until nothing is to be done any more.
func (k *massacre) settle(ctx context.Context) {
	k.t.Helper()
	r, err := k.record(ctx, k.zombie, ended)
	if err != nil || r.State != run.Succeeded && !givenUp(r) {
		k.t.Errorf("run %s, whose worker stood still: %v, %s: %s", k.zombie, err, r.State, r.Reason)
	}
	if len(r.Images) > 0 {
		if status := publishIn(k.t, k.server(k.first, 0), "kill/zombie", k.zombie, 1, r.Images[0].Digest); status != http.StatusConflict {
			k.t.Errorf("publication of the attempt whose worker stood still: status %d, want 409", status)
		}
	}
	seen := "nothing"
	waitUntil(k.t, 3*time.Minute, func() bool {
		runs, err := k.clients[1].Runs(ctx, apiclient.RunsQuery{Limit: 100})
		newest := ""
		for _, r := range runs {
			if !r.State.Final() {
				seen = fmt.Sprintf("run %s is %s: %s", r.ID, r.State, r.Reason)
				return false
			}
			for _, b := range r.Bases {
				if newest == "" && r.Task == "killed" && strings.HasSuffix(b.Ref, "/kill/base:1") {
					newest = b.Digest
				}
			}
		}
		seen = fmt.Sprintf("%v; the newest run of the task is of %s, pushed was %s", err, newest, k.digest)
		return err == nil && newest == k.digest
	}, func() string { return "not settled: " + seen })
	for _, w := range k.workers {
		waitFor(k.t, w.name+" to serve", func() bool {
			list, err := k.clients[0].Workers(ctx)
			for _, l := range list {
				if l.Name == w.name && l.State == apiclient.WorkerReady {
					return err == nil
				}
			}
			return false
		})
	}
}

// checkLedger compares what was stored with what was to happen.
func (k *massacre) checkLedger(ctx context.Context) {
	k.t.Helper()
	b, st := k.open()
	runs, finished, tags := map[string]run.Run{}, map[string]int{}, map[string][]string{}
	err := st.Runs.List(ctx, func(e store.Entry[run.Run]) bool { runs[e.Value.ID] = e.Value; return true })
	err = errors.Join(err, b.Tail(ctx, bus.StreamEvents, event.SubjectEvents, 0, false, func(_ uint64, data []byte) bool {
		var e event.Event
		var changed event.RunChanged
		var image event.Image
		err := json.Unmarshal(data, &e)
		switch e.Type {
		case event.TypeRunFinished:
			err = errors.Join(err, json.Unmarshal(e.Data, &changed))
			finished[changed.Run.ID]++
		case event.TypeImagePushed:
			err = errors.Join(err, json.Unmarshal(e.Data, &image))
			if image.Run != "" && image.Tag != "latest" {
				tags[image.Repository+":"+image.Tag] = append(tags[image.Repository+":"+image.Tag], image.Run)
			}
		}
		if err != nil {
			k.t.Error(err)
		}
		return true
	}))
	if err != nil {
		k.t.Fatal(err)
	}
	states, attempts := map[run.State]int{}, 0
	for id, r := range runs {
		states[r.State]++
		attempts += r.Attempt
		if r.State == run.Error {
			k.t.Logf("run %s of %s: %s", id, r.Cause.Request, r.Reason)
		}
		if !r.State.Final() || finished[id] != 1 {
			k.t.Errorf("run %s is %s, and %d times it was told that it has ended", id, r.State, finished[id])
		}
		for _, i := range r.Images {
			if i.Tag != "latest" && len(tags[i.Repository+":"+i.Tag]) != 1 {
				k.t.Errorf("run %s has published %s:%s, which was told of for runs %v", id, i.Repository, i.Tag, tags[i.Repository+":"+i.Tag])
			}
		}
	}
	for tag, by := range tags {
		if len(by) != 1 {
			k.t.Errorf("tag %s was written by %v", tag, by)
		}
	}
	for key, id := range k.kept {
		if runs[id].ID == "" {
			k.t.Errorf("%s was answered with run %s, which is not there", key, id)
		}
	}
	if states[run.Error] > len(runs)/4 {
		k.t.Errorf("too many runs were given up: %v", states)
	}
	k.t.Logf("%d runs in %d attempts, %v; %d tags", len(runs), attempts, states, len(tags))
	waitUntil(k.t, time.Minute, func() bool {
		n := 0
		err := st.Leases.List(ctx, func(store.Entry[event.Lease]) bool { n++; return true })
		return err == nil && n == 0
	}, func() string { return "leases are left" })
}

// checkEmpty stops all processes but NATS, and looks for what they have left.
func (k *massacre) checkEmpty() {
	k.t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(k.first.data, "registry", "registry.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		k.t.Fatal(err)
	}
	defer db.Close()
	fences := -1
	waitUntil(k.t, 2*time.Minute, func() bool { // what a server that was killed has left, the other one looks for
		err := db.QueryRow("SELECT count(*) FROM fence").Scan(&fences)
		return err == nil && fences == 0
	}, func() string { return fmt.Sprintf("%d fences are left", fences) })
	for _, p := range append([]*process{k.second, k.first}, k.workers...) {
		p.end(syscall.SIGTERM)
	}
	for _, p := range append([]*process{k.second, k.first}, k.workers...) {
		s := &server{t: k.t, data: p.data}
		checkNothingLeft(k.t, s)
		for _, left := range networksOf(s) {
			k.t.Errorf("left of %s: %s", p.name, left)
		}
	}
}
