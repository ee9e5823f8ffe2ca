package buildkit

import (
	"context"
	"time"

	"kiln/internal/buildkit/limits"
	"kiln/internal/event"
	"kiln/internal/solve"
)

// limited returns env with the limits of c in it, as kiln's own daemon reads them. Of another daemon's
// containers nothing can be limited, which the step's log says.
func (s *runSession) limited(ctx context.Context, c solve.Container, env []string, log solve.LogFunc) ([]string, error) {
	want := limits.Limits{CPUs: c.CPUs, Memory: c.Memory}
	if want == (limits.Limits{}) {
		return limits.Put(env, want), nil
	}
	network, err := s.client.network(ctx)
	if err != nil {
		return nil, err
	}
	if network != limits.Network {
		log(event.LogEntry{Time: time.Now(), Stream: event.StreamKiln, Data: []byte("warning: the limits of processors and memory have no effect: " +
			"this BuildKit daemon cannot limit a container; kiln's own can\n")})
		want = limits.Limits{}
	}
	return limits.Put(env, want), nil
}
