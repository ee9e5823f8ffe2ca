package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/moby/buildkit/client"

	"kiln/internal/apiclient"
)

// A store is a registry that images are pushed to.
type store struct {
	host         string // 127.0.0.1:port
	password     string // empty for anonymous access
	dockerConfig string // directory of a docker configuration with that password
}

func (s store) auth() authn.Authenticator {
	if s.password == "" {
		return authn.Anonymous
	}
	return &authn.Basic{Username: "kiln", Password: s.password}
}

// startBuildkitd starts BuildKit's daemon with its own defaults and returns its address.
func (l *lab) startBuildkitd(ctx context.Context) (string, error) {
	dir, err := l.mkdir("buildkitd")
	if err != nil {
		return "", err
	}
	addr := "unix://" + filepath.Join(dir, "sock")
	p, err := l.start("buildkitd", exec.CommandContext(context.WithoutCancel(ctx), l.buildkitd, "--root", filepath.Join(dir, "root"),
		"--addr", addr, "--containerd-worker=false", "--config", filepath.Join(dir, "none.toml")))
	if err != nil {
		return "", err
	}
	c, err := client.New(ctx, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return addr, p.await(ctx, func(ctx context.Context) error {
		_, err := c.ListWorkers(ctx)
		return err
	})
}

const registryConfig = `version: 0.1
log: {level: error}
storage:
  cache: {blobdescriptor: inmemory}
  filesystem: {rootdirectory: %s}
http: {addr: %s}
`

// startRegistry starts Debian's docker-registry, configured as Debian does but without passwords.
func (l *lab) startRegistry(ctx context.Context) (store, error) {
	dir, err := l.mkdir("docker-registry")
	if err != nil {
		return store{}, err
	}
	host, err := freeAddress(ctx)
	if err != nil {
		return store{}, err
	}
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, filepath.Join(dir, "data"), host), 0o644); err != nil {
		return store{}, err
	}
	p, err := l.start("docker-registry", exec.CommandContext(context.WithoutCancel(ctx), "docker-registry", "serve", config))
	if err != nil {
		return store{}, fmt.Errorf("%w; install it with: apt-get install docker-registry", err)
	}
	s := store{host: host, dockerConfig: dir} // which has no config.json
	return s, p.await(ctx, func(ctx context.Context) error { return get(ctx, "http://"+host+"/v2/") })
}

// startStock starts a stock buildkitd, Debian's docker-registry, and kiln on that daemon, with more flags.
func (l *lab) startStock(ctx context.Context, more ...string) (address string, reg store, k *kilnServer, err error) {
	if address, err = l.startBuildkitd(ctx); err != nil {
		return "", store{}, nil, err
	}
	if reg, err = l.startRegistry(ctx); err != nil {
		return "", store{}, nil, err
	}
	k, err = l.startKiln(ctx, address, more...)
	return address, reg, k, err
}

// freeAddress returns a loopback address that nobody listens on.
func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}

// A kilnServer is a running kiln.
type kilnServer struct {
	*process
	store
	data string
	url  string
}

// startKiln starts kiln on the lab's data directory for it, with its own build daemon if buildkit is
// empty, and with more flags.
func (l *lab) startKiln(ctx context.Context, buildkit string, more ...string) (*kilnServer, error) {
	dir, err := l.mkdir("kiln")
	if err != nil {
		return nil, err
	}
	args := []string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--allow-source", "127.0.0.0/8"}
	if buildkit != "" {
		args = append(args, "--buildkit", buildkit, "--buildkit-host-network")
	}
	args = append(args, more...)
	p, err := l.start("kiln serve", exec.CommandContext(context.WithoutCancel(ctx), l.kiln, args...))
	if err != nil {
		return nil, err
	}
	k := &kilnServer{process: p, data: dir}
	err = p.await(ctx, func(context.Context) error {
		at, err := apiclient.Locate(dir)
		if err == nil && !strings.Contains(p.log.String(), "ready") {
			err = errors.New("no line that says so")
		}
		k.url = at.URL
		return err
	})
	if err != nil {
		return nil, err
	}
	k.host = strings.TrimPrefix(k.url, "http://")
	if k.password, err = apiclient.ReadToken(dir); err != nil {
		return nil, err
	}
	k.dockerConfig, err = l.writeDockerConfig(k.store)
	return k, err
}

func (l *lab) writeDockerConfig(s store) (string, error) {
	dir, err := l.mkdir("docker-config")
	if err != nil {
		return "", err
	}
	auth := base64.StdEncoding.EncodeToString([]byte("kiln:" + s.password))
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, s.host, auth), 0o600)
}

// client returns a client of the server's API.
func (k *kilnServer) client() *apiclient.Client {
	return &apiclient.Client{BaseURL: k.url, Token: k.password, HTTP: apiclient.NewHTTP(k.url, nil)}
}
