package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/event"
	"kiln/internal/run"
)

// redeliverAfter is how long a message whose handler failed waits.
const redeliverAfter = 2 * time.Second

// A Message is one delivery. Settle must be called once, with the handler's outcome.
type Message struct {
	msg jetstream.Msg
	bus *Bus
}

// Subject returns the message's subject.
func (m Message) Subject() string { return m.msg.Subject() }

// Sequence returns the message's place in its stream.
func (m Message) Sequence() (uint64, error) {
	meta, err := m.msg.Metadata()
	if err != nil {
		return 0, err
	}
	return meta.Sequence.Stream, nil
}

// Decode decodes the message's JSON into v; its error wraps ErrPoison.
func (m Message) Decode(v any) error {
	if err := json.Unmarshal(m.msg.Data(), v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrPoison, m.msg.Subject(), err)
	}
	return nil
}

// Working says that the message is still being worked on: AckWait begins anew.
func (m Message) Working() {
	_ = m.msg.InProgress() // losing one costs at most a redelivery
}

// Keep says so again and again, often enough for a consumer with that AckWait, until stop is called.
func (m Message) Keep(ackWait time.Duration) (stop func()) {
	end := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		t := time.NewTicker(ackWait / 3)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
				m.Working()
			}
		}
	})
	return func() { close(end); done.Wait() }
}

// Settle acknowledges the message if err is nil, ends it if err wraps ErrPoison, and otherwise has it
// delivered again later.
func (m Message) Settle(err error) {
	var settle error
	switch {
	case err == nil:
		settle = m.msg.Ack()
	case errors.Is(err, ErrPoison):
		m.bus.log.Error("message ended unprocessed", m.about(err)...)
		settle = m.msg.TermWithReason(err.Error())
	default:
		m.bus.log.Warn("message will be delivered again", m.about(err)...)
		settle = m.msg.NakWithDelay(redeliverAfter)
	}
	if settle != nil {
		m.bus.log.Warn("message not settled, it will be delivered again", m.about(settle)...)
	}
}

// about are the attributes of a line of the log about the message: the run and the event that it is about, if it is
// seen from outside, and an error.
func (m Message) about(err error) []any {
	subject := m.msg.Subject()
	attrs := []any{"subject", subject}
	if last := subject[strings.LastIndexByte(subject, '.')+1:]; run.ValidID(last) {
		attrs = append(attrs, "run", last)
	}
	var ev struct {
		ID string `json:"id"`
	}
	if strings.HasPrefix(subject, strings.TrimSuffix(event.SubjectEvents, ">")) && json.Unmarshal(m.msg.Data(), &ev) == nil && ev.ID != "" {
		attrs = append(attrs, "event", ev.ID)
	}
	return append(attrs, "err", err)
}

// A Consumer names a durable reader of a stream.
type Consumer struct {
	Stream  string
	Name    string
	Filter  string
	Filters []string      // in place of Filter, if there are several
	AckWait time.Duration // 0 means 30 s
	Pending int           // deliveries unsettled at once; 0 means 256
	Expire  time.Duration // the consumer goes after this long unused; 0 means never
}

// pullAhead is how many messages are asked for at a time, of which the server sends no more than may be
// unsettled. nats.go asks again when half of them have come; it forgets to, until a heartbeat is missed, if
// all have been handled before it has noted that its request is sent, as happens when it asks for one.
const pullAhead = 256

// Consume delivers messages to handle until ctx is done, and returns nil then. Handle is called from
// one goroutine, in order, and owns the message: it settles it, now or later.
func (b *Bus) Consume(ctx context.Context, c Consumer, handle func(Message)) error {
	var cons jetstream.Consumer
	err := Patiently(ctx, func() (err error) { // the server may be restarting
		cons, err = b.declareReader(ctx, c)
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("consumer %s of %s: %w", c.Name, c.Stream, err)
	}
	cc, err := cons.Consume(func(m jetstream.Msg) { handle(Message{msg: m, bus: b}) },
		jetstream.PullMaxMessages(max(c.Pending, pullAhead)),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			if ctx.Err() == nil && !Transient(err) {
				b.log.Warn("consumer reports", "consumer", c.Name, "err", err)
			}
		}))
	if err != nil {
		return fmt.Errorf("consumer %s of %s: %w", c.Name, c.Stream, err)
	}
	<-ctx.Done()
	cc.Stop()
	<-cc.Closed()
	return nil
}

// declareReader makes a durable reader, or brings an existing one to what is asked for. One that was restored keeps
// its place.
func (b *Bus) declareReader(ctx context.Context, c Consumer) (jetstream.Consumer, error) {
	cfg := jetstream.ConsumerConfig{
		Durable: c.Name, FilterSubject: c.Filter, FilterSubjects: c.Filters, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: orDefault(c.AckWait, 30*time.Second), MaxAckPending: orDefault(c.Pending, 256),
		MaxDeliver: -1, InactiveThreshold: c.Expire,
	}
	there, err := b.js.Consumer(ctx, c.Stream, c.Name)
	switch {
	case err == nil:
		info := there.CachedInfo()
		cfg.DeliverPolicy, cfg.OptStartSeq = info.Config.DeliverPolicy, info.Config.OptStartSeq
	case !errors.Is(err, jetstream.ErrConsumerNotFound):
		return nil, err
	}
	return b.js.CreateOrUpdateConsumer(ctx, c.Stream, cfg)
}

func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

// Tail delivers the messages of a subject filter in order, after the stream sequence after. With follow
// it then waits for new ones, until ctx is done or handle returns false; without, it returns at the end.
// It needs no settling and leaves no trace.
func (b *Bus) Tail(ctx context.Context, stream, filter string, after uint64, follow bool, handle func(seq uint64, data []byte) bool) error {
	cfg := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy}
	if after > 0 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, after+1
	}
	return b.tail(ctx, stream, filter, cfg, follow, handle)
}

// Since is Tail of the messages that were stored at a time or later, without waiting for new ones.
func (b *Bus) Since(ctx context.Context, stream, filter string, begin time.Time, handle func(seq uint64, data []byte) bool) error {
	cfg := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &begin}
	return b.tail(ctx, stream, filter, cfg, false, handle)
}

func (b *Bus) tail(ctx context.Context, stream, filter string, cfg jetstream.OrderedConsumerConfig, follow bool, handle func(seq uint64, data []byte) bool) error {
	cfg.FilterSubjects, cfg.InactiveThreshold = []string{filter}, time.Minute
	cons, err := b.js.OrderedConsumer(ctx, stream, cfg)
	if err != nil {
		return fmt.Errorf("read %s: %w", filter, err)
	}
	defer b.forget(stream, cons)
	if info := cons.CachedInfo(); !follow && info != nil && info.NumPending == 0 {
		return nil
	}
	it, err := cons.Messages(jetstream.PullMaxMessages(256))
	if err != nil {
		return fmt.Errorf("read %s: %w", filter, err)
	}
	stop := context.AfterFunc(ctx, it.Stop)
	defer func() { stop(); it.Stop() }()
	for {
		m, err := nextOf(ctx, cons, it, follow)
		if ctx.Err() != nil || errors.Is(err, jetstream.ErrMsgIteratorClosed) || errors.Is(err, errRemoved) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", filter, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if !handle(meta.Sequence.Stream, m.Data()) || !follow && meta.NumPending == 0 {
			return nil
		}
	}
}

// removedAfter is how long a message is waited for that is to be there, before it is asked whether it still is.
const removedAfter = 500 * time.Millisecond

// errRemoved is returned by nextOf when what was to be read is not there any more.
var errRemoved = errors.New("removed")

// nextOf returns the next message. Without follow it does not wait for one that was removed meanwhile.
func nextOf(ctx context.Context, cons jetstream.Consumer, it jetstream.MessagesContext, follow bool) (jetstream.Msg, error) {
	if follow {
		return it.Next()
	}
	for none := 0; ; {
		m, err := it.Next(jetstream.NextMaxWait(removedAfter))
		if !errors.Is(err, nats.ErrTimeout) {
			return m, err
		}
		info, err := cons.Info(ctx)
		switch {
		case err != nil && !Transient(err):
			return nil, err
		case err != nil || info.NumPending > 0:
			none = 0
		case none > 0: // and nothing was on its way
			return nil, errRemoved
		default:
			none++
		}
	}
}

// forget removes the consumer of a Tail, which the server would keep for a minute. It waits for nothing.
func (b *Bus) forget(stream string, cons jetstream.Consumer) {
	if info := cons.CachedInfo(); info != nil {
		_ = b.nc.Publish("$JS.API.CONSUMER.DELETE."+stream+"."+info.Name, nil) // it goes by itself otherwise
	}
}

// Subscribe delivers plain NATS messages, which are not stored, until the returned function is called.
func (b *Bus) Subscribe(subject string, handle func(data []byte)) (unsubscribe func(), err error) {
	s, err := b.nc.Subscribe(subject, func(m *nats.Msg) { handle(m.Data) })
	if err != nil {
		return nil, err
	}
	return func() { _ = s.Unsubscribe() }, nil
}

// Signal sends v as a plain NATS message: it is not stored and may be lost.
func (b *Bus) Signal(subject string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.nc.Publish(subject, data)
}

// Settled reports whether a durable reader of a stream has settled every message that it reads up to a
// sequence. One that does not exist has settled none.
func (b *Bus) Settled(ctx context.Context, stream, name string, seq uint64) (bool, error) {
	c, err := b.js.Consumer(ctx, stream, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reader %s of %s: %w", name, stream, err)
	}
	info := c.CachedInfo()
	return info.AckFloor.Stream >= seq || info.NumPending == 0 && info.NumAckPending == 0, nil
}
