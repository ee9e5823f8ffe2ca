package registry

import (
	"context"
	"time"
)

const pullsEvery = time.Minute // when images were last pulled is stored

// Maintain does what has to be done from time to time until ctx ends, and then returns nil: it stores when
// images were last pulled, and every so often it calls work. Work that fails is tried again then.
func (s *Store) Maintain(ctx context.Context, every time.Duration, work func(context.Context) error) error {
	pulls, rounds := time.NewTicker(pullsEvery), time.NewTicker(every)
	defer pulls.Stop()
	defer rounds.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-pulls.C:
			err = s.storePulls(ctx)
		case <-rounds.C:
			err = work(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.opt.Log.Warn("the registry could not be tidied up, it is tried again later", "err", err)
		}
	}
}
