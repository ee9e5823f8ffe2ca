package main

import (
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kiln/internal/bus"
)

const natsToken = "let-me-in"

// startNATS starts a NATS server that is reached by a port, with a token.
func startNATS(t *testing.T, dir, listen string) *bus.Server {
	t.Helper()
	s, err := bus.StartServer(bus.ServerConfig{Dir: dir, Listen: listen, Token: natsToken, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A server keeps everything but its images in a NATS server of others, which may go and come back. One on a copy of its
// registry is no server beside it.
func TestServerOnNATSOfOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(natsToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ns := startNATS(t, filepath.Join(dir, "js"), "127.0.0.1:0")
	address := ns.Address()
	defer func() { ns.Shutdown() }()
	s := startServer(t, "--nats", "nats://"+address, "--nats-token-file", token)
	other := make(chan commandResult, 1)
	copyRegistry(t, s.data, filepath.Join(dir, "other"))
	go func() {
		other <- runKiln(t, nil, "serve", "--data", filepath.Join(dir, "other"), "--listen", "127.0.0.1:0", "--nats", "nats://"+address, "--nats-token-file", token)
	}()
	src := files(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "1"})
	first := s.must("build", "-t", "app", src)
	s.awaitReady()
	ns.Shutdown()
	s.awaitFailing("message store")
	if status, body := s.get("/healthz"); status != 200 {
		t.Errorf("without NATS the process says that it does not live: %d %s", status, body)
	}
	ns = startNATS(t, filepath.Join(dir, "js"), address)
	s.awaitReady()
	if err := os.WriteFile(filepath.Join(src, "f"), []byte("2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if second := s.must("build", "-t", "app", src); second == first {
		t.Errorf("both builds printed %q", first)
	}
	if res := <-other; res.code != 2 || !strings.Contains(res.err, "another server has the registry of the state") {
		t.Errorf("a second server: exit code %d, %s", res.code, res.err)
	}
	s.stop()
	if _, err := os.Stat(filepath.Join(s.data, "jetstream")); err == nil {
		t.Error("the server has a message store of its own, too")
	}
	s.start()
	if list := s.must("runs"); strings.Count(list, "Succeeded") != 2 {
		t.Errorf("runs after a restart:\n%s", list)
	}
	if res := s.kiln("build", "-t", "app", src); res.code != 0 {
		t.Error(res.err)
	}
}

// copyRegistry copies the registry of a server as a backup does.
func copyRegistry(t *testing.T, from, to string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(to, "registry"), 0o700))
	db, err := sql.Open("sqlite", filepath.Join(from, "registry", "registry.db")+"?_pragma=busy_timeout(10000)")
	must(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), "VACUUM INTO ?", filepath.Join(to, "registry", "registry.db"))
	must(t, err)
}

func TestNATSIsReachedWithCredentialsOnly(t *testing.T) {
	t.Parallel()
	data := t.TempDir() + "/data"
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--nats", "nats://me:hunter2@127.0.0.1:1"}, `--nats: "nats://***@127.0.0.1:1": credentials do not belong in an address`},
		{[]string{"--nats", "127.0.0.1:4222"}, "want nats://HOST:PORT"},
		{[]string{"--nats-creds", "f"}, "go with --nats"},
		{[]string{"--nats", "nats://127.0.0.1:1", "--nats-listen", "127.0.0.1:0"}, "with --nats there is none"},
	} {
		res := runKiln(t, nil, append([]string{"serve", "--data", data}, c.args...)...)
		if res.code != 2 || !strings.Contains(res.err, c.want) || strings.Contains(res.err, "hunter2") {
			t.Errorf("%q: exit code %d, %s; want 2 and %q", c.args, res.code, res.err, c.want)
		}
	}
}
