package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Types of an OutboxEvent.
const (
	ImagePushed  = "image.pushed"  // a tag moved, or a manifest came without one
	ImageDeleted = "image.deleted" // a tag or a manifest is gone
)

const (
	relayBatch   = 256
	relayLag     = 25 * time.Millisecond  // of what a run published: whoever waits for the run comes first
	relayBackoff = 100 * time.Millisecond // after the first refusal; doubled up to relayMaxWait
	relayMaxWait = 30 * time.Second
)

// An OutboxEvent tells of one change of a tag or manifest.
type OutboxEvent struct {
	// ID is the store's UUID, a dot and the event's sequence: the same on every delivery.
	ID         string `json:"-"`
	Type       string `json:"type"`
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"` // empty: the manifest itself
	Digest     string `json:"digest"`
	MediaType  string `json:"mediaType,omitempty"`
	// ArtifactType says what it is if it is no image; Size is that of the manifest.
	ArtifactType string    `json:"artifactType,omitempty"`
	Size         int64     `json:"size,omitempty"`
	Time         time.Time `json:"time"`
	// Run, Attempt and Step are set if a run published.
	Run     string `json:"run,omitempty"`
	Attempt int    `json:"attempt,omitempty"`
	Step    string `json:"step,omitempty"`
}

// record puts an event into the outbox. Kiln's own repositories have none.
func (t *tx) record(e OutboxEvent) error {
	if isReserved(e.Repository) {
		return nil
	}
	e.Time = t.now
	if _, err := t.row(`SELECT m.size, m.artifact_type FROM repository r JOIN manifest m ON m.repo = r.id WHERE r.name = ? AND m.digest = ?`,
		[]any{e.Repository, e.Digest}, &e.Size, &e.ArtifactType); err != nil {
		return err
	}
	if isImageConfig(e.ArtifactType) {
		e.ArtifactType = ""
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	t.events = true
	t.urgent = t.urgent || e.Run == ""
	return t.exec(`INSERT INTO outbox (event) VALUES (?)`, string(b))
}

// isImageConfig reports whether the type of a manifest's configuration is that of an image.
func isImageConfig(artifactType string) bool {
	return artifactType == "application/vnd.oci.image.config.v1+json" || artifactType == "application/vnd.docker.container.image.v1+json"
}

// Relay hands the events to publish in the order of their commits until ctx ends, and then returns
// nil. Events are forgotten only after publish has returned nil; until then the same ones come
// again, with growing delays. After a crash an event may come once more under its ID. Only one Relay
// may be active.
func (s *Store) Relay(ctx context.Context, publish func(context.Context, []OutboxEvent) error) error {
	if !s.relaying.CompareAndSwap(false, true) {
		return errors.New("relay: another relay of this registry is active")
	}
	defer s.relaying.Store(false)
	seq := s.write.delivered.Load()
	wait := time.Duration(0)
	for {
		last, err := s.relayBatch(ctx, seq, publish)
		if last > seq {
			s.write.setDelivered(last)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrClosed):
			return fmt.Errorf("relay: %w", err)
		case err != nil:
			wait = min(max(2*wait, relayBackoff), relayMaxWait)
			s.opt.Log.Warn("events not delivered, trying again", "err", err, "wait", wait)
			if !sleep(ctx, wait) {
				return nil
			}
			continue
		}
		wait = 0
		if last > seq {
			seq = last
			continue
		}
		select {
		case <-s.write.pushed:
			if !s.write.urgent.Swap(false) {
				sleep(ctx, relayLag)
			}
		case <-s.closed:
			return fmt.Errorf("relay: %w", ErrClosed)
		case <-ctx.Done():
			return nil
		}
	}
}

// relayBatch publishes the events after seq and returns the sequence of the last.
func (s *Store) relayBatch(ctx context.Context, seq int64, publish func(context.Context, []OutboxEvent) error) (int64, error) {
	events, last, err := s.outbox(ctx, seq)
	if err != nil || len(events) == 0 {
		return seq, err
	}
	if err := publish(ctx, events); err != nil {
		return seq, err
	}
	return last, nil
}

// outbox reads the events after seq.
func (s *Store) outbox(ctx context.Context, seq int64) (events []OutboxEvent, last int64, err error) {
	rows, err := s.rows(ctx, `SELECT seq, event FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?`, seq, relayBatch)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var body []byte
		if err := rows.Scan(&last, &body); err != nil {
			return nil, 0, err
		}
		var e OutboxEvent
		if err := json.Unmarshal(body, &e); err != nil {
			return nil, 0, fmt.Errorf("event %d: %w", last, err)
		}
		e.ID = fmt.Sprintf("%s.%d", s.uuid, last)
		events = append(events, e)
	}
	return events, last, rows.Err()
}

// sleep waits for d and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
