package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
)

// ErrNobody is returned for a question that no process answers now.
var ErrNobody = errors.New("no process answers")

// maxAnswering is how many questions about one subject a process answers at once.
const maxAnswering = 64

// A reply is an answer, or why there is none.
type reply struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// Answer answers questions about a subject until ctx is done, then waits for the answers under way. Of several
// processes that do, one gets each question. A question that comes while too many are answered is not.
func Answer[Q, A any](ctx context.Context, b *Bus, subject string, answer func(context.Context, Q) (A, error)) error {
	var under sync.WaitGroup
	free := make(chan struct{}, maxAnswering)
	s, err := b.nc.QueueSubscribe(subject, "kiln", func(m *nats.Msg) {
		select {
		case free <- struct{}{}:
		default:
			respond(b, m, nil, errors.New("too many questions at once"))
			return
		}
		under.Go(func() {
			defer func() { <-free }()
			var q Q
			if err := json.Unmarshal(m.Data, &q); err != nil {
				respond(b, m, nil, err)
				return
			}
			a, err := answer(ctx, q)
			respond(b, m, a, err)
		})
	})
	if err != nil {
		return fmt.Errorf("answers about %s: %w", subject, err)
	}
	<-ctx.Done()
	_ = s.Unsubscribe()
	under.Wait()
	return nil
}

func respond(b *Bus, m *nats.Msg, a any, err error) {
	var r reply
	if err == nil {
		r.Answer, err = json.Marshal(a)
	}
	if err != nil {
		r.Error = err.Error()
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = m.Respond(data)
	}
	if err != nil {
		b.log.Warn("question not answered", "subject", m.Subject, "err", err)
	}
}

// Ask puts a question to a process that answers those about the subject, and blocks until it has or ctx is done.
// ErrNobody means that there is none.
func Ask[A any](ctx context.Context, b *Bus, subject string, q any) (A, error) {
	var a A
	data, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	m, err := b.nc.RequestWithContext(ctx, subject, data)
	if errors.Is(err, nats.ErrNoResponders) {
		return a, fmt.Errorf("%s: %w", subject, ErrNobody)
	}
	if err != nil {
		return a, fmt.Errorf("%s: %w", subject, err)
	}
	var r reply
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return a, fmt.Errorf("%s: %w", subject, err)
	}
	if r.Error != "" {
		return a, errors.New(r.Error)
	}
	return a, json.Unmarshal(r.Answer, &a)
}
