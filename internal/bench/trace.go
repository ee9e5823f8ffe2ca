package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"kiln/internal/apiclient"
)

// trace shows where the time of a cached build goes, for kiln and for buildctl on the same stock
// daemon: proxies before the daemon and before kiln's API note what passes when. The proxies cost
// time themselves, so the parts are for orientation and their sum is no benchmark.
func trace(ctx context.Context, l *lab) (results []result, err error) {
	address, err := l.startBuildkitd(ctx)
	if err != nil {
		return nil, err
	}
	daemon, err := startProxy(filepath.Join(l.dir, "proxy.sock"), address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, daemon.close()) }()
	k, err := l.startKiln(ctx, "unix://"+filepath.Join(l.dir, "proxy.sock"))
	if err != nil {
		return nil, err
	}
	api, err := startTap(ctx, k.url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, api.close()) }()
	kiln, err := l.kilnSide(ctx, k)
	if err != nil {
		return nil, err
	}
	kiln.vary = true
	kiln.command = through(api, k, kiln.command)
	peer, err := l.buildctlSide(ctx, "buildctl", "unix://"+filepath.Join(l.dir, "proxy.sock"), k.store)
	if err != nil {
		return nil, err
	}
	var t timeline
	for round := range warmUp + l.n {
		if round == warmUp {
			t = timeline{}
		}
		for _, s := range []*side{kiln, peer} {
			daemon.take()
			api.take()
			if _, err := s.build(ctx); err != nil {
				return nil, err
			}
			if err := t.add(s, daemon.take(), api.take()); err != nil {
				return nil, err
			}
		}
	}
	return t.results(), nil
}

// through has a command talk to the API through a tap.
func through(t *tap, k *kilnServer, command func(context.Context) (*exec.Cmd, func(string) string)) func(context.Context) (*exec.Cmd, func(string) string) {
	return func(ctx context.Context) (*exec.Cmd, func(string) string) {
		cmd, image := command(ctx)
		cmd.Env = append(os.Environ(), "KILN_SERVER="+t.url, "KILN_TOKEN="+k.password)
		return cmd, image
	}
}

// A timeline collects the parts of builds, in the order in which they were first seen.
type timeline struct {
	names []string
	parts map[string][]time.Duration
}

func (t *timeline) note(name string, d time.Duration) {
	if t.parts == nil {
		t.parts = map[string][]time.Duration{}
	}
	if _, known := t.parts[name]; !known {
		t.names = append(t.names, name)
	}
	t.parts[name] = append(t.parts[name], d)
}

// add takes in one build of a side.
func (t *timeline) add(s *side, solves, requests []call) error {
	if len(solves) != 1 {
		return fmt.Errorf("%s: a build made %d solves, 1 was expected", s.name, len(solves))
	}
	solve := solves[0]
	if s.name != "kiln" {
		t.note("buildctl 1: start of the process to solve", solve.begun.Sub(s.begun))
		t.note("buildctl 2: solve", solve.ended.Sub(solve.begun))
		t.note("buildctl 3: solve to exit", s.ended.Sub(solve.ended))
		return nil
	}
	var submit, follow call
	for _, r := range requests {
		switch {
		case r.name == "POST "+apiclient.PathRuns:
			submit = r
		case strings.HasSuffix(r.name, "/log"):
			follow = r
		}
	}
	if submit.begun.IsZero() || follow.begun.IsZero() {
		return fmt.Errorf("kiln: requests of a build were %v", requests)
	}
	t.note("kiln 1: start of the process to submission", submit.begun.Sub(s.begun))
	t.note("kiln 2: submission to solve", solve.begun.Sub(submit.begun))
	t.note("kiln 2a: of that, to the answer", submit.ended.Sub(submit.begun))
	t.note("kiln 3: solve", solve.ended.Sub(solve.begun))
	t.note("kiln 4: solve to end of the log stream", follow.ended.Sub(solve.ended))
	t.note("kiln 5: end of the log stream to exit", s.ended.Sub(follow.ended))
	return nil
}

func (t *timeline) results() []result {
	var out []result
	for _, name := range t.names {
		s := summarize(t.parts[name])
		out = append(out, result{What: name, Unit: "ms", Value: s.P50, Kiln: &s})
	}
	return out
}

// A tap stands before an HTTP server and notes when requests begin and end.
type tap struct {
	url    string
	server *http.Server

	open     sync.WaitGroup // requests under way
	mu       sync.Mutex
	requests []call
}

func startTap(ctx context.Context, upstream string) (*tap, error) {
	u, err := url.Parse(upstream)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	rp := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }, FlushInterval: -1}
	t := &tap{url: "http://" + l.Addr().String()}
	t.server = &http.Server{ReadHeaderTimeout: startWithin, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.open.Add(1)
		defer t.open.Done()
		begun := time.Now()
		defer func() { // the proxy panics when the client hangs up first
			t.mu.Lock()
			defer t.mu.Unlock()
			t.requests = append(t.requests, call{name: r.Method + " " + r.URL.Path, begun: begun, ended: time.Now()})
		}()
		rp.ServeHTTP(w, r)
	})}
	go func() { _ = t.server.Serve(l) }() // ends with Close
	return t, nil
}

func (t *tap) close() error { return t.server.Close() }

// take waits for the requests under way and returns those that have ended since the last call.
func (t *tap) take() []call {
	t.open.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.requests
	t.requests = nil
	return r
}
