package scheduler

import (
	"context"
	"errors"
	"time"

	"kiln/internal/store"
)

// sweepEvery is the time between two looks for fences that nobody removes.
const sweepEvery = 30 * time.Second

// sweep finishes runs in the registry whose end was stored by a scheduler that ended, or lost the registry, before
// it had told it, until ctx is done. What such runs have staged would never be collected, and a
// worker that was cut off could publish still.
func (s *Scheduler) sweep(ctx context.Context) error {
	every := time.NewTicker(sweepEvery)
	defer every.Stop()
	for {
		if err := s.sweepOnce(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("fences of runs that have ended not removed, trying again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		}
	}
}

func (s *Scheduler) sweepOnce(ctx context.Context) error {
	for after := ""; ; {
		ids, err := s.Fence.Fences(ctx, after)
		if err != nil || len(ids) == 0 {
			return err
		}
		after = ids[len(ids)-1]
		idle, err := s.idle(ctx, ids)
		if err != nil {
			return err
		}
		for _, id := range idle {
			if err := s.finishEnded(ctx, id); err != nil {
				return err
			}
		}
	}
}

// idle returns the runs among ids that the loop knows nothing of.
func (s *Scheduler) idle(ctx context.Context, ids []string) ([]string, error) {
	return ask(ctx, s, func() (idle []string) {
		for _, id := range ids {
			if s.core.runs[id] == nil {
				idle = append(idle, id)
			}
		}
		return idle
	})
}

// finishEnded removes the fence of a run that has ended, or whose record is gone. A run that has not ended is on
// its way to the loop.
func (s *Scheduler) finishEnded(ctx context.Context, id string) error {
	r, _, err := s.Store.Runs.Get(ctx, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	case !r.State.Final():
		return nil
	}
	if err := s.Fence.FinishRun(ctx, id); err != nil {
		return err
	}
	s.Log.Info("run finished in the registry, which an earlier scheduler had left", "run", id, "task", r.Task)
	return nil
}
