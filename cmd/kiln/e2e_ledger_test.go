package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/registry"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/triggers/decide"
)

// A ledger is all that a server has stored, read when it is not running.
type ledger struct {
	events    map[string]int // how often each is stored, by source and ID
	delivered map[string]int // how many came by a delivery, by its ID
	images    []event.Image  // published by runs, in order
	decisions map[string][]event.Decision
	runs      map[string]run.Run
	tasks     map[string]task.Task
	tags      map[string]string // digests of unique tags, by repository:tag
	pending   []string          // what is still to be handled
}

// keptDecisions is how many are kept of each track.
const keptDecisions = 64

// settle reconciles, waits until nothing is to be done any more, and stops the server.
func (c *chaos) settle() *ledger {
	c.t.Helper()
	client := &apiclient.Client{BaseURL: c.url, Token: c.token}
	if _, err := client.Reconcile(c.t.Context(), false); err != nil {
		c.t.Fatal(err)
	}
	for round := range 5 {
		if round > 0 {
			c.awaitRedelivery()
		}
		deadline := time.Now().Add(patience)
		for why := c.busy(client); why != ""; why = c.busy(client) {
			if time.Now().After(deadline) {
				c.t.Fatalf("not settled within %s: %s", patience, why)
			}
			waitABitFor(c.t, 2*senderPause)
		}
		c.stop()
		l := c.read()
		if len(l.pending) == 0 {
			checkNothingLeft(c.t, c.server)
			return l
		}
		c.t.Logf("once more, for %s", strings.Join(l.pending, ", "))
		c.start()
	}
	c.t.Fatal("there is always something left to be handled")
	return nil
}

// awaitRedelivery waits until what the last one had in hand who was killed has come again.
func (c *chaos) awaitRedelivery() {
	waitABitFor(c.t, max(redelivery-time.Since(c.died), 5*time.Second))
}

// busy says what is still going on.
func (c *chaos) busy(client *apiclient.Client) string {
	c.t.Helper()
	runs, err := client.Runs(c.t.Context(), apiclient.RunsQuery{Limit: 1, Status: []string{string(run.Queued), string(run.Started), string(run.Running)}})
	if err != nil {
		c.t.Fatal(err)
	}
	if len(runs) > 0 {
		return fmt.Sprintf("run %s is %s: %s", runs[0].ID, runs[0].State, runs[0].Reason)
	}
	found, err := client.Reconcile(c.t.Context(), true)
	if err != nil {
		c.t.Fatal(err)
	}
	if len(found.Due)+len(found.Problems) > 0 {
		return fmt.Sprintf("due %+v, problems %v", found.Due, found.Problems)
	}
	return ""
}

// read reads the ledger of a server that is stopped.
func (c *chaos) read() *ledger {
	c.t.Helper()
	ns, err := bus.StartServer(bus.ServerConfig{Dir: filepath.Join(c.data, "jetstream"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		c.t.Fatal(err)
	}
	defer ns.Shutdown()
	nc, err := ns.Connect("test")
	if err != nil {
		c.t.Fatal(err)
	}
	defer nc.Close()
	b, err := bus.Open(c.t.Context(), nc, slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatal(err)
	}
	st, err := store.Open(c.t.Context(), b.JetStream(), 15*time.Second)
	if err != nil {
		c.t.Fatal(err)
	}
	l := &ledger{events: map[string]int{}, delivered: map[string]int{}, decisions: map[string][]event.Decision{}, runs: map[string]run.Run{},
		tasks: map[string]task.Task{}, tags: map[string]string{}}
	err = errors.Join(l.readStreams(c.t.Context(), b), l.readPending(c.t.Context(), b),
		st.Runs.List(c.t.Context(), func(e store.Entry[run.Run]) bool { l.runs[e.Value.ID] = e.Value; return true }),
		st.Tasks.List(c.t.Context(), func(e store.Entry[task.Task]) bool { l.tasks[e.Value.Name] = e.Value; return true }),
		l.readTags(c.t.Context(), filepath.Join(c.data, "registry"), len(c.forges)))
	if err != nil {
		c.t.Fatal(err)
	}
	l.addUnfinished()
	return l
}

// addUnfinished lists the runs that have not ended, and the tracks that wait for further changes.
func (l *ledger) addUnfinished() {
	for id, r := range l.runs {
		if !r.State.Final() {
			l.pending = append(l.pending, fmt.Sprintf("run %s, which is %s", id, r.State))
		}
	}
	for key, list := range l.decisions {
		if list[len(list)-1].State.Pending != nil {
			l.pending = append(l.pending, "track "+key)
		}
	}
}

func (l *ledger) readStreams(ctx context.Context, b *bus.Bus) error {
	var errs []error
	errs = append(errs, b.Tail(ctx, bus.StreamEvents, event.SubjectEvents, 0, false, func(_ uint64, data []byte) bool {
		var e event.Event
		var image event.Image
		err := json.Unmarshal(data, &e)
		if via := deliveryOf(e); via.ID != "" {
			l.delivered[via.ID]++
		}
		if err == nil && e.Type == event.TypeImagePushed {
			if err = json.Unmarshal(e.Data, &image); image.Run != "" {
				l.images = append(l.images, image)
			}
		}
		l.events[e.ID]++
		errs = append(errs, err)
		return true
	}))
	errs = append(errs, b.Tail(ctx, bus.StreamDecisions, event.SubjectDecisions, 0, false, func(_ uint64, data []byte) bool {
		var d event.Decision
		errs = append(errs, json.Unmarshal(data, &d))
		if d.Run != nil || d.State.Known { // not a note
			key := d.TaskUID + " " + d.Made.Track
			l.decisions[key] = append(l.decisions[key], d)
		}
		return true
	}))
	return errors.Join(errs...)
}

// readPending lists the readers that have not handled everything.
func (l *ledger) readPending(ctx context.Context, b *bus.Bus) error {
	for _, stream := range []string{bus.StreamIntake, bus.StreamEvents, bus.StreamDecisions, bus.StreamReports} {
		s, err := b.JetStream().Stream(ctx, stream)
		if err != nil {
			return err
		}
		list := s.ListConsumers(ctx)
		for info := range list.Info() {
			if n := info.NumPending + uint64(info.NumAckPending); n > 0 && info.Config.Durable != "" {
				l.pending = append(l.pending, fmt.Sprintf("%d messages of %s", n, info.Name))
			}
		}
		if err := list.Err(); err != nil {
			return err
		}
	}
	return nil
}

// readTags finds the tags with the ID of a run in the repositories that the tasks publish to.
func (l *ledger) readTags(ctx context.Context, dir string, repositories int) error {
	st, err := registry.Open(dir, registry.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for i := range repositories {
		repository := fmt.Sprint("chaos/app-", i)
		for _, r := range l.runs {
			found, err := st.Resolve(ctx, repository, r.ID)
			switch {
			case err == nil:
				l.tags[repository+":"+r.ID] = found.Digest
			case !errors.Is(err, registry.ErrManifestUnknown) && !errors.Is(err, registry.ErrRepositoryUnknown):
				return errors.Join(err, st.Close())
			}
		}
	}
	return st.Close()
}

// check compares what was stored with what has happened.
func (c *chaos) check(l *ledger) {
	c.t.Helper()
	for _, id := range c.acknowledged {
		if l.events[id] == 0 {
			c.t.Errorf("event %s was acknowledged and is not stored", id)
		}
	}
	for _, id := range c.accepted {
		if n := l.delivered[id]; n != 1 {
			c.t.Errorf("delivery %s was accepted and is in %d events, want 1", id, n)
		}
	}
	for id, n := range l.events {
		if n != 1 {
			c.t.Errorf("event %s is stored %d times", id, n)
		}
	}
	c.checkDecisions(l)
	c.checkRequests(l)
	c.checkRuns(l)
	c.checkTags(l)
	kinds := map[string]int{}
	for _, f := range c.forges {
		for i, name := range f.tasks {
			for branch, head := range f.heads {
				if i == 1 && branch != "main" && branch != "release/0" {
					continue
				}
				kinds[c.checkTrack(l, l.tasks[name], f, branch, head)]++
			}
		}
	}
	states := map[run.State]int{}
	for _, r := range l.runs {
		states[r.State]++
	}
	c.t.Logf("%d events, %d deliveries of them, %d of these in batches, and %d repeated, %d requests; %d kills; %d stored events, runs %v, final states %v",
		c.events, c.deliveries, len(c.accepted), c.repeats, len(c.answers), c.kills, len(l.events), states, kinds)
}

// checkDecisions checks that each decision has its run and each run its decision, and that no track has run
// the same twice.
func (c *chaos) checkDecisions(l *ledger) {
	c.t.Helper()
	owner, whole := map[string]string{}, true
	for key, list := range l.decisions {
		whole = whole && len(list) < keptDecisions
		var last *decide.Snapshot
		for i, d := range list {
			if d.Made.Kind != decide.Run {
				continue
			}
			pin := d.Made.Pin
			switch before := owner[d.Run.ID]; {
			case before != "":
				c.t.Errorf("run %s is of two decisions, on %q and %q", d.Run.ID, before, key)
			case l.runs[d.Run.ID].ID == "":
				c.t.Errorf("run %s of %q was decided and is not there: %s", d.Run.ID, key, d.Made.Reason)
			case last != nil && last.Equal(*pin) && list[i-1].State.Considered.Equal(*pin):
				c.t.Errorf("run %s of %q repeats the one before: %s\n%s", d.Run.ID, key, d.Made.Reason, l.story(key))
			}
			owner[d.Run.ID], last = key, pin
		}
	}
	for id, r := range l.runs {
		if whole && owner[id] == "" {
			c.t.Errorf("run %s of %s has no decision: %+v", id, r.Task, r.Cause)
		}
	}
	if !whole {
		c.t.Log("some tracks have had more decisions than are kept")
	}
}

// checkRequests checks that each request has one run, of which everybody who asked was told.
func (c *chaos) checkRequests(l *ledger) {
	c.t.Helper()
	for key, task := range c.asked {
		runs := map[string]bool{}
		for _, r := range l.runs {
			if r.Cause.Request == key || strings.HasSuffix(r.Cause.Request, "/"+key) {
				runs[r.ID] = true
			}
		}
		if len(runs) != 1 || !maps.Equal(runs, c.answers[key]) {
			c.t.Errorf("request %s for a run of %s: answered with %v, runs %v", key, task, c.answers[key], runs)
		}
	}
}

// checkRuns checks that every run has ended as it may.
func (c *chaos) checkRuns(l *ledger) {
	c.t.Helper()
	for _, r := range l.runs {
		switch {
		case r.State == run.Succeeded:
		case r.State == run.Canceled && r.CancelBy == "" && strings.Contains(r.Reason, "supersed"):
		case givenUp(r):
			c.t.Logf("run %s was killed too often: %s", r.ID, r.Reason)
		default:
			c.t.Errorf("run %s of %s on %s is %s: %s", r.ID, r.Task, r.Cause.Track, r.State, r.Reason)
		}
	}
}

// givenUp reports whether a run was killed so often that it was given up, which is an end too.
func givenUp(r run.Run) bool {
	return r.State == run.Error && strings.Contains(r.Reason, "given up after 3")
}

// cutOff reports whether an attempt of a run was lost after which it was not executed to its end: it was given up,
// or superseded while it waited for the next attempt. It may have published before.
func cutOff(r run.Run) bool { return givenUp(r) || r.State == run.Canceled && r.Attempt > 0 }

// checkTags checks that every run has published what it says, once, and nobody else has under its name.
func (c *chaos) checkTags(l *ledger) {
	c.t.Helper()
	told := map[string][]event.Image{}
	for _, i := range l.images {
		if strings.HasPrefix(i.Repository, "chaos/") && i.Tag != "latest" {
			told[i.Repository+":"+i.Tag] = append(told[i.Repository+":"+i.Tag], i)
		}
	}
	allowed := map[string]bool{}
	for _, r := range l.runs {
		if !strings.HasPrefix(r.Task, "everything-") || r.State != run.Succeeded && !cutOff(r) {
			continue
		}
		tag := "chaos/app-" + strings.TrimPrefix(r.Task, "everything-") + ":" + r.ID
		allowed[tag] = true
		if cutOff(r) && l.tags[tag] == "" && len(told[tag]) == 0 {
			continue // it was killed before it had published
		}
		if len(told[tag]) != 1 || told[tag][0].Run != r.ID || told[tag][0].Digest != l.tags[tag] {
			c.t.Errorf("run %s (%s): events %+v, tag %s", r.ID, r.State, told[tag], l.tags[tag])
		}
		if r.State == run.Succeeded && (len(r.Images) != 2 || l.tags[tag] != r.Images[0].Digest) {
			c.t.Errorf("run %s: record %+v, tag %s", r.ID, r.Images, l.tags[tag])
		}
	}
	for tag := range l.tags {
		if !allowed[tag] {
			c.t.Errorf("tag %s is of no run that may have published it", tag)
		}
	}
}

// checkTrack checks that what a branch and the base image are in the end was executed, or refused with a reason.
func (c *chaos) checkTrack(l *ledger, t task.Task, f *chaosForge, branch, head string) (how string) {
	c.t.Helper()
	track := decide.Track{Kind: decide.TrackBranch, Name: branch}
	bases := map[string]string{}
	if branch == "main" {
		track = decide.Track{Kind: decide.TrackDefault}
		if f.base != "" {
			bases[f.base] = c.digests[f.base]
		}
	}
	key := t.UID + " " + track.Key()
	list := l.decisions[key]
	if len(list) == 0 {
		if head != "" {
			c.t.Errorf("%s: nothing was decided about %s at %s", t.Name, branch, head)
		}
		return "never seen"
	}
	fits := func(s decide.Snapshot) bool {
		return s.Commit == head && (branch != "main" || maps.Equal(s.Bases, bases))
	}
	s := list[len(list)-1].State
	if c.silent && head == "" {
		return "gone" // that a branch under a pattern was deleted is told by events only
	}
	if !s.Known || s.Pending != nil || !fits(s.Considered) {
		c.t.Errorf("%s: %s is at %s with %v and not considered\n%s", t.Name, branch, head, bases, l.story(key))
		return "not considered"
	}
	if s.Run != "" && fits(s.Attempted) {
		r := l.runs[s.Run]
		if r.State != run.Succeeded && !cutOff(r) {
			c.t.Errorf("%s: run %s of the final state of %s is %s: %s", t.Name, r.ID, branch, r.State, r.Reason)
		}
		return string(r.State)
	}
	for i := len(list) - 1; i >= 0; i-- {
		if i > 0 && fits(list[i-1].State.Considered) {
			continue // it was considered before
		}
		switch d := list[i].Made; {
		case d.Kind == decide.Filtered && d.Reason != "", d.Kind == decide.Unchanged && d.Origin == decide.FromBaseline:
			return string(d.Kind) + " " + d.Filter
		}
		break
	}
	c.t.Errorf("%s: %s is at %s and was neither executed nor refused\n%s", t.Name, branch, head, l.story(key))
	return "forgotten"
}

// story tells what was decided on a track.
func (l *ledger) story(key string) string {
	var b strings.Builder
	for _, d := range l.decisions[key] {
		fmt.Fprintf(&b, "%s %s %s run=%s event=%s seq=%d origin=%s: %s\n\tobserved %.7s %v considered %.7s %v attempted %.7s %v pending %+v\n",
			d.Made.Time.Format("15:04:05.000"), key, d.Made.Kind, d.Made.Run, d.Made.Event, d.Seq, d.Made.Origin, d.Made.Reason,
			d.State.Observed.Commit, d.State.Observed.Bases, d.State.Considered.Commit, d.State.Considered.Bases,
			d.State.Attempted.Commit, d.State.Attempted.Bases, d.State.Pending)
	}
	return b.String()
}
