package buildkit_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"

	"kiln/internal/buildkit"
	"kiln/internal/event"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
)

// A daemonized is a service in the background.
type daemonized struct {
	*journal
	stop  context.CancelCauseFunc
	ended chan error
}

// serve starts c as a service and returns once it says "up".
func serve(t *testing.T, s solve.Session, c solve.Container) *daemonized {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	d := &daemonized{newJournal(), cancel, make(chan error, 1)}
	started := make(chan struct{})
	c.Started = func() { close(started) }
	go func() {
		_, err := s.Run(ctx, c, d.log)
		d.ended <- err
	}()
	t.Cleanup(func() { cancel(nil) })
	select {
	case <-started:
	case err := <-d.ended:
		t.Fatalf("service %s: %v\n%s", c.Step, err, d.all())
	}
	d.await(t, "up\n")
	return d
}

// web is a service of that name that answers on port 8080.
func (e *env) web(name string) solve.Container {
	c := e.shell("echo up; exec busybox httpd -f -v -p 8080 -h /etc")
	c.Step = name
	return c
}

// knock is a shell function that prints whether port 8080 of a host answers with a page. Names are looked
// up in the hosts file only: a nameserver takes long to say that it knows nothing of them.
const knock = `addr() { case $1 in [0-9]*) echo $1;; *) busybox awk -v n="$1" '!/^#/ { for (i = 2; i <= NF; i++) if ($i == n) print $1 }' /etc/hosts;; esac; }
knock() {
	a=$(addr $1)
	if [ "$a" ] && printf 'GET /passwd HTTP/1.0\r\n\r\n' | busybox timeout 1 busybox nc $a ${2:-8080} 2>/dev/null | busybox grep -q '200 OK'
	then echo "$1 answers"; else echo "$1 does not"; fi
}
all() { for door; do knock $door $PORT & done; wait; }
`

// knocks executes the script, which knocks at doors, and returns what it says.
func (e *env) knocks(t *testing.T, s solve.Session, c solve.Container, script string) string {
	t.Helper()
	c.Image, c.Args = e.base, []string{"sh", "-c", knock + script}
	if c.Step == "" {
		c.Step = "test"
	}
	_, j := runStep(t, s, c)
	return sorted(j.text(event.StreamStdout))
}

// sorted returns the lines of what was said, in order.
func sorted(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func testServices(t *testing.T, e *env) {
	s := e.open(t, solve.SessionConfig{})
	web := serve(t, s, e.web("My_Web"))
	if got, want := e.knocks(t, s, solve.Container{}, "all My_Web my-web other"), "My_Web answers\nmy-web answers\nother does not"; got != want {
		t.Errorf("a later step: %q, want %q", got, want)
	}
	web.awaitErr(t, "response:200") // httpd -v says so
	if got := e.knocks(t, s, solve.Container{}, "cat /etc/hosts /proc/sys/kernel/hostname"); regexp.MustCompile(`[0-9a-f]{16}`).MatchString(got) {
		t.Errorf("a step sees the key of its network: %q", got)
	}
	stubborn := e.shell("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
	stubborn.Step = "stubborn"
	bye := serve(t, s, stubborn)
	why := errors.New("stop it")
	for _, d := range []*daemonized{web, bye} {
		d.stop(why)
		if err := <-d.ended; !errors.Is(err, why) {
			t.Errorf("a service that was stopped: %v, want %v", err, why)
		}
	}
	if got := bye.text(event.StreamStdout); got != "up\nbye\n" {
		t.Errorf("the service said %q, want that it had got SIGTERM", got)
	}
	if got := e.knocks(t, s, solve.Container{}, "knock My_Web"); got != "My_Web does not" {
		t.Errorf("after its end: %q", got)
	}
}

// testUnprepared stops containers whose first process has no handler for SIGTERM, which the kernel therefore
// keeps from it: nobody waits for the period of grace.
func testUnprepared(t *testing.T, e *env) {
	c, err := buildkit.New(buildkit.Config{Address: e.address, StopGrace: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s := c.Open(solve.SessionConfig{Run: "r3", Attempt: 1, Registry: e.registry, Insecure: true})
	for _, d := range []*daemonized{serve(t, s, e.web("web")), serve(t, s, e.shell("echo up; sleep 86399.321; echo no"))} {
		d.stop(errors.New("stop it"))
		<-d.ended
		if got := d.text(event.StreamStdout); got != "up\n" {
			t.Errorf("it said %q", got)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	_, err = s.Run(ctx, solve.Container{Step: "never", Image: e.base, Args: []string{"nope"}, Started: func() {}}, func(entries ...event.LogEntry) { stop() })
	var failed *solve.StepError
	if !errors.As(err, &failed) || failed.ExitCode != 127 {
		t.Errorf("stopped when it had not come up: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// testIsolation has attackers at every place from which one could reach the service of a run.
func testIsolation(t *testing.T, e *env) {
	s, other := e.open(t, solve.SessionConfig{}), e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"a": "a"})})
	serve(t, s, e.web("web"))
	serve(t, other, e.web("theirs"))
	back := e.web("db")
	back.NetworkName = "back"
	serve(t, s, back)
	ours, theirs := e.knocks(t, s, solve.Container{}, "addr web"), e.knocks(t, other, solve.Container{}, "addr theirs")
	db := e.knocks(t, s, solve.Container{NetworkName: "back"}, "addr db")
	doors := func(addrs ...string) string { return "all " + strings.Join(addrs, " ") + "\n" }
	for _, c := range []struct {
		name   string
		s      solve.Session
		c      solve.Container
		script string
		want   string
	}{
		{"step of the run", s, solve.Container{}, doors(ours, "web"), ours + " answers\nweb answers"},
		{"step of another run", other, solve.Container{}, doors(ours, "web"), ours + " does not\nweb does not"},
		{"the other way", s, solve.Container{}, doors(theirs, "theirs"), theirs + " does not\ntheirs does not"},
		{"on the network's own", s, solve.Container{NetworkName: "back"}, doors(db, "db"), db + " answers\ndb answers"},
		{"another network of the run", s, solve.Container{}, doors(db, "db"), db + " does not\ndb does not"},
		{"from another network of the run", s, solve.Container{NetworkName: "back"}, doors(ours, "web"), ours + " does not\nweb does not"},
		{"alone", s, solve.Container{Network: solve.NetworkAlone}, doors(ours, db, "web"), ours + " does not\n" + db + " does not\nweb does not"},
		{"none", s, solve.Container{Network: solve.NetworkNone}, doors(ours, "web"), ours + " does not\nweb does not"},
		{"privileges of a network administrator", other, solve.Container{User: "0"},
			"busybox ip addr add " + ours + "/24 dev eth0; busybox ip route add " + db + " dev eth0;" + doors(db), db + " does not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got, want := e.knocks(t, c.s, c.c, c.script), sorted(c.want); got != want {
				t.Errorf("it finds %q, want %q", got, want)
			}
		})
	}
	t.Run("RUN", func(t *testing.T) {
		t.Parallel()
		for name, s := range map[string]solve.Session{"of the run": e.open(t, solve.SessionConfig{}), "of another": other} {
			got := e.runInBuild(t, s, doors(ours, theirs, db, "web"))
			if strings.Contains(got, "answers") || strings.Count(got, "does not") != 4 {
				t.Errorf("RUN %s finds %q, want nobody", name, got)
			}
		}
	})
	t.Run("a frontend that chooses its host name", func(t *testing.T) {
		t.Parallel()
		for _, hostname := range []string{"web.r1", "web"} {
			if got := e.exec(t, hostname, doors(ours)); got != ours+" does not" {
				t.Errorf("%s finds %q", hostname, got)
			}
		}
	})
}

// testHost has containers try the host's own services, at all of its addresses.
func testHost(t *testing.T, e *env) {
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprint(c, "HTTP/1.0 200 OK\r\n\r\n")
			_ = c.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := e.open(t, solve.SessionConfig{})
	serve(t, s, e.web("web")) // its bridge has an address of the host, too
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	script, n := "PORT="+port+"\nall", 0
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil {
			script += " " + ip.IP.String()
			n++
		}
	}
	script += "\n"
	if n < 2 {
		t.Fatalf("the host has only the addresses %v", addrs)
	}
	for name, got := range map[string]string{
		"cmd": e.knocks(t, s, solve.Container{}, script), "cmd alone": e.knocks(t, s, solve.Container{Network: solve.NetworkAlone}, script),
		"RUN": e.runInBuild(t, s, script),
	} {
		if strings.Contains(got, "answers") || strings.Count(got, "does not") != n {
			t.Errorf("%s finds %q, want none of %d addresses", name, got, n)
		}
	}
}

// runInBuild executes the script in a RUN step of a build and returns what it says.
func (e *env) runInBuild(t *testing.T, s solve.Session, script string) string {
	t.Helper()
	_, j := build(t, s, solve.Build{Step: "b", NoCache: true, Staging: e.staging(),
		DockerfileInline: []byte("FROM " + e.base + "\nRUN <<'EOF'\n" + knock + script + "EOF\n")})
	return j.text(event.StreamStdout)
}

// exec executes the script as a frontend could have it executed, under any host name.
func (e *env) exec(t *testing.T, hostname, script string) string {
	t.Helper()
	c, err := client.New(t.Context(), e.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	def, err := llb.Image(e.base).Hostname(hostname).AddEnv("BUST", t.Name()+hostname).
		Run(llb.Args([]string{"sh", "-c", "(" + knock + script + ") >/out/said"})).AddMount("/out", llb.Scratch()).Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, err = c.Solve(t.Context(), def, client.SolveOpt{Exports: []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: dir}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	said, err := os.ReadFile(filepath.Join(dir, "said"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(said))
}

// TestServiceDoesNotOutliveItsWorker has a daemon of its own, where the workspace may stay behind.
func TestServiceDoesNotOutliveItsWorker(t *testing.T) {
	e := newEnv(t)
	c, err := buildkit.New(buildkit.Config{Address: e.address, StopGrace: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	s := c.Open(solve.SessionConfig{Run: "r2", Attempt: 1, Registry: e.registry, Insecure: true})
	const mark = "86399.123"
	d := serve(t, s, e.shell("trap '' TERM; echo up; while :; do sleep "+mark+"; done"))
	awaitProcesses(t, mark, func(n int) bool { return n == 2 })
	if err := c.Close(); err != nil { // as a process does that is killed
		t.Fatal(err)
	}
	if err := <-d.ended; !errors.Is(err, solve.ErrUnavailable) {
		t.Errorf("Run: %v, want %v", err, solve.ErrUnavailable)
	}
	awaitProcesses(t, mark, func(n int) bool { return n == 0 })
}

// awaitProcesses waits until the number of the host's processes with that mark is right.
func awaitProcesses(t *testing.T, mark string, right func(n int) bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(15 * time.Second); !right(processes(t, mark)); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%d processes with %s", processes(t, mark), mark)
		}
	}
}

// processes counts those of the host whose command line contains mark.
func processes(t *testing.T, mark string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil && strings.Contains(string(line), mark) {
			n++ // one that has just ended is none
		}
	}
	return n
}

// awaitErr blocks until stderr contains want.
func (j *journal) awaitErr(t testing.TB, want string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(j.text(event.StreamStderr), want); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the output: %s", want, j.all())
		}
	}
}

// TestServicesOnTheHostsNetwork has a daemon of others that separates nothing: names lead to the host.
func TestServicesOnTheHostsNetwork(t *testing.T) {
	e := newEnvAt(t, solvertest.StartStock(t, "--oci-worker-net=host").Address)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil { // the service takes it
		t.Fatal(err)
	}
	t.Run("docker", func(t *testing.T) { testDocker(t, e) })
	s := e.open(t, solve.SessionConfig{})
	c := e.shell("echo up; exec busybox httpd -f -p " + port + " -h /etc")
	c.Step = "My_Web"
	serve(t, s, c)
	got := e.knocks(t, s, solve.Container{Peers: []string{"My_Web"}}, "for i in 1 2 3 4 5; do knock My_Web "+port+"; knock my-web "+port+"; done | busybox grep answers | busybox sort -u")
	if want := "My_Web answers\nmy-web answers"; got != want {
		t.Errorf("a later step: %q, want %q", got, want)
	}
}
