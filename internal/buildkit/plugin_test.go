package buildkit_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln/internal/buildkit/cni"
	"kiln/internal/buildkit/daemon/runnet"
	"kiln/internal/event"
	"kiln/internal/solve"
	"kiln/internal/solvertest"
)

// startStockWithPlugin starts BuildKit as it is shipped, with kiln's network plugin, which is this program.
func startStockWithPlugin(t *testing.T) *solvertest.Stock {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	toml, err := cni.Install(dir, exe)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "buildkitd.toml")
	if err := os.WriteFile(file, []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // of the daemon's spare namespaces it leaves the bridge
		if err := runnet.Sweep("cdfe9ad5"); err != nil { // of the name kiln
			t.Error(err)
		}
	})
	return solvertest.StartStock(t, "--config", file)
}

// TestPluginSeparatesRuns has two runs at once on a daemon of others, which is killed at last: nothing of them is
// left once it is there again.
func TestPluginSeparatesRuns(t *testing.T) {
	stock := startStockWithPlugin(t)
	e := newEnvAt(t, stock.Address)
	if info, err := e.client.Info(t.Context()); err != nil || info.Network != "kiln-cni" {
		t.Fatalf("network %q, %v", info.Network, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	ours, theirs := e.client.Open(solve.SessionConfig{Run: "r1", Attempt: 1, Registry: e.registry, Insecure: true}), e.open(t, solve.SessionConfig{})
	addrs := map[solve.Session]string{}
	for s, name := range map[solve.Session]string{ours: "My_Web", theirs: "theirs"} {
		c := e.web(name)
		c.Args[2] = `busybox ip addr | busybox grep -v "inet 127" | busybox awk '/inet /{sub("/.*", "", $2); print $2}'; ` + c.Args[2]
		c.Peers = []string{"first", name}
		d := serve(t, s, c)
		list := strings.Fields(d.text(event.StreamStdout))
		if len(list) != 3 || list[1] != "198.19.0.2" { // and up
			t.Fatalf("%s has the addresses %q\n%s", name, list, d.all())
		}
		addrs[s] = list[0]
	}
	t.Run("separation", func(t *testing.T) { testSeparation(t, e, ours, theirs, addrs) })
	if err := ours.Close(ctx); err != nil {
		t.Fatal(err)
	}
	awaitNetworks(ctx, t, 1) // theirs
	stock.Kill(t)
	stock.Start(t)
	for { // the client may not have seen yet that the daemon was gone
		if _, err := e.client.Info(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	if _, j := runStep(t, e.open(t, solve.SessionConfig{}), e.shell("echo it works")); j.text(event.StreamStdout) != "it works\n" {
		t.Errorf("after a restart: %s", j.all())
	}
	awaitNetworks(ctx, t, 0)
}

// testSeparation has attackers at every place from which one could reach the service of a run.
func testSeparation(t *testing.T, e *env, ours, theirs solve.Session, addrs map[solve.Session]string) {
	for _, c := range []struct {
		name   string
		s      solve.Session
		c      solve.Container
		script string
		want   string
	}{
		{"by name", ours, solve.Container{Peers: []string{"My_Web"}}, "all My_Web my-web", "My_Web answers\nmy-web answers"},
		{"by address", ours, solve.Container{}, "all " + addrs[ours] + " 198.19.0.2", "198.19.0.2 answers\n" + addrs[ours] + " answers"},
		{"the other's", theirs, solve.Container{}, "knock " + addrs[ours], addrs[ours] + " does not"},
		{"the other way", ours, solve.Container{Peers: []string{"theirs"}}, "all theirs " + addrs[theirs], addrs[theirs] + " does not\ntheirs does not"},
		{"another network of the run", ours, solve.Container{NetworkName: "back"}, "all 198.19.0.2 " + addrs[ours], "198.19.0.2 does not\n" + addrs[ours] + " does not"},
		{"alone", ours, solve.Container{Network: solve.NetworkAlone}, "all 198.19.0.2 " + addrs[ours], "198.19.0.2 does not\n" + addrs[ours] + " does not"},
		{"none", ours, solve.Container{Network: solve.NetworkNone}, "all 198.19.0.2 " + addrs[ours], "198.19.0.2 does not\n" + addrs[ours] + " does not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.c.Step = strings.ReplaceAll(c.name, " ", "-") // two of one step would have one address
			if got, want := e.knocks(t, c.s, c.c, c.script), sorted(c.want); got != want {
				t.Errorf("it finds %q, want %q", got, want)
			}
		})
	}
	t.Run("RUN", func(t *testing.T) {
		t.Parallel()
		got := e.runInBuild(t, theirs, "all 198.19.0.2 "+addrs[ours]+" "+addrs[theirs]+"\n")
		if strings.Contains(got, "answers") || strings.Count(got, "does not") != 3 {
			t.Errorf("it finds %q, want nobody", got)
		}
	})
	t.Run("host", func(t *testing.T) { t.Parallel(); testHost(t, e) })
}

// awaitNetworks waits until so many networks of runs exist.
func awaitNetworks(ctx context.Context, t *testing.T, want int) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var found []string
		files, err := filepath.Glob("/sys/class/net/kln*/ifalias")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if alias, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(alias), "kiln run ") {
				found = append(found, f)
			}
		}
		if len(found) == want {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("networks %q, want %d", found, want)
		}
	}
}
