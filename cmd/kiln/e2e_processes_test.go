package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kiln/internal/apiclient"
	"kiln/internal/bus"
	"kiln/internal/run"
	"kiln/internal/store"
)

// natsCommand is a NATS server as a process of its own: DIR and HOST:PORT are its arguments.
const natsCommand = "nats-of-others"

func natsMain() {
	s, err := bus.StartServer(bus.ServerConfig{Dir: os.Args[1], Listen: os.Args[2], Token: natsToken, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready at", s.Address(), ".")
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	<-end
	s.Shutdown()
}

// A process is one of those that together are a server.
type process struct {
	t    testing.TB
	name string
	data string
	argv []string
	env  []string
	log  *syncBuffer
	cmd  *exec.Cmd
	gone chan struct{}
}

// start starts the process and waits until it says that it is ready; it returns what it says.
func (p *process) start() string {
	p.t.Helper()
	p.cmd = exec.Command(p.argv[0], p.argv[1:]...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stderr = p.log
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.gone = make(chan struct{})
	line, err := bufio.NewReader(out).ReadString('\n')
	go func(cmd *exec.Cmd, gone chan struct{}) {
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
		close(gone)
	}(p.cmd, p.gone)
	if err != nil {
		<-p.gone
		p.t.Fatalf("%s is not ready: %v\n%s", p.name, err, p.log)
	}
	return line
}

// end sends the process a signal to end, and waits until it has.
func (p *process) end(s syscall.Signal) {
	p.t.Helper()
	_ = p.cmd.Process.Signal(s)
	select {
	case <-p.gone:
	case <-time.After(time.Minute):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT)
		<-p.gone
		p.t.Errorf("%s did not end within a minute of %s", p.name, s)
	}
}

// daemon is the process ID of the worker's build daemon, 0 if there is none now.
func (p *process) daemon() int { return (&server{t: p.t, cmd: p.cmd}).daemon() }

// A cluster is a server of several processes, all on this host: NATS, a server with the registry, another one, and
// workers.
type cluster struct {
	t       *testing.T
	dir     string
	tmp     string // for temporary files
	ip      string // at which they reach each other
	address string // of NATS
	nats    *process
	first   *process // has the registry
	second  *process
	workers []*process
	clients []*apiclient.Client // of both servers
	host    string              // of the registry

	serveArgs []string // of each server
}

// clusterLease is how long a worker of the tests is not heard of before it is lost.
const clusterLease = 5 * time.Second

// newCluster starts NATS and two servers at an address of this host, each with serveArgs. The first one has the registry,
// these roles and more arguments. All that is started ends when t does.
func newCluster(t *testing.T, ip, roles string, serveArgs []string, registry ...string) *cluster {
	t.Helper()
	tmp, err := os.MkdirTemp("", "kiln-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	c := &cluster{t: t, dir: t.TempDir(), tmp: tmp, ip: ip, address: ip + ":" + freePort(t, ip), serveArgs: serveArgs}
	if err := os.WriteFile(filepath.Join(c.dir, "token"), []byte(natsToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.nats = c.process("nats", natsCommand, filepath.Join(c.dir, "js"), c.address)
	c.first = c.serve("first", "registry"+roles, registry...)
	c.second = c.serve("second", "api,triggers,scheduler")
	return c
}

func freePort(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// process starts a process.
func (c *cluster) process(name string, argv ...string) *process {
	c.t.Helper()
	p := &process{t: c.t, name: name, data: filepath.Join(c.dir, name), argv: argv, env: []string{"TMPDIR=" + c.tmp}, log: &syncBuffer{}}
	p.start()
	c.t.Cleanup(func() {
		p.end(syscall.SIGTERM)
		if c.t.Failed() {
			c.t.Logf("log of %s:\n%s", name, p.log)
		}
	})
	return p
}

// serve starts a process with roles of a server.
func (c *cluster) serve(name, roles string, more ...string) *process {
	c.t.Helper()
	address := c.ip + ":" + freePort(c.t, c.ip)
	if c.host == "" {
		c.host = address
	}
	keys := filepath.Join(c.dir, "keys")
	args := []string{"--role", roles, "--keys", keys, "--listen", address, "--lease", clusterLease.String()}
	p := c.process(name, c.args("serve", name, slices.Concat(args, c.serveArgs, more)...)...)
	token, err := apiclient.ReadToken(keys)
	if err != nil {
		c.t.Fatal(err)
	}
	client := &apiclient.Client{BaseURL: "http://" + address, Token: token}
	if i := slices.Index(more, "--tls-cert"); i >= 0 {
		pem, err := os.ReadFile(more[i+1])
		if err != nil {
			c.t.Fatal(err)
		}
		roots, err := systemRoots(pem)
		if err != nil {
			c.t.Fatal(err)
		}
		client.BaseURL = "https://" + address
		client.HTTP = apiclient.NewHTTP(client.BaseURL, &tls.Config{RootCAs: roots})
		c.t.Cleanup(client.HTTP.CloseIdleConnections)
	}
	c.clients = append(c.clients, client)
	return p
}

func (c *cluster) args(command, name string, more ...string) []string {
	return append([]string{"kiln", command, "--data", filepath.Join(c.dir, name), "--nats", "nats://" + c.address,
		"--nats-token-file", filepath.Join(c.dir, "token"), "--allow-source", "127.0.0.0/8", "-v"}, more...)
}

// work starts a worker.
func (c *cluster) work(name string, args ...string) *process {
	c.t.Helper()
	p := c.process(name, c.workerArgs(name, args...)...)
	c.workers = append(c.workers, p)
	return p
}

func (c *cluster) workerArgs(name string, args ...string) []string {
	return c.args("worker", name, append([]string{"--name", name, "--parallel", "2", "--grace", "1s"}, args...)...)
}

// server is one of the processes as commands see it.
func (c *cluster) server(p *process, n int) *server {
	return &server{t: c.t, data: filepath.Join(c.dir, "keys"), tmp: c.tmp, cmd: p.cmd, url: c.clients[n].BaseURL, log: p.log, gone: p.gone}
}

// kiln runs a command against the second server, which has not got the registry, and returns what it prints.
func (c *cluster) kiln(args ...string) string {
	c.t.Helper()
	r := runKiln(c.t, []string{"KILN_SERVER=" + c.clients[1].BaseURL, "KILN_TOKEN=" + c.clients[1].Token}, args...)
	if r.code != 0 {
		c.t.Fatalf("kiln %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// any asks the servers in turn until one answers. An answer that says that the question is wrong is an error.
func (c *cluster) any(ctx context.Context, ask func(*apiclient.Client) error) error {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for i := 0; ; i++ {
		err := ask(c.clients[i%len(c.clients)])
		var refused *apiclient.Error
		if err == nil || errors.As(err, &refused) && refused.Status < 500 && refused.Status != 404 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no server answers: %w", err)
		case <-again.C:
		}
	}
}

// record waits until a run is as ok says.
func (c *cluster) record(ctx context.Context, id string, ok func(run.Run) bool) (r run.Run, err error) {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		if err = c.any(ctx, func(k *apiclient.Client) (err error) { r, err = k.Run(ctx, id); return err }); err != nil || ok(r) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("run %s stays %s after attempt %d: %s", id, r.State, r.Attempt, r.Reason)
		case <-again.C:
		}
	}
}

func ended(r run.Run) bool { return r.State.Final() }

// connect connects to NATS.
func (c *cluster) connect() *bus.Conn {
	c.t.Helper()
	nc, err := bus.Connect(c.t.Context(), bus.Remote{URLs: []string{"nats://" + c.address}, TokenFile: filepath.Join(c.dir, "token")}, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// open reads the messages and the state as they are in NATS.
func (c *cluster) open() (*bus.Bus, *store.Store) {
	c.t.Helper()
	nc := c.connect()
	b, err := bus.Open(c.t.Context(), nc, slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatal(err)
	}
	st, err := store.OpenShared(c.t.Context(), b.JetStream(), clusterLease, 1, false)
	if err != nil {
		c.t.Fatal(err)
	}
	return b, st
}
