// Package bus is kiln's use of NATS JetStream: the embedded server, the streams, and the few ways in
// which components publish and consume.
//
// Delivery is at least once and in order per subject. A message is settled only after its handler has
// returned: nil acknowledges it, an error that wraps ErrPoison ends it with the reason, any other
// error has it delivered again after a delay. A handler must therefore be idempotent. Publishing
// returns after the message is stored, and on the embedded server, unless relaxed, synced to disk.
package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/event"
)

// Names of the streams.
const (
	StreamEvents    = "EVENTS"
	StreamDecisions = "DECISIONS"
	StreamWork      = "WORK"
	StreamReports   = "REPORTS"
	StreamLogs      = "LOGS"
	StreamTimers    = "TIMERS"
	StreamNotify    = "NOTIFY"
	StreamDelivered = "DELIVERED" // the last requests to each webhook of the registry
	StreamAudit     = "AUDIT"     // who has changed what
	StreamIntake    = "INTAKE"    // deliveries of a flood, as they came, until they are in EVENTS
)

// ErrConflict is returned when a guarded publish finds that the subject has moved on.
var ErrConflict = errors.New("subject has another last message")

// ErrFull is returned when a stream refuses messages because it has reached its limit.
var ErrFull = errors.New("stream is full")

// ErrPoison marks a message that no redelivery can make useful.
var ErrPoison = errors.New("message cannot be processed")

// A Bus is a connection to JetStream with kiln's streams declared. It is safe for concurrent use.
type Bus struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger

	dir     string // on the disk of which reserve bytes stay free; see Reserve
	reserve int64

	replicas Replicas

	streams sync.Map // name to jetstream.Stream: asking for one costs a round trip
}

// Open declares the streams on the server behind nc and returns the bus. It is idempotent: an
// existing stream keeps its messages. The caller owns nc.
func Open(ctx context.Context, nc *nats.Conn, log *slog.Logger) (*Bus, error) {
	return open(ctx, nc, Replicas{Count: 1}, log)
}

// OpenShared is Open on NATS servers that may be a cluster, which keep copies of each stream. The error wraps ErrReplicas if
// they cannot have so many.
func OpenShared(ctx context.Context, nc *nats.Conn, replicas Replicas, log *slog.Logger) (*Bus, error) {
	return open(ctx, nc, replicas, log)
}

func open(ctx context.Context, nc *nats.Conn, replicas Replicas, log *slog.Logger) (*Bus, error) {
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		return nil, err
	}
	b := &Bus{nc: nc, js: js, replicas: replicas, log: log}
	for _, cfg := range streams() {
		if err := b.declare(ctx, cfg); err != nil {
			return nil, fmt.Errorf("stream %s: %w", cfg.Name, err)
		}
	}
	return b, nil
}

// Attach returns a bus on streams that another process has declared. The caller owns nc.
func Attach(nc *nats.Conn, log *slog.Logger) (*Bus, error) {
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4096))
	if err != nil {
		return nil, err
	}
	return &Bus{nc: nc, js: js, log: log}, nil
}

// JetStream returns the underlying context, for what the bus does not cover.
func (b *Bus) JetStream() jetstream.JetStream { return b.js }

// Conn returns the underlying connection, for messages that need no storage.
func (b *Bus) Conn() *nats.Conn { return b.nc }

// Flush sends what is buffered; it returns when the server has taken it.
func (b *Bus) Flush(ctx context.Context) error { return b.nc.FlushWithContext(ctx) }

type streamConfig struct {
	jetstream.StreamConfig
	async bool // acknowledged before it is written, unless there are copies: logs and assignments, which other state backs up
}

const day = 24 * time.Hour

func streams() []streamConfig {
	return []streamConfig{
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamEvents, Subjects: []string{event.SubjectEvents}, MaxAge: 30 * day,
			MaxBytes: 4 << 30, Discard: jetstream.DiscardNew, AllowDirect: true,
		}},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamDecisions, Subjects: []string{event.SubjectDecisions}, MaxMsgsPerSubject: 64,
			AllowDirect: true, AllowMsgTTL: true,
		}},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamTimers, Subjects: []string{event.SubjectTimers}, MaxMsgsPerSubject: 1,
			AllowDirect: true, AllowMsgTTL: true, AllowMsgSchedules: true,
		}},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamWork, Subjects: []string{event.SubjectWork}, Retention: jetstream.WorkQueuePolicy,
			MaxAge: time.Hour,
		}, async: true},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamReports, Subjects: []string{event.SubjectReports}, MaxAge: 7 * day, AllowDirect: true,
		}},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamNotify, Subjects: []string{event.SubjectNotify}, Retention: jetstream.WorkQueuePolicy,
			MaxAge: 2 * day, MaxMsgsPerSubject: 10_000, Discard: jetstream.DiscardNew, DiscardNewPerSubject: true,
			MaxBytes: 1 << 30,
		}},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamDelivered, Subjects: []string{event.SubjectDelivered}, MaxMsgsPerSubject: 100, MaxAge: 30 * day, MaxBytes: 128 << 20,
			AllowDirect: true,
		}},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamIntake, Subjects: []string{event.SubjectIntake}, Retention: jetstream.WorkQueuePolicy,
			MaxBytes: 1 << 30, Discard: jetstream.DiscardNew,
		}},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamAudit, Subjects: []string{event.SubjectAudit}, MaxAge: 90 * day, MaxBytes: 512 << 20, AllowDirect: true,
		}},
		{StreamConfig: jetstream.StreamConfig{
			Name: StreamLogs, Subjects: []string{event.SubjectLogs}, MaxAge: 30 * day, MaxBytes: 16 << 30,
			AllowDirect: true,
		}, async: true},
	}
}

// Publish stores v as JSON (a json.RawMessage as it is) and returns its stream sequence. A message with an ID that the stream has
// seen within its window is not stored again.
func (b *Bus) Publish(ctx context.Context, subject, id string, v any) (uint64, error) {
	return b.publish(ctx, subject, v, jetstream.WithMsgID(id))
}

// Append stores v as Publish does, but without an ID.
func (b *Bus) Append(ctx context.Context, subject string, v any) (uint64, error) {
	return b.publish(ctx, subject, v)
}

// Create stores v as the first message of subject, or returns ErrConflict if there is one. A ttl
// above zero lets the message expire, in streams that allow it.
func (b *Bus) Create(ctx context.Context, subject string, v any, ttl time.Duration) (uint64, error) {
	opts := []jetstream.PublishOpt{jetstream.WithExpectLastSequencePerSubject(0)}
	if ttl > 0 {
		opts = append(opts, jetstream.WithMsgTTL(ttl))
	}
	return b.publish(ctx, subject, v, opts...)
}

// Replace stores v as the next message of subject, or returns ErrConflict if the last one is not that of
// the stream sequence last. Zero means that there is none.
func (b *Bus) Replace(ctx context.Context, subject string, last uint64, v any) (uint64, error) {
	return b.publish(ctx, subject, v, jetstream.WithExpectLastSequencePerSubject(last))
}

// ReplaceAsync is Replace without waiting; the error of the future is to be given to MapError.
func (b *Bus) ReplaceAsync(subject string, last uint64, v any) (Ack, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if err := b.Room(); err != nil {
		return nil, err
	}
	return b.js.PublishAsync(subject, data, jetstream.WithExpectLastSequencePerSubject(last), jetstream.WithStallWait(30*time.Second))
}

// MapError returns the error of a future as Publish would have returned it.
func MapError(err error) error { return mapError(err) }

func (b *Bus) publish(ctx context.Context, subject string, v any, opts ...jetstream.PublishOpt) (uint64, error) {
	data, encoded := v.(json.RawMessage)
	if !encoded {
		var err error
		if data, err = json.Marshal(v); err != nil {
			return 0, err
		}
	}
	if err := b.Room(); err != nil {
		return 0, fmt.Errorf("publish %s: %w", subject, err)
	}
	ack, err := b.js.Publish(ctx, subject, data, opts...)
	if err != nil {
		return 0, fmt.Errorf("publish %s: %w", subject, mapError(err))
	}
	return ack.Sequence, nil
}

// An Ack is the acknowledgement to come of an asynchronous publication.
type Ack = jetstream.PubAckFuture

// PublishAsync hands v to the connection and returns at once; the future tells when it is stored.
func (b *Bus) PublishAsync(subject, id string, v any) (Ack, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if err := b.Room(); err != nil {
		return nil, err
	}
	opts := []jetstream.PublishOpt{jetstream.WithStallWait(30 * time.Second)}
	if id != "" {
		opts = append(opts, jetstream.WithMsgID(id))
	}
	return b.js.PublishAsync(subject, data, opts...)
}

// Last returns the last message of a subject decoded into v and its stream sequence, or ErrNone.
func (b *Bus) Last(ctx context.Context, stream, subject string, v any) (uint64, error) {
	m, err := b.last(ctx, stream, subject)
	if err != nil {
		return 0, err
	}
	return m.Sequence, json.Unmarshal(m.Data, v)
}

// LastTime returns when the last message of the subjects that match filter was stored, or ErrNone.
func (b *Bus) LastTime(ctx context.Context, stream, filter string) (time.Time, error) {
	m, err := b.last(ctx, stream, filter)
	if err != nil {
		return time.Time{}, err
	}
	return m.Time, nil
}

func (b *Bus) last(ctx context.Context, stream, filter string) (*jetstream.RawStreamMsg, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	m, err := s.GetLastMsgForSubject(ctx, filter)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, ErrNone
	}
	return m, err
}

// LastSequence returns the sequence of the last message that a filter matches, 0 if there is none.
func (b *Bus) LastSequence(ctx context.Context, stream, filter string) (uint64, error) {
	m, err := b.last(ctx, stream, filter)
	switch {
	case errors.Is(err, ErrNone):
		return 0, nil
	case err != nil:
		return 0, err
	}
	return m.Sequence, nil
}

// Subjects returns the subjects of a stream that match filter, each with its number of messages.
func (b *Bus) Subjects(ctx context.Context, stream, filter string) (map[string]uint64, error) {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	i, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("subjects of %s: %w", stream, err)
	}
	return i.State.Subjects, nil
}

// At returns the message with a stream sequence decoded into v, or ErrNone if there is none any more.
func (b *Bus) At(ctx context.Context, stream string, seq uint64, v any) error {
	s, err := b.stream(ctx, stream)
	if err != nil {
		return err
	}
	m, err := s.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return ErrNone
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(m.Data, v)
}

func (b *Bus) stream(ctx context.Context, name string) (jetstream.Stream, error) {
	if s, ok := b.streams.Load(name); ok {
		return s.(jetstream.Stream), nil
	}
	s, err := b.js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	b.streams.Store(name, s)
	return s, nil
}

// ErrNone is returned by Last and At when there is no such message.
var ErrNone = errors.New("no message on the subject")

// API error codes of JetStream that have a meaning here.
const (
	codeWrongLastSequence = 10071
	codeWrongLastConstant = 10164
	codeStoreFailed       = 10077
	codeInsufficient      = 10047
	codeNoPeers           = 10005 // for the copies of a stream
	codeNoResources       = 10023
	codeUnavailable       = 10008 // no leader yet
	codeNoCluster         = 10074
)

func mapError(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return err
	}
	switch api.ErrorCode {
	case codeWrongLastSequence, codeWrongLastConstant:
		return ErrConflict
	case codeStoreFailed, codeInsufficient:
		return fmt.Errorf("%w: %s", ErrFull, api.Description)
	}
	return err
}
