package main

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/secret"
	"kiln/internal/store"
)

// TestServerUpgradesStoredState starts on a data directory of the kiln before state had a version. It has a task with
// a decision and a run, a build, and a target whose address is in clear.
func TestServerUpgradesStoredState(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "tar", "-xzf", "testdata/state-v1.tar.gz", "-C", data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := startServerAt(t, data, "--keep-runs", "0") // however old they are
	list := s.must("runs")
	if strings.Count(list, "Succeeded") != 2 || !strings.Contains(list, "build box:1") {
		t.Errorf("runs:\n%s", list)
	}
	s.prints(t, "Succeeded", "task", "list-runs", "say")
	s.prints(t, "box", "repo", "list")
	if targets := s.must("notify", "list"); !strings.Contains(targets, "http://127.0.0.1:9") || strings.Contains(targets, "hunter22") {
		t.Errorf("targets:\n%s", targets)
	}
	s.must("build", "-q", "-t", "box:1", files(t, map[string]string{"Dockerfile": base}))
	if r := s.kiln("task", "run", "say"); r.code != 0 || !strings.Contains(r.err, "hello") {
		t.Errorf("kiln task run: %+v", r)
	}
	s.stop()

	identity, err := secret.LoadIdentity(filepath.Join(data, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	withState(t, data, func(ctx context.Context, b *bus.Bus, st *store.Store) error {
		target, _, err := st.Targets.Get(ctx, "t1")
		if err != nil {
			return err
		}
		var address string
		if err := identity.Open(target.Address, &address); err != nil || address != "http://127.0.0.1:9/hooks/hunter22" || target.URL != "http://127.0.0.1:9" {
			t.Errorf("target = %+v with the address %s, %v", target, address, err)
		}
		_, err = b.Publish(ctx, "$KV.meta.schema", event.Hash("newer"), map[string]any{"version": 99, "by": "v99.0.0"})
		return err
	})
	r := runKiln(t, nil, "serve", "--data", data, "--listen", "127.0.0.1:0")
	if r.code != 2 || !strings.Contains(r.err, "stored state is newer than this kiln: it has version 99, by kiln v99.0.0; kiln "+version()+" knows versions to 2\nTry: ") {
		t.Errorf("on newer state: %+v", r)
	}
}

// withState opens messages and records of a server that does not run.
func withState(t *testing.T, data string, do func(context.Context, *bus.Bus, *store.Store) error) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	ns, err := bus.StartServer(bus.ServerConfig{Dir: filepath.Join(data, "jetstream"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Shutdown()
	nc, err := ns.Connect(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	b, err := bus.Open(t.Context(), nc, log)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), b.JetStream(), 15*time.Second)
	if err == nil {
		err = do(t.Context(), b, st)
	}
	if err != nil {
		t.Error(err)
	}
}
