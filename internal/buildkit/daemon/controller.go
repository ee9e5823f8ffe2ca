package daemon

import (
	"context"
	"fmt"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/cache/remotecache"
	inlinecache "github.com/moby/buildkit/cache/remotecache/inline"
	localcache "github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/util/resolver"
	resolverconfig "github.com/moby/buildkit/util/resolver/config"
	"github.com/moby/buildkit/worker"
	"go.opentelemetry.io/otel/metric/noop"
)

// newController assembles BuildKit's control plane on one worker. ctx ends when the daemon stops.
// The databases that it opened are closed with dbs, also when it fails.
func newController(ctx context.Context, cfg *Config, dbs *databases, nets networks) (*control.Controller, error) {
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	transport, err := newRegistryTransport(cfg)
	if err != nil {
		return nil, err
	}
	hosts := named(resolver.NewRegistryConfig(registryConfig(cfg.Registries)), cfg.Registries)
	hosts = guardRegistries(authorized(hosts, cfg.Registries), transport, cfg.own())
	w, err := newWorker(ctx, cfg, dbs, nets, hosts)
	if err != nil {
		return nil, err
	}
	workers := &worker.Controller{}
	if err := workers.Add(w); err != nil {
		return nil, err
	}
	frontends, err := newFrontends(workers)
	if err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(dbs.path(cacheDB))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dbs.path(cacheDB), err)
	}
	dbs.closeLater(cache.Close)
	history, err := boltutil.SafeOpen(dbs.path(historyDB), 0o600, dbs.options())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dbs.path(historyDB), err)
	}
	dbs.closeLater(history.Close)

	return control.NewController(control.Opt{
		SessionManager:            sessions,
		WorkerController:          workers,
		Frontends:                 frontends,
		CacheManager:              solver.NewCacheManager(ctx, "local", cache, worker.NewCacheResultStorage(workers)),
		ResolveCacheExporterFuncs: cacheExporters(sessions, hosts),
		ResolveCacheImporterFuncs: cacheImporters(sessions, hosts, w),
		Entitlements:              grantable(cfg),
		MeterProvider:             noop.NewMeterProvider(),
		HistoryDB:                 history,
		CacheStore:                cache,
		LeaseManager:              w.LeaseManager(),
		ContentStore:              w.ContentStore(),
		GarbageCollect:            w.GarbageCollect,
		GracefulStop:              ctx.Done(),
	})
}

func newFrontends(workers *worker.Controller) (map[string]frontend.Frontend, error) {
	gw, err := gateway.NewGatewayFrontend(workers.Infos(), nil)
	if err != nil {
		return nil, err
	}
	return map[string]frontend.Frontend{
		"dockerfile.v0": forwarder.NewGatewayForwarder(workers.Infos(), dockerfile.Build),
		"gateway.v0":    gw,
	}, nil
}

// authorized adds the credentials that the configuration has for a host itself, not for its mirrors.
func authorized(hosts docker.RegistryHosts, registries map[string]Registry) docker.RegistryHosts {
	return func(host string) ([]docker.RegistryHost, error) {
		list, err := hosts(host)
		if err != nil || registries[host].Authorization == "" {
			return list, err
		}
		for i := range list {
			if list[i].Host == host {
				list[i].Header = list[i].Header.Clone()
				if list[i].Header == nil {
					list[i].Header = http.Header{}
				}
				list[i].Header.Set("Authorization", registries[host].Authorization)
			}
		}
		return list, nil
	}
}

func cacheExporters(sessions *session.Manager, hosts docker.RegistryHosts) map[string]remotecache.ResolveCacheExporterFunc {
	return map[string]remotecache.ResolveCacheExporterFunc{
		"registry": registrycache.ResolveCacheExporterFunc(sessions, hosts),
		"local":    localcache.ResolveCacheExporterFunc(sessions),
		"inline":   inlinecache.ResolveCacheExporterFunc(),
	}
}

func cacheImporters(sessions *session.Manager, hosts docker.RegistryHosts, w worker.Worker) map[string]remotecache.ResolveCacheImporterFunc {
	return map[string]remotecache.ResolveCacheImporterFunc{
		"registry": registrycache.ResolveCacheImporterFunc(sessions, w.ContentStore(), hosts),
		"local":    localcache.ResolveCacheImporterFunc(sessions),
	}
}

// grantable are the entitlements that a client may ask for.
func grantable(cfg *Config) []string {
	granted := []string{}
	if cfg.AllowHostNetwork {
		granted = append(granted, string(entitlements.EntitlementNetworkHost))
	}
	if cfg.AllowInsecure {
		granted = append(granted, string(entitlements.EntitlementSecurityInsecure))
	}
	return granted
}

func registryConfig(registries map[string]Registry) map[string]resolverconfig.RegistryConfig {
	out := make(map[string]resolverconfig.RegistryConfig, len(registries))
	for host, r := range registries {
		c := resolverconfig.RegistryConfig{Mirrors: r.Mirrors, RootCAs: r.TrustedCerts}
		if r.PlainHTTP || len(r.TrustedCerts) > 0 {
			c.PlainHTTP = &r.PlainHTTP
		}
		out[host] = c
	}
	return out
}
