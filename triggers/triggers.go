// Package triggers decides which runs are due.
//
// It folds facts into decisions: pushes to git repositories and registries, requests, timers, the ends of
// runs, and what it finds by itself when it compares the world with what it knows. Each fact is only a
// reason to look at the tracks of the tasks concerned; what counts is what refs and images resolve to
// after the track's state was read (see package decide).
//
// A decision is stored on the condition that the track's last one is still the one that it was made from,
// and it carries the run that it makes due. So a fact that is delivered again, to this process or another,
// finds its decision and changes nothing, and of two that are decided at once one is decided again. An
// event is acknowledged when the decisions about it are stored and the alarms that they need are set; until
// then it comes again. A fact that is lost is found when the world is reconciled.
//
// A repository or registry that cannot be reached delays the tasks that use it, and no others.
package triggers

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/graph"
	"kiln/internal/run"
	"kiln/internal/source/git"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/triggers/clock"
	"kiln/triggers/decide"
	"kiln/triggers/watch"
)

const (
	everyDefault = 5 * time.Minute
	inHand       = 64              // events of a kind that are decided at once
	ackWait      = 5 * time.Second // after which an event comes again whose decider has died
	setupsAtOnce = 8
)

// A Decider turns facts into decisions. Its fields are set before Run is called and not changed after. With
// no Store it decides requests for runs of no task, and nothing else.
type Decider struct {
	Bus      *bus.Bus
	Store    *store.Store
	Mirrors  *git.Mirrors // nil if no task may have a git repository
	Clock    *clock.Clock
	Images   *watch.Watcher // nil if base images are not looked up
	Registry string         // host of the co-located registry, as images name it
	Aliases  graph.Aliases
	// ImageAliases are the names that task files may use for images, as the operator has chosen them; nil means
	// the usual ones.
	ImageAliases map[string]string
	// Secret returns the value of a secret, for the repositories of tasks.
	Secret func(ctx context.Context, name string) (string, error)
	// Keys open the repositories of tasks that are reached by ssh and name no secret.
	Keys git.Keys
	// ForgeHTTP reaches forges; with it a sweep asks those for pull requests to which a hook or a task has a token.
	// Forges tells by a repository's host what forge it is, where neither a hook nor the host does.
	ForgeHTTP *http.Client
	Forges    map[string]string
	// Every is how often the world is reconciled; zero means every 5 minutes, less than zero never.
	Every time.Duration
	// LookUp is how long the server of a repository may take to list its refs; zero means 20 seconds.
	LookUp time.Duration
	// Decided is called with the kind of each decision that was stored just now; nil means nobody asks. It must not
	// block.
	Decided func(decide.Kind)
	Log     *slog.Logger

	cat         catalog
	ids         run.Minter
	branches    sync.Map // URL and secret to the name of the repository's default branch
	setups      chores   // tasks that are new, or have changed
	watching    chores   // one: the images to watch have changed
	swept       sync.Map // UID to what the last reconciliation has found of the task, a worldPrint
	generations sync.Map // UID to *atomic.Uint64
	tracks      sync.Map // UID to *tracks
	tellings    sync.Map // UID and number of a pull request to what a sweep has told of it
	sweeping    sync.Mutex
	lately      recent
	hosts       hosts
	backlog     backlog

	begin  sync.Once
	loaded chan struct{}   // closed when the catalog is there
	ahead  chan aheadFetch // to be fetched now
}

// ready returns a channel that is closed when all tasks are known. Whoever uses channels of d calls it first.
func (d *Decider) ready() chan struct{} {
	d.begin.Do(func() { d.loaded, d.ahead = make(chan struct{}), make(chan aheadFetch, aheadWaiting) })
	return d.loaded
}

// Run decides until ctx is done. It returns nil then, and an error only if it could not start or has lost
// what it reads. Run is called once.
func (d *Decider) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	loaded := d.ready()
	if d.Store == nil {
		close(loaded)
	} else {
		d.runTasks(ctx, g)
	}
	g.Go(func() error {
		select {
		case <-d.ready():
		case <-ctx.Done():
			return nil
		}
		return d.consume(ctx)
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("triggers: %w", err)
	}
	return nil
}

// runTasks keeps the catalog and has done what tasks call for.
func (d *Decider) runTasks(ctx context.Context, g *errgroup.Group) {
	d.runAhead(ctx, g)
	tasks, linked := make(chan struct{}), make(chan struct{})
	g.Go(func() error {
		return watched(ctx, "tasks", d.Store.Tasks.Watch(ctx, ">", func(e *store.Entry[task.Task]) bool {
			switch {
			case e == nil:
				close(tasks)
			case e.Gone:
				d.taskChange(ctx, e.Key, nil)
			default:
				d.taskChange(ctx, e.Key, &e.Value)
			}
			return true
		}))
	})
	g.Go(func() error {
		return watched(ctx, "links", d.Store.Links.Watch(ctx, ">", func(e *store.Entry[event.Links]) bool {
			switch {
			case e == nil:
				close(linked)
				return true
			case e.Gone:
				d.cat.setLinks(e.Key, nil)
			default:
				d.cat.setLinks(e.Key, &e.Value)
			}
			d.watching.add("")
			return true
		}))
	})
	g.Go(func() error {
		for _, there := range []chan struct{}{tasks, linked} {
			select {
			case <-there:
			case <-ctx.Done():
				return nil
			}
		}
		close(d.ready())
		g.Go(func() error { d.setups.run(ctx, setupsAtOnce, d.setUp); return nil })
		g.Go(func() error { d.watching.run(ctx, 1, d.rewatch); return nil })
		g.Go(func() error { return d.Clock.Run(ctx, d.alarm) })
		g.Go(func() error { d.sweep(ctx); return nil })
		return nil
	})
}

// watched is the error of a watch that has ended.
func watched(ctx context.Context, what string, err error) error {
	if err == nil && ctx.Err() == nil {
		return fmt.Errorf("the watch of %s has ended; restart the server", what)
	}
	return err
}

// Followed returns the names of the images that tasks are built on, as far as that is known.
func (d *Decider) Followed(ctx context.Context) ([]graph.Name, error) {
	if err := d.awaitReady(ctx); err != nil {
		return nil, err
	}
	return d.cat.images(), nil
}

// rewatch has the images watched that tasks are built on.
func (d *Decider) rewatch(context.Context, string) error {
	if d.Images != nil {
		d.Images.Track(d.cat.images())
	}
	return nil
}

// consume decides events until ctx is done.
func (d *Decider) consume(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	read := func(name string, filters ...string) {
		g.Go(func() error {
			var hands sync.WaitGroup
			err := d.Bus.Consume(ctx, bus.Consumer{Stream: bus.StreamEvents, Name: name, Filters: filters, AckWait: ackWait, Pending: inHand},
				func(m bus.Message) { d.receive(ctx, &hands, m) })
			hands.Wait()
			return err
		})
	}
	read("triggers-requests", event.RequestFilter)
	if d.Store != nil {
		read("triggers-git", event.GitFilter)
		read("triggers-images", event.ImagePushedFilter, event.RegistryFilter)
		read("triggers-finished", event.FinishedFilter)
	}
	return g.Wait()
}

// receive decides one delivery of an event. A request of no task is decided at once; others may wait for
// somebody and do so on the side. No more than inHand are in hand, as no more are delivered.
func (d *Decider) receive(ctx context.Context, hands *sync.WaitGroup, m bus.Message) {
	var ev event.Event
	if err := m.Decode(&ev); err != nil {
		m.Settle(err)
		return
	}
	if ev.Type == event.TypeRunRequested {
		var req event.RunRequested
		if err := decode(ev, &req); err != nil || req.TaskUID == "" {
			if err == nil {
				err = d.quick(ctx, ev, req)
			}
			m.Settle(err)
			return
		}
	}
	if ev.Source == sweepSource {
		m.Settle(nil) // the sweep that has stored it decides it; if that dies, the next one finds the same
		return
	}
	hands.Go(func() {
		stop := m.Keep(ackWait)
		seq, err := m.Sequence()
		if err == nil {
			err = d.handle(ctx, ev, seq, nil, false)
		}
		stop()
		m.Settle(err)
	})
}

// handle decides what an event makes due. Events of other types, and about what no task follows, make
// nothing due.
func (d *Decider) handle(ctx context.Context, ev event.Event, seq uint64, r *report, dry bool) error {
	occ := &occasion{event: ev.ID, seq: seq, at: ev.Time, origin: decide.FromEvent, report: r, dry: dry}
	switch ev.Type {
	case event.TypeGitPushed:
		return d.push(ctx, ev, occ)
	case event.TypePullRequestUpdated:
		return d.pull(ctx, ev, occ)
	case event.TypeImagePushed:
		return d.imagePushed(ctx, ev, occ)
	case event.TypeRegistryPushed:
		return d.registryPushed(ctx, ev, occ)
	case event.TypeRunFinished:
		if dry {
			return nil
		}
		return d.runFinished(ctx, ev)
	case event.TypeRunRequested:
		var req event.RunRequested
		if err := decode(ev, &req); err != nil || dry {
			return err
		}
		if req.TaskUID == "" {
			return d.quick(ctx, ev, req)
		}
		return d.taskRequest(ctx, ev, seq, req)
	}
	return nil
}

// count tells of a decision that is stored. One without a kind only says that changes are waited for.
func (d *Decider) count(dec *event.Decision) {
	made := &dec.Made
	if made.Kind == "" {
		return
	}
	d.Log.Info("decided", "event", made.Event, "task", dec.Task, "track", made.Track, "kind", made.Kind, "run", made.Run, "reason", made.Reason)
	if d.Decided != nil {
		d.Decided(made.Kind)
	}
}

// Replay handles the event with a sequence of the stream of events again, as if it came now. What was
// decided about it before still holds. A dry run stores nothing.
func (d *Decider) Replay(ctx context.Context, seq uint64, dryRun bool) (Report, error) {
	if err := d.awaitReady(ctx); err != nil {
		return Report{}, err
	}
	ev, err := d.eventAt(ctx, seq)
	if err != nil {
		return Report{}, err
	}
	r := &report{}
	err = d.handle(ctx, ev, seq, r, dryRun)
	return r.Report, err
}

func (d *Decider) awaitReady(ctx context.Context) error {
	select {
	case <-d.ready():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
