package main

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kiln/internal/run"
)

// A tarpit accepts connections and never answers.
type tarpit struct {
	host string
	met  chan struct{} // closed at the first connection
}

func newTarpit(t *testing.T) *tarpit {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &tarpit{host: l.Addr().String(), met: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var open []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				for _, c := range open {
					_ = c.Close()
				}
				return
			}
			if open = append(open, c); len(open) == 1 {
				close(p.met)
			}
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return p
}

// A phase is what a run is at when it is stopped.
type phase struct {
	name       string
	source     string // is fetched and built; there is no task
	dockerfile string // base if empty
	task       string // its steps; PIT is the host of a tarpit
	asked      bool   // is stopped by a request alone: that a time limit does the same the others show
	said       string // in the log once the run has come so far; if empty, the tarpit is met
}

var phases = []phase{
	{name: "repository", source: "http://PIT/o/r.git"},
	{name: "tarball", asked: true, source: "http://PIT/c.tar.gz"},
	{name: "artifact", asked: true, source: "oci://PIT/c:1"},
	{name: "pull of a base", dockerfile: "FROM PIT/base:1\n", task: "- build: .\n"},
	{name: "pull of a step's image", task: "- cmd: PIT/tool:1 run\n"},
	{name: "context of a build", task: "- build: -t box http://PIT/o/r.git\n"},
	{name: "import of a cache", asked: true, task: "- build: --cache-from PIT/cache:1 .\n"},
	{name: "file of a Dockerfile", asked: true, dockerfile: "FROM scratch\nADD http://PIT/file /file\n", task: "- build: .\n"},
	{name: "docker pull", asked: true, task: "- cmd: docker pull PIT/tool:1\n"},
	{name: "build", dockerfile: base + "RUN echo begun; sleep 600\n", said: "begun",
		task: "- build: -t $Registry/cancel/build:v1 .\n- push: [$Registry/cancel/build:v1]\n"},
	{name: "cmd", said: "begun", task: "- cmd: $Registry/box:1 sh -c 'echo begun; sleep 600'\n"},
	{name: "cmd that ignores SIGTERM", said: "begun",
		task: "- cmd: $Registry/box:1 sh -c 'trap \"\" TERM; echo begun; while :; do sleep 1; done'\n"},
	{name: "service", said: "begun",
		task: "- {cmd: $Registry/box:1 httpd -f -p 80, detach: true}\n- cmd: $Registry/box:1 sh -c 'echo begun; sleep 600'\n"},
	{name: "push", task: "- build: -t PIT/far:1 .\n- push: [PIT/far:1]\n"},
	{name: "delay of a step", said: "done", task: "- cmd: $Registry/box:1 echo done\n- {cmd: $Registry/box:1 true, startDelay: 3000}\n"},
	{name: "delay of a retry", said: "retry 1 of 5 in", task: "- {cmd: $Registry/box:1 false, retries: 5, retryDelay: 3000}\n"},
}

// soon is how long the end of a run may take, from when it was asked for: a step has ten seconds from
// SIGTERM to SIGKILL.
const soon = 15 * time.Second

// TestStoppedRunsEndSoonAndLeaveNothing stops runs in each phase, by a request and by their time limit.
func TestStoppedRunsEndSoonAndLeaveNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--parallel", "32", "--allow-source", "127.0.0.0/8")
	s.must("build", "-t", "box:1", files(t, map[string]string{"Dockerfile": base}))
	var all sync.WaitGroup // all at once: they wait most of the time
	for _, p := range phases {
		for how, stop := range map[string]func(*testing.T, *server, phase) run.Run{"canceled": stopByRequest, "timed out": stopByTime} {
			if p.asked && how != "canceled" {
				continue
			}
			all.Go(func() {
				t.Run(p.name+" "+how, func(t *testing.T) {
					bound := *s
					bound.t = t
					r := stop(t, &bound, p)
					if len(r.Images) != 0 {
						t.Errorf("the run has published %v", r.Images)
					}
					checkEnded(t, &bound, r)
				})
			})
		}
	}
	all.Wait()
	checkIdle(t, s)
}

// begin starts a run. What it returns reports whether the run has come to its phase.
func (p phase) begin(t *testing.T, s *server, flags ...string) (id string, reached func() bool) {
	t.Helper()
	pit := newTarpit(t)
	var args []string
	fill := strings.NewReplacer("PIT", pit.host)
	if p.source != "" {
		args = append([]string{"build", "--no-wait", "-t", "cancel/source"}, append(flags, fill.Replace(p.source))...)
	} else {
		dockerfile := base
		if p.dockerfile != "" {
			dockerfile = fill.Replace(p.dockerfile)
		}
		args = append([]string{"run", "--no-wait"}, append(flags, files(t, map[string]string{"Dockerfile": dockerfile,
			"acr-task.yaml": "version: v1.1.0\nstepTimeout: 7200\nsteps:\n" + fill.Replace(p.task)}))...)
	}
	id = strings.TrimSpace(s.must(args...))
	if p.said != "" {
		log, _ := s.follow("logs", "-f", id)
		return id, func() bool { return strings.Contains(log.String(), p.said) }
	}
	return id, func() bool {
		select {
		case <-pit.met:
			return true
		default:
			return false
		}
	}
}

// stopByRequest cancels a run once it is in its phase.
func stopByRequest(t *testing.T, s *server, p phase) run.Run {
	id, reached := p.begin(t, s)
	waitUntil(t, 2*time.Minute, reached, func() string { return "the run did not come to its " + p.name + ":\n" + s.must("logs", id) })
	asked := time.Now()
	s.must("cancel", id)
	var r run.Run
	waitUntil(t, 2*time.Minute, func() bool { r = s.record(id); return r.State.Final() }, func() string { return "the run did not end" })
	t.Logf("ended after %s", r.Finished.Sub(asked))
	if took := r.Finished.Sub(asked); took > soon {
		t.Errorf("the run ended %s after it was asked to", took)
	}
	if r.State != run.Canceled {
		t.Errorf("the run is %s: %s", r.State, r.Reason)
	}
	return r
}

// stopByTime gives a run a time limit that ends in its phase. On a slow host it takes more than one try.
func stopByTime(t *testing.T, s *server, p phase) run.Run {
	for limit := 5 * time.Second; ; limit *= 2 {
		id, reached := p.begin(t, s, "--timeout", limit.String())
		var r run.Run
		came := false
		waitUntil(t, 2*time.Minute, func() bool { came = came || reached(); r = s.record(id); return r.State.Final() }, func() string {
			return "the run did not end:\n" + s.must("logs", id)
		})
		took := r.Finished.Sub(r.Started)
		switch {
		case r.State != run.Timeout:
			t.Fatalf("the run is %s: %s", r.State, r.Reason)
		case took > limit+soon:
			t.Errorf("the run ended after %s, its limit was %s", took, limit)
		case !came && limit < time.Minute:
			continue
		case !came:
			t.Errorf("the run did not come to its %s:\n%s", p.name, s.must("logs", id))
		}
		t.Logf("ended after %s", took-limit)
		return r
	}
}
