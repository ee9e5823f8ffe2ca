package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/secret"
	"kiln/internal/store"
)

const (
	// resolveTimeout bounds how long the secrets of one run are looked up.
	resolveTimeout = 20 * time.Second
	// resolveFor is how long that is tried again, before the run ends for it.
	resolveFor = time.Minute
)

// dispatch sends the current attempt to its worker: a first lease, so that its silence is noticed, and
// the assignment. Ended is why the run cannot be assigned at all.
func (s *Scheduler) dispatch(ctx context.Context, r run.Run, to event.Worker) (ended, err error) {
	a := r.Attempts[len(r.Attempts)-1]
	values, ended, err := s.secretsOf(ctx, r, a.Assigned)
	if ended != nil || err != nil {
		return ended, err
	}
	as, ended := s.assignment(r, values, to)
	if ended != nil {
		return ended, nil
	}
	key := event.LeaseKey(r.ID, a.N)
	lease := event.Lease{Attempt: a.N, Worker: a.Worker, Instance: a.Instance}
	// Both at once: if one of them fails, both are sent again, and a worker drops what it has already.
	var g errgroup.Group
	g.Go(func() error {
		_, err := s.Store.Leases.Put(ctx, key, lease)
		return err
	})
	_, err = s.Bus.Publish(ctx, event.WorkSubject(a.Instance), key, as)
	return nil, errors.Join(err, g.Wait())
}

// secretsOf returns the secret values of a run, nil if it has none: those that came with the request,
// and those that it names. Ended says that they cannot be had; err that they may be had later.
func (s *Scheduler) secretsOf(ctx context.Context, r run.Run, since time.Time) (values *event.Secrets, ended, err error) {
	ask := r.Spec.Refs != nil || s.ResolveAll
	if len(r.Spec.Secrets) == 0 && !ask {
		return nil, nil, nil
	}
	values = &event.Secrets{}
	if ask {
		if s.Resolve == nil {
			return nil, errors.New("secrets: this server has no store of secrets"), nil
		}
		rctx, cancel := context.WithTimeout(ctx, resolveTimeout)
		defer cancel()
		if *values, err = s.Resolve(rctx, r); err != nil {
			if err = fmt.Errorf("secrets: %w", err); errors.Is(err, secret.ErrUnknown) || errors.Is(err, store.ErrNotFound) || time.Since(since) > resolveFor {
				return nil, err, nil
			}
			return nil, nil, err
		}
	}
	if len(r.Spec.Secrets) > 0 {
		var set map[string]string
		if err := s.Secrets.Open(r.Spec.Secrets, &set); err != nil {
			return nil, fmt.Errorf("secrets: %w", err), nil
		}
		addSecrets(values, set)
	}
	return values, nil, nil
}

// addSecrets adds the values that came with a request: those for build arguments, and all others.
func addSecrets(values *event.Secrets, sent map[string]string) {
	for name, value := range sent {
		into := &values.Set
		if arg, ok := strings.CutPrefix(name, run.SecretArg); ok {
			into, name = &values.Args, arg
		}
		if *into == nil {
			*into = map[string]string{}
		}
		(*into)[name] = value
	}
}

// assignment seals what the worker alone may read to its key.
func (s *Scheduler) assignment(r run.Run, values *event.Secrets, to event.Worker) (event.Assignment, error) {
	as := event.Assignment{Run: r}
	tokens, err := s.Tokens(r, to.Apart)
	if err != nil {
		return as, err
	}
	if as.Token, err = s.sealed.seal(to.Recipient, tokens); err != nil || values == nil {
		return as, err
	}
	as.Run.Spec.Secrets = nil
	as.Secrets, err = secret.Seal(to.Recipient, values)
	return as, err
}

// A sealedToken remembers the last tokens that were sealed: without a right to publish they are the same for many
// runs.
type sealedToken struct {
	mu        sync.Mutex
	recipient string
	tokens    event.Tokens
	sealed    []byte
}

func (t *sealedToken) seal(recipient string, tokens event.Tokens) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sealed != nil && t.recipient == recipient && t.tokens == tokens {
		return t.sealed, nil
	}
	sealed, err := secret.Seal(recipient, tokens)
	if err == nil {
		t.recipient, t.tokens, t.sealed = recipient, tokens, sealed
	}
	return sealed, err
}
