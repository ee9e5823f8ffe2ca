package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/buildkit"
	"kiln/internal/buildkit/daemon"
	"kiln/internal/buildkit/supervise"
)

// A builder is the BuildKit daemon that the worker uses: an own one, supervised, or one that exists.
type builder struct {
	cfg    serveConfig
	own    *supervise.Daemon // nil for one that exists
	daemon daemon.Config     // of the own one
	client *buildkit.Client
	log    *slog.Logger
}

func newBuilder(cfg serveConfig, own daemonRegistry, log *slog.Logger) (*builder, error) {
	b := &builder{cfg: cfg, log: log}
	address := cfg.buildkit
	if address == "" {
		dcfg, err := daemonConfig(cfg, own)
		if err != nil {
			return nil, err
		}
		b.daemon = dcfg
		b.own, err = supervise.New(supervise.Config{Daemon: dcfg, Args: []string{buildkitdCommand}, Logger: log})
		if err != nil {
			return nil, err
		}
		address = b.own.Address()
	}
	var err error
	b.client, err = buildkit.New(buildkit.Config{Address: address, Privileged: cfg.steps.privileged})
	return b, err
}

// A daemonRegistry is how the own daemon reaches the co-located registry.
type daemonRegistry struct {
	host    string
	at      string // where it is, if not at host
	aliases []string
	how     daemon.Registry
}

// daemonRegistry returns how the own daemon reaches the co-located registry. An empty token is none.
func (n *node) daemonRegistry(token string) daemonRegistry {
	r := daemonRegistry{host: n.host, at: n.registryAt, aliases: n.aliases, how: daemon.Registry{PlainHTTP: n.insecure}}
	if token != "" {
		r.how.Authorization = "Bearer " + token
	}
	if n.cert != nil && n.registry != nil {
		r.how.TrustedCerts = []string{n.cfg.tlsCert}
	}
	if n.remote != nil {
		if file := n.remote.certificate(); file != "" {
			r.how.TrustedCerts, r.how.CertName = []string{file}, hostOf(n.host)
		}
	}
	return r
}

// registries are the settings of the daemon: a registry elsewhere is a mirror of its name.
func (r daemonRegistry) registries() map[string]daemon.Registry {
	if r.at == "" || r.at == r.host {
		return map[string]daemon.Registry{r.host: r.how}
	}
	return map[string]daemon.Registry{r.host: {Mirrors: []string{r.at}, PlainHTTP: r.how.PlainHTTP, TrustedCerts: r.how.TrustedCerts, CertName: r.how.CertName}, r.at: r.how}
}

// daemonConfig is the configuration of the own daemon.
func daemonConfig(cfg serveConfig, registry daemonRegistry) (daemon.Config, error) {
	socket, err := socketPath(cfg.data)
	if err != nil {
		return daemon.Config{}, err
	}
	return daemon.Config{
		Root: filepath.Join(cfg.data, "buildkit"), Socket: socket, StateTmpfs: supervise.StateTmpfs(), Runc: cfg.runc,
		AllowInsecure: cfg.steps.privileged,
		Registries:    registry.registries(),
		OwnRegistries: registry.aliases,
		AllowSources:  cfg.allowSources,
		GC:            daemon.GC{Reserved: int64(cfg.cacheKeep), MaxUsed: int64(cfg.cacheMax), MinFree: int64(cfg.cacheFree)},
	}, nil
}

// socketPath is where the own daemon listens: in the data directory, or, where that path is too long
// for a socket, in a private directory of the system's temporary one.
func socketPath(data string) (string, error) {
	path := filepath.Join(data, "buildkitd.sock")
	if len(path) <= 100 {
		return path, nil
	}
	sum := sha256.Sum256([]byte(data))
	dir := filepath.Join(os.TempDir(), "kiln-"+hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	return filepath.Join(dir, "buildkitd.sock"), nil
}

func (b *builder) close() error { return b.client.Close() }

// run keeps the own daemon running until ctx ends.
func (b *builder) run(ctx context.Context) error {
	if b.own != nil {
		return b.own.Run(ctx)
	}
	<-ctx.Done()
	return nil
}

// sweep removes the workspaces of runs that a server left here which was killed.
func (b *builder) sweep(ctx context.Context) {
	if b.own != nil && b.own.Wait(ctx) != nil {
		return // and so is said elsewhere
	}
	if err := b.client.RemoveWorkspaces(ctx); err != nil && ctx.Err() == nil {
		b.log.Warn("workspaces of earlier runs not removed; they go when the build cache needs room", "err", err)
	}
}

// ready waits until the daemon answers, and refuses one that would connect containers to the host.
func (b *builder) ready(ctx context.Context) (buildkit.Info, error) {
	if b.own != nil {
		if err := b.own.Wait(ctx); err != nil {
			return buildkit.Info{}, err
		}
	}
	info, err := b.client.Info(ctx)
	if err != nil && (b.own != nil || slices.Equal(b.cfg.roles, []role{roleWorker})) { // the own one is started again
		info, err = b.await(ctx, err)
	}
	if err != nil {
		return info, err
	}
	if info.Network == "host" && !b.cfg.hostNetwork {
		return info, usagef("set up a network for the daemon with kiln cni, or accept it with --buildkit-host-network",
			"the BuildKit daemon at %s connects containers to the host's network, so runs would not be isolated from it", b.cfg.buildkit)
	}
	return info, nil
}

// daemonAgain is how often a daemon is asked for that does not answer.
const daemonAgain = time.Second

// await waits until the daemon answers, which did not because of err: it may be started again just now.
func (b *builder) await(ctx context.Context, err error) (info buildkit.Info, _ error) {
	b.log.Warn("waiting for the build daemon to answer", "err", err)
	again := time.NewTicker(daemonAgain)
	defer again.Stop()
	for err != nil {
		select {
		case <-ctx.Done():
			return info, context.Cause(ctx)
		case <-again.C:
		}
		info, err = b.client.Info(ctx)
	}
	return info, nil
}

// healthy reports why the daemon can execute nothing now.
func (b *builder) healthy(ctx context.Context) error {
	_, err := b.client.Info(ctx)
	return err
}

// hostChecks examines what an own build daemon needs of this host.
func hostChecks(ctx context.Context, cfg daemon.Config) []apiclient.Check {
	var checks []apiclient.Check
	for _, p := range supervise.Check(ctx, cfg) {
		checks = append(checks, apiclient.Check{Name: p.Name, OK: p.OK, Detail: p.Detail, Remedy: p.Remedy})
	}
	return checks
}

// checks examines what builds need.
func (b *builder) checks(ctx context.Context) []apiclient.Check {
	var checks []apiclient.Check
	if b.own != nil {
		checks = hostChecks(ctx, b.daemon)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	info, err := b.client.Info(ctx)
	if err != nil {
		return append(checks, apiclient.Check{Name: "build daemon", Detail: err.Error(), Remedy: "see the server's log"})
	}
	found := fmt.Sprintf("BuildKit %s, %s, network %s", info.Version, strings.Join(info.Platforms, " "), info.Network)
	if lack := missingIsolation(info); lack != "" {
		found += ": " + lack
	}
	return append(checks, apiclient.Check{Name: "build daemon", OK: true, Detail: found})
}

// missingIsolation says what the networks of a daemon lack that those of an own one have.
func missingIsolation(info buildkit.Info) string {
	switch info.Network {
	case "kiln", "kiln-cni":
		return ""
	case "host":
		return "containers share the network of the BuildKit daemon's host, as --buildkit-host-network allows: runs are isolated neither from it nor from each other"
	}
	return "containers are on a network of the BuildKit daemon: whether runs are isolated from each other and from its host is not known, and there are no services; kiln cni sets up networks that isolate them"
}
