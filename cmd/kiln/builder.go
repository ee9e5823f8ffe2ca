package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"kiln/internal/apiclient"
	"kiln/internal/buildkit"
)

// A builder is the BuildKit daemon that the worker uses: an own one, supervised, or one that exists.
type builder struct {
	cfg    serveConfig
	log    *slog.Logger
	client *buildkit.Client
}

func newBuilder(cfg serveConfig, log *slog.Logger) (*builder, error) {
	client, err := buildkit.New(buildkit.Config{Address: cfg.buildkit})
	if err != nil {
		return nil, err
	}
	return &builder{cfg: cfg, log: log, client: client}, nil
}

func (b *builder) close() error { return b.client.Close() }

// run keeps the own daemon running until ctx ends.
func (b *builder) run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// ready waits until the daemon answers, and refuses one that would connect containers to the host.
func (b *builder) ready(ctx context.Context) (buildkit.Info, error) {
	info, err := b.client.Info(ctx)
	if err != nil {
		return info, err
	}
	if info.Network == "host" && !b.cfg.hostNetwork {
		return info, usagef("configure a CNI network for the daemon, or accept it with --buildkit-host-network",
			"the BuildKit daemon at %s connects containers to the host's network, so runs would not be isolated from it", b.cfg.buildkit)
	}
	return info, nil
}

func (b *builder) checks(ctx context.Context) []apiclient.Check {
	info, err := b.client.Info(ctx)
	if err != nil {
		return []apiclient.Check{{Name: "build daemon", Detail: err.Error(), Remedy: "see the server's log"}}
	}
	return []apiclient.Check{{Name: "build daemon", OK: true,
		Detail: fmt.Sprintf("BuildKit %s, %s, network %s", info.Version, strings.Join(info.Platforms, " "), info.Network)}}
}
