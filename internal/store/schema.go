package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Errors of state of another version.
var (
	// ErrNewer is returned for state that a later version of kiln has written.
	ErrNewer = errors.New("stored state is newer than this kiln")
	// ErrOlder is returned by Attach for state that has to be upgraded.
	ErrOlder = errors.New("stored state has to be upgraded")
	// ErrInUse is returned if processes work on state that has to be upgraded.
	ErrInUse = errors.New("stored state cannot be upgraded while others work on it")
)

// upgrades bring the state from version 1, which has no record of it, to the next ones. Each may be interrupted at any place and begins again then, and so
// changes nothing that it has changed already.
var upgrades = []func(context.Context, Upgrade, jetstream.JetStream) error{sealTargets}

const (
	bucketMeta = "meta"
	keySchema  = "schema"

	// poll is how often it is looked at what another process is about.
	poll = 100 * time.Millisecond
)

// A schema is the record of the state's version.
type schema struct {
	Version int       `json:"version"`
	By      string    `json:"by"` // version of kiln that has brought it there
	At      time.Time `json:"at"`
	// Upgrading is the process that brings the state to the next version, and Beats how often it has said that it lives.
	Upgrading string `json:"upgrading,omitempty"`
	Beats     int    `json:"beats,omitempty"`
}

// An Upgrade brings stored state to the version of this kiln, before anything else looks at it. Each step is made by one
// process at a time: of several that begin at once, the others wait, and go on where one was killed.
type Upgrade struct {
	By       string // version of this kiln
	Process  string // unique name of this process
	Replicas int    // as for OpenShared
	Raise    bool   // as for OpenShared
	// Lease is how long a process that says nothing is taken to be alive.
	Lease time.Duration
	// Seal seals a value to the servers of this state.
	Seal func(v any) ([]byte, error)
	Log  *slog.Logger

	steps []func(context.Context, Upgrade, jetstream.JetStream) error // for tests; upgrades if nil
}

// Run returns when the state has this kiln's version. State of a newer version is left as it is: ErrNewer.
func (u Upgrade) Run(ctx context.Context, nc *nats.Conn) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if u.steps == nil {
		u.steps = upgrades
	}
	w := upgrading{Upgrade: u, js: js}
	if err := w.record.open(ctx, buckets{js: js, replicas: u.Replicas, raise: u.Raise}, jetstream.KeyValueConfig{Bucket: bucketMeta}); err != nil {
		return err
	}
	for {
		done, err := w.step(ctx)
		if done || err != nil {
			return err
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
}

// upgrading is an Upgrade that runs.
type upgrading struct {
	Upgrade
	js     jetstream.JetStream
	record Bucket[schema]

	seen  uint64    // revision of the record that another is upgrading by
	since time.Time // when it was seen first
}

// step looks at the record and does the next thing that there is to do. It reports whether there is nothing.
func (w *upgrading) step(ctx context.Context) (done bool, err error) {
	newest := 1 + len(w.steps)
	s, rev, err := w.record.Get(ctx, keySchema)
	switch {
	case errors.Is(err, ErrNotFound):
		if s.Version, err = w.unrecorded(ctx, newest); err != nil {
			return false, err
		}
		s.By, s.At = w.By, time.Now().UTC()
		if _, err = w.record.Create(ctx, keySchema, s); errors.Is(err, ErrConflict) {
			err = nil
		}
		return false, err
	case err != nil:
		return false, err
	case s.Version > newest:
		return false, fmt.Errorf("%w: it has version %d, by kiln %s; kiln %s knows versions to %d", ErrNewer, s.Version, s.By, w.By, newest)
	case s.Version == newest:
		return true, nil
	case s.Upgrading != "" && s.Upgrading != w.Process && w.alive(rev):
		return false, nil
	}
	s.Upgrading, s.Beats = w.Process, 0
	if rev, err = w.record.Update(ctx, keySchema, s, rev); err == nil {
		err = w.upgrade(ctx, s, rev)
	}
	if errors.Is(err, ErrConflict) { // another one is about it
		err = nil
	}
	return false, err
}

// unrecorded is the version of state that has no record of it: before this was kept, or when there is no state yet. Whoever
// makes state has stored its record before.
func (w *upgrading) unrecorded(ctx context.Context, newest int) (int, error) {
	for _, stream := range []string{"EVENTS", "KV_" + BucketRuns} {
		if _, err := w.js.Stream(ctx, stream); err == nil {
			return 1, nil
		} else if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return 0, err
		}
	}
	return newest, nil
}

// alive reports whether the process that has written this revision of the record may still be about it. No clock
// but the own one says so.
func (w *upgrading) alive(rev uint64) bool {
	if rev != w.seen {
		w.seen, w.since = rev, time.Now()
	}
	return time.Since(w.since) < w.Lease
}

// upgrade brings the state to the next version. It returns ErrConflict if another process has taken this one for dead.
func (w *upgrading) upgrade(ctx context.Context, s schema, rev uint64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop, beating := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(beating)
		for pauseUntil(stop, w.Lease/3) {
			s.Beats++
			next, err := w.record.Update(ctx, keySchema, s, rev)
			if err != nil {
				cancel(err)
				return
			}
			rev = next
		}
	}()
	w.Log.Warn("state is being upgraded", "from", s.Version, "to", s.Version+1)
	err := w.unused(ctx)
	if err == nil {
		err = w.steps[s.Version-1](ctx, w.Upgrade, w.js)
	}
	close(stop)
	<-beating
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		w.release(ctx, s, rev)
		return fmt.Errorf("upgrade the state to version %d: %w", s.Version+1, err)
	}
	_, err = w.record.Update(ctx, keySchema, schema{Version: s.Version + 1, By: w.By, At: time.Now().UTC()}, rev)
	return err
}

// release lets others try at once what has failed here. Else they wait for a lease.
func (w *upgrading) release(ctx context.Context, s schema, rev uint64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	s.Upgrading, s.Beats = "", 0
	_, _ = w.record.Update(ctx, keySchema, s, rev)
}

// atWork are the buckets in which servers say that they work: one has been replaced by the others.
var atWork = []string{"servers", bucketRegistries, bucketLeaders}

// unused returns when no server works on the state, or ErrInUse if one goes on. What one that was killed has said
// expires.
func (w *upgrading) unused(ctx context.Context) error {
	for end := time.Now().Add(w.Lease + w.Lease/3); ; {
		var found []string
		for _, bucket := range atWork {
			keys, err := w.keys(ctx, bucket)
			if err != nil {
				return err
			}
			found = append(found, keys...)
		}
		switch {
		case len(found) == 0:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("%w: %s", ErrInUse, strings.Join(found, ", "))
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
}

// keys returns the keys of a bucket, each with its name, if there is one.
func (w *upgrading) keys(ctx context.Context, bucket string) ([]string, error) {
	kv, err := w.js.KeyValue(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys, err := kv.Keys(ctx)
	if errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, nil
	}
	for i := range keys {
		keys[i] = bucket + "/" + keys[i]
	}
	return keys, err
}

// upgraded returns an error unless the state has this kiln's version.
func upgraded(ctx context.Context, js jetstream.JetStream) error {
	var record Bucket[schema]
	err := record.attach(ctx, js, bucketMeta)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	s, _, err := record.Get(ctx, keySchema)
	switch newest := 1 + len(upgrades); {
	case err != nil:
		return err
	case s.Version > newest:
		return fmt.Errorf("%w: it has version %d, by kiln %s; this one knows versions to %d", ErrNewer, s.Version, s.By, newest)
	case s.Version < newest:
		return fmt.Errorf("%w: it has version %d, this kiln works on version %d", ErrOlder, s.Version, newest)
	}
	return nil
}

// pause waits for d or returns why ctx has ended.
func pause(ctx context.Context, d time.Duration) error {
	if pauseUntil(ctx.Done(), d) {
		return nil
	}
	return context.Cause(ctx)
}

// pauseUntil waits for d and returns true, or false if stop is closed before.
func pauseUntil(stop <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stop:
		return false
	}
}
