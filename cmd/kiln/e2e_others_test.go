package main

import (
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/internal/solvertest"
)

// taskOthers has a build that keeps its cache in the registry, and two steps that are not executed at once.
const taskOthers = `version: v1.1.0
steps:
  - id: image
    build: -t $Registry/others/app:$ID --label run=$ID .
    cache: enabled
  - push: [$Registry/others/app:$ID]
  - id: one
    cmd: $Registry/others/app:$ID sh -c 'mkdir busy && sleep 0.2 && rmdir busy'
    when: [image]
  - id: two
    cmd: $Registry/others/app:$ID sh -c 'mkdir busy && sleep 0.2 && rmdir busy'
    when: [image]
`

// TestDaemonsOfOthers has a server use a BuildKit daemon as it is shipped, then another that knows nothing of what
// the first has built.
func TestDaemonsOfOthers(t *testing.T) {
	t.Parallel()
	first := solvertest.StartStock(t, "--oci-worker-net=host")
	other := solvertest.StartStock(t, "--oci-worker-net=host")
	serve := []string{"serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--buildkit", first.Address}
	if res := runKiln(t, nil, serve...); res.code != 2 || !strings.Contains(res.err, first.Address+" connects containers to the host's network") ||
		!strings.Contains(res.err, "--buildkit-host-network") {
		t.Errorf("a daemon on the host's network: exit code %d\n%s", res.code, res.err)
	}
	s := startServer(t, "--buildkit", first.Address, "--buildkit-host-network", "--parallel", "1", "--parallel-steps", "1")
	const lack = "runs are isolated neither from it nor from each other"
	if out := s.must("doctor"); !strings.Contains(out, lack) {
		t.Errorf("doctor says\n%s", out)
	}
	task := files(t, map[string]string{"acr-task.yaml": taskOthers, "Dockerfile": base + "RUN head -c 64 /dev/urandom > /chance\n"})
	chance := files(t, map[string]string{"Dockerfile": base + "RUN head -c 48 /dev/urandom > /chance\n"})
	same := files(t, map[string]string{"Dockerfile": base + "RUN date > /dev/null && touch /now\n"})
	build := func() (layers []v1.Hash, digest, cached string) {
		res := s.kiln("run", task)
		if res.code != 0 || !strings.Contains(res.err, "warning: containers share the network") || !strings.Contains(res.err, "waits: the worker executes as many steps as it may") {
			t.Fatalf("exit code %d\n%s", res.code, res.err)
		}
		config, err := s.image(strings.TrimSpace(res.out)).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cached = strings.TrimSpace(s.must("build", "--cache-from", s.host()+"/others/cache:1", "--cache-to", "type=registry,mode=max,ref="+s.host()+"/others/cache:1", chance))
		return config.RootFS.DiffIDs, strings.TrimSpace(s.must("build", "--reproducible", "--no-cache", same)), cached
	}
	layers, digest, cached := build()
	s.stop()
	s.args[1] = other.Address
	s.start()
	if again, d, c := build(); !slices.Equal(again, layers) || c != cached || d != digest {
		t.Errorf("a fresh daemon has built %v and %s instead of %v and %s from the cache, and %s instead of %s", again, c, layers, cached, d, digest)
	}
}
