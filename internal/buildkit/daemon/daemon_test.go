package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/buildkit/daemon"
	"kiln/internal/solvertest"
)

func TestMain(m *testing.M) { solvertest.Main(m) }

func TestConfigIsCheckedAtOnce(t *testing.T) {
	err := daemon.Serve(t.Context(), daemon.Config{
		Root: "relative", Socket: "/" + strings.Repeat("s", 107), Snapshotter: "zfs", Parallelism: -1, StateTmpfs: "shm",
	})
	for _, want := range []string{`root "relative"`, "at most 107", `"zfs"`, "parallelism -1", `"shm"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Serve = %v, want it to name %s", err, want)
		}
	}
}

func TestChildWantsAConfiguration(t *testing.T) {
	for _, in := range []string{"", "{}", "no json\n", strings.Repeat(" ", 2<<20) + "\n"} {
		err := daemon.Child(t.Context(), strings.NewReader(in), slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "configuration") {
			t.Errorf("Child(%.10q) = %v, want an error about the configuration", in, err)
		}
	}
}

// TestDaemon is what one daemon does for its clients.
func TestDaemon(t *testing.T) {
	addr := solvertest.StartDaemon(t)
	for name, test := range map[string]func(*testing.T, string){
		"socket is for its owner only":           testSocketMode,
		"build step does not reach the host":     testHostUnreachable,
		"output is not clipped":                  testOutput,
		"entitlements are not granted":           testEntitlements,
		"steps of a run find each other by name": testRunNetwork,
	} {
		t.Run(name, func(t *testing.T) { test(t, addr) })
	}
}

func testSocketMode(t *testing.T, addr string) {
	fi, err := os.Stat(strings.TrimPrefix(addr, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket = %o, want 600", fi.Mode().Perm())
	}
}

func testNetworkOfStep(t *testing.T, addr string) {
	dir := mustBuild(t, addr, "RUN ip addr show eth0 >/net && ip route >>/net\n")
	b, err := os.ReadFile(filepath.Join(dir, "net"))
	if err != nil || !strings.Contains(string(b), "default via") {
		t.Errorf("network of the step: %s, %v, want a default route", b, err)
	}
}

func TestTwoDaemonsBuildAtOnce(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "native"} {
		t.Run(snapshotter, func(t *testing.T) {
			t.Parallel()
			testNetworkOfStep(t, solvertest.StartDaemonConfig(t, daemon.Config{Snapshotter: snapshotter}))
		})
	}
}

func testHostUnreachable(t *testing.T, addr string) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	dir := mustBuild(t, addr, fmt.Sprintf(
		"RUN for a in 127.0.0.1 $(ip route | cut -d' ' -f3 | head -n1); do nc -w 1 $a %s </dev/null >/dev/null 2>&1 && echo $a; done >/reached; true\n", port))
	if b, err := os.ReadFile(filepath.Join(dir, "reached")); err != nil || len(b) > 0 {
		t.Errorf("the host is reached at %q, %v, want nowhere", b, err)
	}
}

func testOutput(t *testing.T, addr string) {
	const lines = 50000
	c := dial(t, addr)
	status := make(chan *client.SolveStatus)
	counted := make(chan int)
	go func() {
		n := 0
		for s := range status {
			for _, l := range s.Logs {
				n += bytes.Count(l.Data, []byte("\n"))
			}
		}
		counted <- n
	}()
	tree := solvertest.Context(t, solvertest.Base+fmt.Sprintf("RUN yes %s | head -n %d\n", strings.Repeat("0123456789", 7), lines))
	_, err := c.Solve(t.Context(), nil, client.SolveOpt{
		Frontend:    "dockerfile.v0",
		LocalMounts: map[string]fsutil.FS{"context": tree, "dockerfile": tree},
	}, status)
	if err != nil {
		t.Fatal(err)
	}
	if n := <-counted; n < lines {
		t.Errorf("%d lines of output arrived, want %d at least", n, lines)
	}
}

func TestMirrorIsAskedFirst(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0))))
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "http://")
	addr := solvertest.StartDaemonConfig(t, daemon.Config{
		Registries: map[string]daemon.Registry{"docker.io": {Mirrors: []string{host}}},
	})
	c := dial(t, addr)
	tree := solvertest.Context(t, solvertest.Base+"RUN echo mirrored >/answer\n")
	_, err := c.Solve(t.Context(), nil, client.SolveOpt{
		Frontend:    "dockerfile.v0",
		LocalMounts: map[string]fsutil.FS{"context": tree, "dockerfile": tree},
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
			"name": host + "/library/base:1", "push": "true",
		}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := solvertest.Build(t.Context(), t, addr, solvertest.Context(t, "FROM base:1\nRUN grep mirrored /answer\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "answer")); err != nil {
		t.Error(err)
	}
}

func testEntitlements(t *testing.T, addr string) {
	for name, step := range map[string]llb.RunOption{
		"network.host":      llb.Network(pb.NetMode_HOST),
		"security.insecure": llb.Security(pb.SecurityMode_INSECURE),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a refusal takes BuildKit's client three seconds
			def, err := rootfs().Run(llb.Args([]string{"/bin/busybox", "true"}), step).Marshal(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = dial(t, addr).Solve(t.Context(), def, client.SolveOpt{
				LocalMounts:         map[string]fsutil.FS{"context": solvertest.Context(t, "")},
				AllowedEntitlements: []string{name},
			}, nil)
			if err == nil || !strings.Contains(err.Error(), "not allowed") {
				t.Errorf("step with %s: %v, want it to be refused", name, err)
			}
		})
	}
	t.Run("container with network.host", func(t *testing.T) {
		t.Parallel()
		inGateway(t, dial(t, addr), func(ctx context.Context, g gateway.Client, ref gateway.Reference) {
			ctr := newContainer(ctx, t, g, ref, gateway.NewContainerRequest{NetMode: pb.NetMode_HOST})
			if ctr == nil {
				return // refused here
			}
			if _, err := run(ctx, ctr, "true"); err == nil || !strings.Contains(err.Error(), "not a") { // allowed, or available
				t.Errorf("container with the host's network: %v, want it to be refused", err)
			}
		})
	})
}

func testRunNetwork(t *testing.T, addr string) {
	inGateway(t, dial(t, addr), func(ctx context.Context, g gateway.Client, ref gateway.Reference) {
		// The client starts first: it learns of the server while it runs.
		early := newContainer(ctx, t, g, ref, gateway.NewContainerRequest{Hostname: "early.r1"})
		keepRunning(ctx, t, early, "sleep", "60")
		web := newContainer(ctx, t, g, ref, gateway.NewContainerRequest{Hostname: "web.r1"})
		keepRunning(ctx, t, web, "httpd", "-f", "-p", "8080", "-h", "/bin")
		stranger := newContainer(ctx, t, g, ref, gateway.NewContainerRequest{Hostname: "stranger.r2"})

		// A static busybox cannot resolve names; this looks where any other program resolves them.
		const fetch = `for i in 1 2 3 4 5 6 7 8 9; do
			a=$(busybox awk -v n=$0 '!/^#/ { for (i = 2; i <= NF; i++) if ($i == n) print $1 }' /etc/hosts)
			busybox printf 'GET /sh HTTP/1.0\r\n\r\n' | busybox nc -w 2 $a 8080 | busybox grep -q '200 OK' && echo $a && exit 0
			busybox sleep 0.2
		done
		exit 1`
		out, err := run(ctx, early, "sh", "-c", fetch, "web")
		if err != nil {
			t.Fatalf("web from a step of the run: %v: %s", err, out)
		}
		words := strings.Fields(out) // what went wrong before comes first
		addr := words[len(words)-1]
		check := "busybox grep web /etc/hosts; busybox nc -w 1 " + addr + " 8080 </dev/null && echo connected; true"
		if out, err := run(ctx, stranger, "sh", "-c", check); err != nil || strings.Contains(out, "web") || strings.Contains(out, "connected") {
			t.Errorf("web from another run: %q, %v, want it to be unknown and out of reach", out, err)
		}
	})
}

func mustBuild(t *testing.T, addr, step string) (dir string) {
	t.Helper()
	dir, err := solvertest.Build(t.Context(), t, addr, solvertest.Context(t, solvertest.Base+step), nil)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func dial(t *testing.T, addr string) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// rootfs is a file system with busybox, out of the context.
func rootfs() llb.State {
	return llb.Scratch().File(llb.Mkdir("/bin", 0o755).Mkdir("/tmp", 0o777)).
		File(llb.Copy(llb.Local("context"), "busybox", "/bin/busybox")).
		File(llb.Copy(llb.Local("context"), "busybox", "/bin/sh"))
}

// inGateway calls f in a gateway session, with rootfs solved.
func inGateway(t *testing.T, c *client.Client, f func(context.Context, gateway.Client, gateway.Reference)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	opt := client.SolveOpt{LocalMounts: map[string]fsutil.FS{"context": solvertest.Context(t, "")}}
	_, err := c.Build(ctx, opt, "", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
		def, err := rootfs().Marshal(ctx)
		if err != nil {
			return nil, err
		}
		res, err := g.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return nil, err
		}
		f(ctx, g, res.Ref)
		return gateway.NewResult(), nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// newContainer returns nil if the container is refused. The end of the session releases it.
func newContainer(ctx context.Context, t *testing.T, g gateway.Client, ref gateway.Reference, req gateway.NewContainerRequest) gateway.Container {
	t.Helper()
	req.Mounts = []gateway.Mount{{Dest: "/", Ref: ref, MountType: pb.MountType_BIND}}
	ctr, err := g.NewContainer(ctx, req)
	if err != nil {
		return nil
	}
	return ctr
}

// run executes a busybox command and returns what it writes.
func run(ctx context.Context, ctr gateway.Container, args ...string) (string, error) {
	var out bytes.Buffer
	w := nopCloser{&out}
	p, err := ctr.Start(ctx, gateway.StartRequest{
		Args: append([]string{"/bin/busybox"}, args...), Cwd: "/", Env: []string{"PATH=/bin"}, Stdout: w, Stderr: w,
	})
	if err != nil {
		return "", err
	}
	err = p.Wait()
	return out.String(), err
}

// keepRunning executes a busybox command that ends with its container.
func keepRunning(ctx context.Context, t *testing.T, ctr gateway.Container, args ...string) {
	t.Helper()
	p, err := ctr.Start(ctx, gateway.StartRequest{Args: append([]string{"/bin/busybox"}, args...), Cwd: "/"})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		var exit *gatewaypb.ExitError
		if err := p.Wait(); err != nil && !errors.As(err, &exit) && ctx.Err() == nil {
			t.Log(err)
		}
	}()
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
