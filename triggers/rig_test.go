package triggers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/gittest"
	"kiln/internal/graph"
	"kiln/internal/natstest"
	"kiln/internal/registry"
	"kiln/internal/registrytest"
	"kiln/internal/run"
	"kiln/internal/source/git"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/triggers"
	"kiln/triggers/clock"
	"kiln/triggers/decide"
	"kiln/triggers/watch"
)

// local is a registry as the watcher asks the co-located one.
type local struct{ *registry.Store }

func (l local) Digest(ctx context.Context, repository, reference string) (string, error) {
	d, err := l.Resolve(ctx, repository, reference)
	return d.Digest, err
}

// A rig is everything that a Decider needs, for real.
type rig struct {
	t       *testing.T
	bus     *bus.Bus
	store   *store.Store
	git     *gittest.Server
	mirrors *git.Mirrors
	reg     *registrytest.Registry
	every   time.Duration
	lookUp  time.Duration
	idle    bool // nothing is admitted until the test says so
	stop    func()
	d       *triggers.Decider
	events  atomic.Int64
	secrets map[string]string
	poll    time.Duration // how often images of other registries are asked for; 0 means never

	mu   sync.Mutex
	seen map[string][]event.Decision // by the task's UID
}

// newRig makes everything but the Decider, which start starts.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, bus: natstest.Start(t), reg: registrytest.Start(t), every: -1}
	var err error
	if r.store, err = store.Open(t.Context(), r.bus.JetStream(), time.Minute); err != nil {
		t.Fatal(err)
	}
	r.git = gittest.Serve(t, t.TempDir(), "", "")
	r.mirrors, err = git.New(git.Config{Dir: t.TempDir(),
		Allow:     func(_ string, a netip.Addr) bool { return a.IsLoopback() },
		PlainHTTP: func(string) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.mirrors.Close(); err != nil {
			t.Error(err)
		}
	})
	r.relay()
	r.follow()
	return r
}

func (r *rig) start() {
	r.t.Helper()
	if !r.idle {
		r.idle = true
		r.admit()
	}
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("TRIGGERS_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	r.d = &triggers.Decider{Bus: r.bus, Store: r.store, Mirrors: r.mirrors, Registry: r.reg.Host, Every: r.every, LookUp: r.lookUp, Log: log,
		ForgeHTTP: http.DefaultClient,
		Secret: func(_ context.Context, name string) (string, error) {
			if value, ok := r.secrets[name]; ok {
				return value, nil
			}
			return "", fmt.Errorf("no secret %q", name)
		},
		Clock:  &clock.Clock{Bus: r.bus, Log: log},
		Images: &watch.Watcher{Store: r.store, Bus: r.bus, Local: local{r.reg.Store}, Registry: r.reg.Host, Every: r.poll, Log: log}}
	done := make(chan error, 1)
	d := r.d
	go func() {
		var all errgroup.Group
		all.Go(func() error { return d.Run(ctx) })
		if r.poll > 0 {
			all.Go(func() error { return d.Images.Run(ctx) })
		}
		done <- all.Wait()
	}()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		r.stop = func() {}
	}
	r.t.Cleanup(func() { r.stop() })
}

// admit reads decisions as the scheduler does, and returns what tells the runs so far.
func (r *rig) admit() func() []run.Run {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var mu sync.Mutex
	var runs []run.Run
	go func() {
		defer close(done)
		err := r.bus.Consume(ctx, bus.Consumer{Stream: bus.StreamDecisions, Name: "scheduler", Filter: event.SubjectDecisions}, func(m bus.Message) {
			var d event.Decision
			err := m.Decode(&d)
			if mu.Lock(); err == nil && d.Made.Kind == decide.Run && d.Run != nil {
				runs = append(runs, *d.Run)
			}
			mu.Unlock()
			m.Settle(err)
		})
		if err != nil {
			r.t.Error(err)
		}
	}()
	r.t.Cleanup(func() { cancel(); <-done })
	return func() []run.Run {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(runs)
	}
}

// relay publishes what is pushed to the registry, as a server does.
func (r *rig) relay() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.reg.Store.Relay(ctx, func(ctx context.Context, events []registry.OutboxEvent) error {
			for _, e := range events {
				ev, err := event.New(e.ID, "/v2/"+e.Repository, e.Type, e.Time, event.Image{Registry: r.reg.Host,
					Repository: e.Repository, Tag: e.Tag, Digest: e.Digest, MediaType: e.MediaType, Run: e.Run})
				if err != nil {
					return err
				}
				if _, err := r.bus.Publish(ctx, event.ImageSubject(e.Type, e.Repository), e.ID, ev); err != nil {
					return err
				}
			}
			return nil
		})
	}()
	r.t.Cleanup(func() { cancel(); <-done })
}

// repo makes a repository with a Dockerfile that is built from an image of the registry.
func (r *rig) repo(name string) (*gittest.Repo, string) {
	r.t.Helper()
	repo := gittest.NewRepo(r.t, r.git.Root, name+".git")
	repo.Write("Dockerfile", "FROM "+r.reg.Host+"/base:1\nRUN true\n", 0)
	repo.Commit("the beginning")
	return repo, r.git.URL + "/" + name + ".git"
}

// push puts an image into the registry and returns its digest.
func (r *rig) push(repository, tag, content string) string {
	r.t.Helper()
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"content":%q}}`, content)
	digest, err := r.reg.Store.PutManifest(r.t.Context(), repository, tag, "application/vnd.oci.image.index.v1+json", []byte(body))
	if err != nil {
		r.t.Fatal(err)
	}
	return digest
}

// create stores a task that builds the Dockerfile of a repository when main is pushed.
func (r *rig) create(name, context string, change ...func(*task.Task)) *task.Task {
	r.t.Helper()
	none := task.Duration(0)
	now := time.Now().UTC()
	t := &task.Task{Name: name, UID: fmt.Sprintf("uid%s%d", name, r.events.Add(1)), Context: context, Created: now, Updated: now,
		Step:     task.Step{Build: &task.Build{Images: []string{name + ":latest"}}},
		Triggers: task.Triggers{Source: []task.SourceTrigger{{Name: "push"}}, BaseImage: task.BaseImageTrigger{Quiet: &none}}}
	for _, f := range change {
		f(t)
	}
	t.Normalize()
	if err := t.Validate(); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.store.Tasks.Put(r.t.Context(), store.TaskKey(name), *t); err != nil {
		r.t.Fatal(err)
	}
	return t
}

// ready waits until the task has its baseline.
func (r *rig) ready(t *task.Task) {
	r.t.Helper()
	r.eventually("baseline of "+t.Name, func() bool {
		last := r.last(t, decide.Track{Kind: decide.TrackDefault})
		_, _, err := r.store.Links.Get(r.t.Context(), t.UID)
		return last.State.Known && last.State.Considered.Definition == t.Hash() && err == nil
	})
}

func (r *rig) last(t *task.Task, track decide.Track) event.Decision {
	r.t.Helper()
	var d event.Decision
	if _, err := r.bus.Last(r.t.Context(), bus.StreamDecisions, event.DecisionSubject(t.UID, track.Key()), &d); err != nil && err != bus.ErrNone {
		r.t.Fatal(err)
	}
	return d
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	deadline, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			r.dump()
			r.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// decisions returns all decisions about a task, notes included.
func (r *rig) decisions(t *task.Task) []event.Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen[t.UID])
}

// follow collects decisions.
func (r *rig) follow() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r.seen = map[string][]event.Decision{}
	go func() {
		defer close(done)
		err := r.bus.Tail(ctx, bus.StreamDecisions, event.SubjectDecisions, 0, true, func(_ uint64, data []byte) bool {
			var d event.Decision
			if err := json.Unmarshal(data, &d); err != nil {
				r.t.Error(err)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.seen[d.TaskUID] = append(r.seen[d.TaskUID], d)
			return true
		})
		if err != nil {
			r.t.Error(err)
		}
	}()
	r.t.Cleanup(func() { cancel(); <-done })
}

// dump shows what was decided, when a test has failed.
func (r *rig) dump() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, list := range r.seen {
		for _, d := range list {
			r.t.Logf("%s %s %s: %s: %s", d.Task, d.Made.Track, d.Made.Kind, d.Made.Origin, d.Made.Reason)
		}
	}
}

func (r *rig) runs(t *task.Task) []*run.Run {
	var runs []*run.Run
	for _, d := range r.decisions(t) {
		if d.Made.Kind == decide.Run && d.Run != nil {
			runs = append(runs, d.Run)
		}
	}
	return runs
}

// wantRuns waits for the runs of a task, and then makes sure that all events have been decided and there
// are no more.
func (r *rig) wantRuns(t *task.Task, n int) []*run.Run {
	r.t.Helper()
	r.eventually(fmt.Sprintf("%d runs of %s", n, t.Name), func() bool { return len(r.runs(t)) >= n })
	r.settled()
	r.caughtUp()
	runs := r.runs(t)
	if len(runs) != n {
		r.dump()
		r.t.Fatalf("%d runs of %s, want %d", len(runs), t.Name, n)
	}
	return runs
}

// caughtUp waits until the decisions collected are all that are stored.
func (r *rig) caughtUp() {
	r.t.Helper()
	id := fmt.Sprint("mark", r.events.Add(1))
	if _, err := r.bus.Publish(r.t.Context(), event.NoteSubject("mark"), id, event.Decision{TaskUID: id}); err != nil {
		r.t.Fatal(err)
	}
	r.eventually("all decisions read", func() bool { return len(r.decisions(&task.Task{UID: id})) > 0 })
}

// settled waits until all events are acknowledged.
func (r *rig) settled() {
	r.t.Helper()
	r.eventually("all events decided", func() bool {
		for _, name := range []string{"triggers-git", "triggers-images", "triggers-requests", "triggers-finished"} {
			c, err := r.bus.JetStream().Consumer(r.t.Context(), bus.StreamEvents, name)
			if err != nil {
				return false
			}
			info := c.CachedInfo()
			if info.NumPending > 0 || info.NumAckPending > 0 {
				return false
			}
		}
		return true
	})
}

func (r *rig) publish(subject, id, typ string, data any) {
	r.t.Helper()
	ev, err := event.New(id, "/test", typ, time.Now().UTC(), data)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.bus.Publish(r.t.Context(), subject, fmt.Sprint(id, r.events.Add(1)), ev); err != nil {
		r.t.Fatal(err)
	}
}

// pushed tells of a push, n times.
func (r *rig) pushed(id, location, ref, before, after string, change ...func(*event.GitPushed)) {
	r.t.Helper()
	e := event.GitPushed{Repository: event.Repository{Provider: "github", FullName: "o/r", CloneURLs: []string{location}, DefaultBranch: "main"},
		Ref: ref, Before: before, After: after, Pusher: event.Person{Login: "kim"}}
	for _, f := range change {
		f(&e)
	}
	r.publish(event.DeliverySubject(event.TypeGitPushed, id), id, event.TypeGitPushed, e)
}

func (r *rig) base() string { return r.reg.Host + "/base:1" }

func canonical(t *testing.T, ref string) string {
	t.Helper()
	n, err := graph.Canonical(ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(n)
}

// reasons are the decisions of a kind, as one text.
func (r *rig) reasons(t *task.Task, kind decide.Kind) string {
	var all []string
	for _, d := range r.decisions(t) {
		if d.Made.Kind == kind {
			all = append(all, d.Made.Reason)
		}
	}
	return strings.Join(all, "\n")
}
