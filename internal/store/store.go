// Package store keeps the truth about runs, workers and leases in JetStream KV.
//
// Every write states the revision it replaces and fails with ErrConflict when another came first, so
// two writers cannot overwrite each other unseen. Reads return the latest stored value. Runs are on
// disk; leases and workers expire by themselves, because they say only who is alive. Where the message store
// lives and dies with those they are about, they are in memory.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/task"
)

// ErrConflict is returned when a record has changed since it was read, or exists when it is created.
var ErrConflict = errors.New("record was changed by somebody else")

// ErrNotFound is returned when there is no such record.
var ErrNotFound = errors.New("not found")

// BucketRuns is the bucket that holds run records.
const BucketRuns = "runs"

const (
	bucketTargets    = "targets"
	bucketWorkers    = "workers"
	bucketRegistries = "registries"
	bucketLeaders    = "leaders"
)

// A Store is kiln's state. It is safe for concurrent use.
type Store struct {
	Runs    Bucket[run.Run]
	Tasks   Bucket[task.Task]          // by TaskKey
	Secrets Bucket[event.Secret]       // by event.Hash of the name
	Hooks   Bucket[event.Hook]         // by ID
	Images  Bucket[event.TrackedImage] // by event.Hash of the canonical name
	Links   Bucket[event.Links]        // by task UID
	Trusted Bucket[string]             // who is trusted, by event.Hash of repository and author: who said so
	Targets Bucket[event.Target]       // by ID
	Tokens  Bucket[event.Token]        // by auth.TokenKey of the name
	// TokenUse is when tokens were used last, by their keys. A token that was not used for a year has no record.
	TokenUse Bucket[event.TokenUse]
	// Undelivered are notifications that were given up, by target and hash of the event's ID.
	Undelivered Bucket[event.Undelivered]
	Leases      Bucket[event.Lease]  // by run ID; a key expires LeaseTTL after its last write
	Workers     Bucket[event.Worker] // by instance; a key expires LeaseTTL after its last write
	Drains      Bucket[event.Drain]  // by event.Hash of the worker's name
	// Registries has one key, of the process that serves the co-located registry; it expires LeaseTTL after its
	// last write.
	Registries Bucket[event.Registry]
	Leaders    Bucket[string] // who acts, of the processes that could, by what they do; a key expires LeaderTTL after its last write
	// LeaseTTL is how long a lease and a worker's registration live without being refreshed.
	LeaseTTL time.Duration
}

// LeaderTTL is how long somebody is taken to act who has not said so again.
const LeaderTTL = 3 * time.Second

// Streams returns the names of the streams that the records are in which outlive those they are about: all but
// leases, workers, registries and leaders.
func Streams() []string {
	var names []string
	for _, bucket := range []string{BucketRuns, "tasks", "secrets", "hooks", "images", "links", "trusted", "tokens", "tokenuse", "targets",
		"undelivered", "drains"} {
		names = append(names, "KV_"+bucket)
	}
	return names
}

// Open creates the buckets if need be. LeaseTTL is how long a lease and a worker's registration live
// without being refreshed.
func Open(ctx context.Context, js jetstream.JetStream, leaseTTL time.Duration) (*Store, error) {
	return open(ctx, buckets{js: js, replicas: 1}, leaseTTL, jetstream.MemoryStorage)
}

// OpenShared is Open on a message store that may restart while workers go on, and that may be a cluster of servers.
// On so many of them, replicas, a new bucket has copies; with raise, an existing one too. It never gets fewer than it has.
func OpenShared(ctx context.Context, js jetstream.JetStream, leaseTTL time.Duration, replicas int, raise bool) (*Store, error) {
	return open(ctx, buckets{js: js, replicas: replicas, raise: raise}, leaseTTL, jetstream.FileStorage)
}

// Attach opens the buckets that another process has made. It returns ErrNotFound if there are none, and ErrOlder until
// such a process has upgraded them.
func Attach(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	if err := upgraded(ctx, js); err != nil {
		return nil, err
	}
	workers, err := js.KeyValue(ctx, bucketWorkers)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucketWorkers, err)
	}
	status, err := workers.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", bucketWorkers, err)
	}
	s := Store{LeaseTTL: status.TTL()}
	return &s, errors.Join(
		s.Workers.attach(ctx, js, bucketWorkers), s.Leases.attach(ctx, js, "leases"), s.Registries.attach(ctx, js, bucketRegistries))
}

func open(ctx context.Context, js buckets, leaseTTL time.Duration, alive jetstream.StorageType) (*Store, error) {
	expiring := func(name string, ttl time.Duration) jetstream.KeyValueConfig {
		return jetstream.KeyValueConfig{Bucket: name, TTL: ttl, LimitMarkerTTL: ttl, Storage: alive}
	}
	s := Store{LeaseTTL: leaseTTL}
	err := errors.Join(
		s.Runs.open(ctx, js, jetstream.KeyValueConfig{Bucket: BucketRuns, LimitMarkerTTL: markerTTL}),
		s.Tasks.open(ctx, js, jetstream.KeyValueConfig{Bucket: "tasks", History: 8}),
		s.Secrets.open(ctx, js, jetstream.KeyValueConfig{Bucket: "secrets"}),
		s.Hooks.open(ctx, js, jetstream.KeyValueConfig{Bucket: "hooks"}),
		s.Images.open(ctx, js, jetstream.KeyValueConfig{Bucket: "images"}),
		s.Links.open(ctx, js, jetstream.KeyValueConfig{Bucket: "links"}),
		s.Trusted.open(ctx, js, jetstream.KeyValueConfig{Bucket: "trusted"}),
		s.Tokens.open(ctx, js, jetstream.KeyValueConfig{Bucket: "tokens"}),
		s.TokenUse.open(ctx, js, jetstream.KeyValueConfig{Bucket: "tokenuse", TTL: 365 * 24 * time.Hour}),
		s.Targets.open(ctx, js, jetstream.KeyValueConfig{Bucket: bucketTargets}),
		s.Undelivered.open(ctx, js, jetstream.KeyValueConfig{Bucket: "undelivered", TTL: 30 * 24 * time.Hour, MaxBytes: 256 << 20}),
		s.Drains.open(ctx, js, jetstream.KeyValueConfig{Bucket: "drains"}),
		s.Leases.open(ctx, js, expiring("leases", leaseTTL)),
		s.Workers.open(ctx, js, expiring(bucketWorkers, leaseTTL)),
		s.Registries.open(ctx, js, expiring(bucketRegistries, leaseTTL)),
		s.Leaders.open(ctx, js, expiring(bucketLeaders, LeaderTTL)),
	)
	return &s, err
}

// markerTTL is how long it is stored that a run was removed: who follows the runs learns of it until then.
const markerTTL = 7 * 24 * time.Hour

// TaskKey is the key of the task with a name. Two names that differ in case only are the same.
func TaskKey(name string) string { return event.Hash(task.NameKey(name)) }

// A Bucket holds records of one type by key. Keys are IDs or hashes, never a user's text.
type Bucket[T any] struct {
	kv   jetstream.KeyValue
	name string
	mark []jetstream.KVDeleteOpt // of what is removed
}

func (b *Bucket[T]) open(ctx context.Context, in buckets, cfg jetstream.KeyValueConfig) error {
	kv, err := in.open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", cfg.Bucket, err)
	}
	b.kv, b.name = kv, cfg.Bucket
	if cfg.LimitMarkerTTL > 0 && cfg.TTL == 0 {
		b.mark = []jetstream.KVDeleteOpt{jetstream.PurgeTTL(cfg.LimitMarkerTTL)}
	}
	return nil
}

func (b *Bucket[T]) attach(ctx context.Context, js jetstream.JetStream, name string) error {
	kv, err := js.KeyValue(ctx, name)
	if err != nil {
		return fmt.Errorf("bucket %s: %w", name, err)
	}
	b.kv, b.name = kv, name
	return nil
}

// Reach returns nil if the message store answers for the bucket.
func (b *Bucket[T]) Reach(ctx context.Context) error {
	if _, err := b.kv.Status(ctx); err != nil {
		return fmt.Errorf("bucket %s: %w", b.name, err)
	}
	return nil
}

// Get returns the record and its revision, or ErrNotFound.
func (b *Bucket[T]) Get(ctx context.Context, key string) (T, uint64, error) {
	var v T
	e, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return v, 0, fmt.Errorf("%s %q: %w", b.name, key, ErrNotFound)
	}
	if err != nil {
		return v, 0, fmt.Errorf("%s %q: %w", b.name, key, err)
	}
	if err := json.Unmarshal(e.Value(), &v); err != nil {
		return v, 0, fmt.Errorf("%s %q: stored record: %w", b.name, key, err)
	}
	return v, e.Revision(), nil
}

// Create stores a new record and returns its revision, or ErrConflict if the key exists.
func (b *Bucket[T]) Create(ctx context.Context, key string, v T) (uint64, error) {
	return b.write(key, v, func(data []byte) (uint64, error) { return b.kv.Create(ctx, key, data) })
}

// Update replaces the record of that revision and returns the new one, or ErrConflict.
func (b *Bucket[T]) Update(ctx context.Context, key string, v T, revision uint64) (uint64, error) {
	return b.write(key, v, func(data []byte) (uint64, error) { return b.kv.Update(ctx, key, data, revision) })
}

// Put stores the record whatever was there.
func (b *Bucket[T]) Put(ctx context.Context, key string, v T) (uint64, error) {
	return b.write(key, v, func(data []byte) (uint64, error) { return b.kv.Put(ctx, key, data) })
}

func (b *Bucket[T]) write(key string, v T, store func([]byte) (uint64, error)) (uint64, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return 0, err
	}
	rev, err := store(data)
	if errors.Is(err, jetstream.ErrKeyExists) {
		err = ErrConflict
	}
	if err != nil {
		return 0, fmt.Errorf("%s %q: %w", b.name, key, err)
	}
	return rev, nil
}

// Delete removes a record; a missing one is no error.
func (b *Bucket[T]) Delete(ctx context.Context, key string) error {
	if err := b.kv.Purge(ctx, key, b.mark...); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return fmt.Errorf("%s %q: %w", b.name, key, err)
	}
	return nil
}

// Remove removes the record of that revision, or returns ErrConflict.
func (b *Bucket[T]) Remove(ctx context.Context, key string, revision uint64) error {
	err := b.kv.Purge(ctx, key, append(slices.Clone(b.mark), jetstream.LastRevision(revision))...)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		err = ErrConflict
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", b.name, key, err)
	}
	return nil
}

// List calls visit with every record as it is now, in no order, until visit returns false.
func (b *Bucket[T]) List(ctx context.Context, visit func(Entry[T]) bool) error {
	err := b.Watch(ctx, ">", func(e *Entry[T]) bool { return e != nil && visit(*e) }, jetstream.IgnoreDeletes())
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// An Entry is one state of a record.
type Entry[T any] struct {
	Key      string
	Revision uint64
	Value    T
	Gone     bool // deleted or expired; Value is empty
}

// Watch delivers the record under key (or every record, for ">") as it is now and at each change,
// until ctx is done or handle returns false. Once the present state has been delivered, handle gets
// nil once.
func (b *Bucket[T]) Watch(ctx context.Context, key string, handle func(*Entry[T]) bool, opts ...jetstream.WatchOpt) error {
	w, err := b.kv.Watch(ctx, key, opts...)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("watch %s: %w", b.name, err)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Updates():
			if !ok {
				return nil
			}
			entry, err := decode[T](e)
			if err != nil {
				return fmt.Errorf("watch %s: %w", b.name, err)
			}
			if !handle(entry) {
				return nil
			}
		}
	}
}

// Scan delivers every record as it is now, in its stored form, for those that look for little in many.
func (b *Bucket[T]) Scan(ctx context.Context, handle func(key string, data []byte)) error {
	w, err := b.kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("scan %s: %w", b.name, err)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("scan %s: the connection was closed", b.name)
			}
			if e == nil {
				return nil
			}
			handle(e.Key(), e.Value())
		}
	}
}

func decode[T any](e jetstream.KeyValueEntry) (*Entry[T], error) {
	if e == nil {
		return nil, nil
	}
	out := &Entry[T]{Key: e.Key(), Revision: e.Revision()}
	if e.Operation() != jetstream.KeyValuePut {
		out.Gone = true
		return out, nil
	}
	if err := json.Unmarshal(e.Value(), &out.Value); err != nil {
		return nil, fmt.Errorf("%q: stored record: %w", e.Key(), err)
	}
	return out, nil
}
