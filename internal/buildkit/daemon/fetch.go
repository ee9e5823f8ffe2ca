package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	httpsource "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/worker/base"

	"kiln/internal/netguard"
)

// What builds fetch by URL goes through a guard that looks at the address of every connection, so that
// neither a redirect nor a name that resolves to something else the second time leads into the network that
// the daemon is in.

const (
	fetchIdle    = time.Minute
	headerLimit  = 64 << 10
	fetchHeaders = time.Minute // how long a server may take to begin its answer
)

// guard decides which addresses builds may fetch from.
func (c *Config) guard() (netguard.Guard, error) {
	allowed, err := netguard.ParseAllowed(c.AllowSources)
	if err != nil {
		return netguard.Guard{}, fmt.Errorf("allowed sources: %w", err)
	}
	return netguard.Guard{Allow: allowed.Address}, nil
}

// guardedTransport uses no proxy, which would evade the guard.
func guardedTransport(g netguard.Guard) *http.Transport {
	return &http.Transport{DialContext: g.Dial, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		ResponseHeaderTimeout: fetchHeaders, MaxIdleConns: 32, IdleConnTimeout: fetchIdle, MaxResponseHeaderBytes: headerLimit}
}

// guardHTTP gives the worker an HTTP source behind the guard.
func guardHTTP(w *base.Worker, cfg *Config) error {
	g, err := cfg.guard()
	if err != nil {
		return err
	}
	w.HTTPSource, err = httpsource.NewSource(httpsource.Opt{CacheAccessor: w.CacheMgr, Transport: guardedTransport(g)})
	if err != nil {
		return err
	}
	w.SourceManager.Register(w.HTTPSource)
	return nil
}

// gitWrapper is the program that BuildKit finds in the place of git. All that it fetches by HTTP goes through
// the proxy, submodules and redirects, too; what is fetched for a repository, as its submodules are, may not
// choose another protocol. A later -c wins: BuildKit allows itself to clone from its own directories.
const gitWrapper = `#!/bin/sh
unset http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY
exec %s -c http.proxy=http://%s -c protocol.allow=never -c protocol.http.allow=always -c protocol.https.allow=always -c protocol.ssh.allow=user "$@"
`

// guardGit makes the git program that BuildKit executes fetch through a proxy behind the guard. Without git
// there is nothing to be done.
func guardGit(cfg *Config) (stop func(), err error) {
	dir := filepath.Join(tmpDir(cfg.Root), "bin") // made anew at each start, and kept when the cache is discarded
	path := withoutDir(os.Getenv("PATH"), dir)
	git, err := lookPath(path, "git")
	if errors.Is(err, exec.ErrNotFound) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	g, err := cfg.guard()
	if err != nil {
		return nil, err
	}
	address, stop, err := serveProxy(g, cfg.Logger)
	if err != nil {
		return nil, err
	}
	script := fmt.Sprintf(gitWrapper, quoted(git), address)
	err = errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "git"), []byte(script), 0o700),
		os.Setenv("PATH", dir+string(filepath.ListSeparator)+path))
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// quoted returns a word of a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func withoutDir(path, dir string) string {
	var kept []string
	for _, d := range filepath.SplitList(path) {
		if d != dir {
			kept = append(kept, d)
		}
	}
	return strings.Join(kept, string(filepath.ListSeparator))
}

// lookPath is exec.LookPath in another path than the process's.
func lookPath(path, name string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// serveProxy serves an HTTP proxy on a loopback address until it is stopped.
func serveProxy(g netguard.Guard, log *slog.Logger) (address string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	transport := guardedTransport(g)
	refuse := func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusForbidden)
	}
	p := &proxy{guard: g, refuse: refuse, plain: &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}, Transport: transport,
		ErrorHandler: refuse, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}}
	srv := &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: headerLimit,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	ctx, cancel := context.WithCancel(context.Background())
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l) // ends with Close
	}()
	return l.Addr().String(), func() {
		cancel()
		_ = srv.Close()
		<-served
		p.tunnels.Wait()
		transport.CloseIdleConnections()
	}, nil
}

// A proxy forwards requests, and connections for HTTPS, to addresses that its guard admits.
type proxy struct {
	guard   netguard.Guard
	plain   *httputil.ReverseProxy
	refuse  func(http.ResponseWriter, *http.Request, error)
	tunnels sync.WaitGroup
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		p.tunnel(w, r)
	case r.URL.IsAbs():
		p.plain.ServeHTTP(w, r)
	default:
		p.refuse(w, r, errors.New("this is a proxy"))
	}
}

// tunnel connects the client with the host that it names.
func (p *proxy) tunnel(w http.ResponseWriter, r *http.Request) {
	p.tunnels.Add(1)
	defer p.tunnels.Done()
	there, err := p.guard.Dial(r.Context(), "tcp", r.Host)
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	defer there.Close()
	here, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.refuse(w, r, err)
		return
	}
	defer here.Close()
	end := context.AfterFunc(r.Context(), func() { here.Close(); there.Close() })
	defer end()
	if _, err := io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(here, there) // whichever side ends it
		here.Close()
	}()
	_, _ = io.Copy(there, buffered)
	there.Close()
	<-back
}
