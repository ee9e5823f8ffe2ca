package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	snapshotChunk  = 128 << 10
	snapshotWindow = 1 << 20          // bytes of a snapshot that are on their way
	snapshotWithin = 30 * time.Second // that a stream's next piece may take to come, or to be taken
)

// A Place is how far a durable reader of a stream had come: it has settled everything up to After.
type Place struct {
	Stream string                   `json:"stream"`
	After  uint64                   `json:"after"`
	Reader jetstream.ConsumerConfig `json:"reader"`
}

// Places returns how far the durable readers of streams are. Those that take messages out of their stream have no
// place: what is in it is what they have not read.
func (b *Bus) Places(ctx context.Context, streams ...string) ([]Place, error) {
	var places []Place
	for _, name := range streams {
		s, err := b.js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
		if s.CachedInfo().Config.Retention == jetstream.WorkQueuePolicy {
			continue
		}
		list := s.ListConsumers(ctx)
		for info := range list.Info() {
			if info.Config.Durable != "" && info.AckFloor.Stream > 0 && len(places) < maxConsumers {
				places = append(places, Place{Stream: name, After: info.AckFloor.Stream, Reader: info.Config})
			}
		}
		if err := list.Err(); err != nil {
			return nil, fmt.Errorf("readers of %s: %w", name, err)
		}
	}
	return places, nil
}

// A Snapshot describes a stream as it was at one moment.
type Snapshot struct {
	Config json.RawMessage `json:"config"`
	State  json.RawMessage `json:"state"`
}

// Describe returns a stream's configuration and state without what is in it, or ErrNone if it does not exist.
func (b *Bus) Describe(ctx context.Context, stream string) (Snapshot, error) {
	var s Snapshot
	m, err := b.nc.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+stream, nil)
	if err == nil {
		err = answer(m.Data, &s)
	}
	return s, missing(stream, err)
}

// Snapshot reads what a stream holds at one moment, in the form of JetStream's snapshots, and hands it to chunk
// piece by piece, after begin. Its readers are not in it. It returns ErrNone if there is no such stream. Whoever
// takes longer than a few seconds for a piece has lost it.
func (b *Bus) Snapshot(ctx context.Context, stream string, begin func(Snapshot) error, chunk func([]byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	ask, err := json.Marshal(map[string]any{"deliver_subject": inbox, "no_consumers": true, "chunk_size": snapshotChunk, "window_size": snapshotWindow})
	if err != nil {
		return err
	}
	var s Snapshot
	m, err := request(ctx, b.nc, "$JS.API.STREAM.SNAPSHOT."+stream, ask)
	if err == nil {
		err = answer(m.Data, &s)
	}
	if err == nil {
		err = begin(s)
	}
	for err == nil {
		if m, err = next(ctx, sub); err != nil {
			break
		}
		if len(m.Data) == 0 {
			return missing(stream, endOfSnapshot(m))
		}
		if err = chunk(m.Data); err == nil && m.Reply != "" {
			err = b.nc.Publish(m.Reply, nil)
		}
	}
	return missing(stream, err)
}

// endOfSnapshot returns the error that the last message of a snapshot tells of.
func endOfSnapshot(m *nats.Msg) error {
	if status := m.Header.Get("Status"); status != "" && status != "204" {
		return fmt.Errorf("snapshot ended early: %s %s", status, m.Header.Get("Description"))
	}
	return nil
}

// next waits for the next message of a subscription, within a bound.
func next(ctx context.Context, sub *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, snapshotWithin)
	defer cancel()
	return sub.NextMsgWithContext(ctx)
}

// request asks within a bound.
func request(ctx context.Context, nc *nats.Conn, subject string, data []byte) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, snapshotWithin)
	defer cancel()
	return nc.RequestWithContext(ctx, subject, data)
}

// answer decodes an answer of JetStream's API into v, or returns the error that it tells of.
func answer(data []byte, v any) error {
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(data, &failed); err != nil {
		return err
	}
	if failed.Error != nil {
		return failed.Error
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(data, v)
}

// missing names the stream that an error is about.
func missing(stream string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("stream %s: %w", stream, ErrNone)
	}
	return fmt.Errorf("stream %s: %w", stream, err)
}

// A Restorer makes streams of what Snapshot has read, on a server that has none of them yet.
type Restorer struct {
	Conn *Conn
	// Replicas is how many copies of each stream there are to be, on as many servers, wherever they come from. Zero
	// means one.
	Replicas int
}

// Restore makes a stream of a snapshot, whose pieces more returns until one is empty. It returns ErrReplicas if there
// are not servers enough.
func (r Restorer) Restore(ctx context.Context, s Snapshot, more func() ([]byte, error)) error {
	if err := r.possible(); err != nil {
		return err
	}
	name, cfg, err := r.config(s, 0)
	if err != nil {
		return err
	}
	ask, err := json.Marshal(map[string]any{"config": cfg, "state": s.State})
	if err != nil {
		return err
	}
	var begun struct {
		Deliver string `json:"deliver_subject"`
	}
	m, err := request(ctx, r.Conn, "$JS.API.STREAM.RESTORE."+name, ask)
	if err == nil {
		err = answer(m.Data, &begun)
	}
	for err == nil {
		var piece []byte
		if piece, err = more(); err != nil {
			break
		}
		if m, err = request(ctx, r.Conn, begun.Deliver, piece); err != nil {
			break
		}
		if len(piece) == 0 {
			err = answer(m.Data, nil)
			break
		}
		if len(m.Data) > 0 { // it says what is wrong
			err = answer(m.Data, nil)
		}
	}
	return explained(missing(name, err), r.Replicas)
}

// Begin makes an empty stream that goes on counting where another one has ended.
func (r Restorer) Begin(ctx context.Context, s Snapshot) error {
	var state struct {
		Last uint64 `json:"last_seq"`
	}
	if err := json.Unmarshal(s.State, &state); err != nil {
		return fmt.Errorf("state of a stream: %w", err)
	}
	name, cfg, err := r.config(s, state.Last+1)
	if err != nil {
		return err
	}
	ask, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	m, err := request(ctx, r.Conn, "$JS.API.STREAM.CREATE."+name, ask)
	if err == nil {
		err = answer(m.Data, nil)
	}
	return explained(missing(name, err), r.Replicas)
}

// possible returns ErrReplicas if a server that is alone is to keep several copies: in its answer to a request to restore
// this reason is text.
func (r Restorer) possible() error {
	if r.Replicas > 1 && r.Conn.ConnectedClusterName() == "" {
		return fmt.Errorf("%w on %d NATS servers: %s is no cluster", ErrReplicas, r.Replicas, r.Conn.ConnectedUrlRedacted())
	}
	return nil
}

// config returns the configuration to make a stream with, of which the library does not know all fields.
func (r Restorer) config(s Snapshot, first uint64) (name string, cfg map[string]any, err error) {
	if err := json.Unmarshal(s.Config, &cfg); err != nil {
		return "", nil, fmt.Errorf("configuration of a stream: %w", err)
	}
	name, _ = cfg["name"].(string)
	delete(cfg, "placement") // on servers that were somewhere else
	cfg["num_replicas"] = max(r.Replicas, 1)
	if r.Replicas > 1 { // as copies has it
		cfg["allow_direct"] = false
		delete(cfg, "persist_mode")
	}
	if first > 1 {
		cfg["first_seq"] = first
	}
	return name, cfg, nil
}

// Place has a reader begin behind what it had settled.
func (r Restorer) Place(ctx context.Context, p Place) error {
	js, err := jetstream.New(r.Conn)
	if err != nil {
		return err
	}
	cfg := p.Reader
	cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartSequencePolicy, p.After+1, nil
	cfg.Replicas = 0 // as many as the stream
	if _, err := js.CreateConsumer(ctx, p.Stream, cfg); err != nil {
		return fmt.Errorf("reader %s of %s: %w", cfg.Durable, p.Stream, err)
	}
	return nil
}

// Existing returns which of the named streams there are.
func (r Restorer) Existing(ctx context.Context, names []string) ([]string, error) {
	js, err := jetstream.New(r.Conn)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, name := range names {
		_, err := js.Stream(ctx, name)
		switch {
		case err == nil:
			found = append(found, name)
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return nil, fmt.Errorf("stream %s: %w", name, err)
		}
	}
	return found, nil
}

// Remove deletes streams, of an attempt to restore them that was given up.
func (r Restorer) Remove(ctx context.Context, names []string) error {
	js, err := jetstream.New(r.Conn)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if err := js.DeleteStream(ctx, name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			errs = append(errs, fmt.Errorf("stream %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
