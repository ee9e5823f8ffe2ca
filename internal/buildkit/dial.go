package buildkit

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// detachAfter is when a session that is not needed any more is closed: whoever waits for what was built
// comes first.
const detachAfter = 20 * time.Millisecond

// attach opens a session of the daemon's for one solve, in which the daemon finds the directories and
// services given; failed is told why there is none. Detach ends it soon and does not wait; the client does,
// when it is closed.
func (s *runSession) attach(failed context.CancelCauseFunc, mounts map[string]fsutil.FS, key string, services ...session.Attachable) (own *session.Session, detach func(), err error) {
	dirs := make(filesync.StaticDirSource, len(mounts))
	for name, fs := range mounts {
		if dirs[name], err = fsutil.NewFilterFS(fs, &fsutil.FilterOpt{Map: ofRoot}); err != nil {
			return nil, nil, fmt.Errorf("context %s: %w", name, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	if own, err = session.NewSession(ctx, key); err != nil {
		cancel()
		return nil, nil, fmt.Errorf("session: %w", err)
	}
	own.Allow(filesync.NewFSSyncProvider(dirs))
	for _, service := range services {
		own.Allow(service)
	}
	served := make(chan struct{})
	s.client.sessions.Go(func() {
		defer close(served)
		if err := own.Run(ctx, s.client.bk.Dialer()); err != nil {
			failed(err)
		}
	})
	return own, func() {
		s.client.sessions.Go(func() {
			select {
			case <-served: // the daemon is gone
			case <-time.After(detachAfter):
			}
			cancel()
			<-served
			_ = own.Close() // always nil
		})
	}, nil
}

// ofRoot has files belong to root, as those of a build's context do.
func ofRoot(_ string, st *types.Stat) fsutil.MapResult {
	st.Uid, st.Gid = 0, 0
	return fsutil.MapResultKeep
}
