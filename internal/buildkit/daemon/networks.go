package daemon

import (
	"errors"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"

	"kiln/internal/buildkit/daemon/runnet"
)

// newNetworks returns what connects containers. The default never is the host's network.
func newNetworks(cfg *Config) (networks, error) {
	runs, err := runnet.New(runnet.Config{
		ID:          rootID(cfg.Root),
		Dir:         tmpDir(cfg.Root),
		Pools:       cfg.Pools,
		Nameservers: cfg.Nameservers,
		NoReuse:     cfg.AllowInsecure,
		Logger:      cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	nets := networks{
		pb.NetMode_UNSET: runs,
		pb.NetMode_NONE:  network.NewNoneProvider(),
		pb.NetMode_HOST:  refusedNetwork{},
	}
	if cfg.AllowHostNetwork {
		nets[pb.NetMode_HOST] = network.NewHostProvider()
	}
	return nets, nil
}

func (n networks) close() error {
	var errs []error
	for _, p := range n {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}
