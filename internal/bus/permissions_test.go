package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"kiln/internal/bus"
	"kiln/internal/event"
)

// startCompose starts a NATS server with the configuration of docker-compose.yml, and returns who reaches it.
func startCompose(t *testing.T, change ...func(*natsserver.Options)) (asServer, asWorker bus.Remote) {
	t.Helper()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	conf, err := os.ReadFile("../../.compose/nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	file("run/secrets/nats_users", "NATS_SERVER: \"decide\"\nNATS_WORKER: \"obey\"\n")
	opts, err := natsserver.ProcessConfigFile(file("etc/nats/nats-server.conf", string(conf)))
	if err != nil {
		t.Fatal(err)
	}
	opts.Host, opts.Port, opts.HTTPPort, opts.HTTPHost = "127.0.0.1", natsserver.RANDOM_PORT, 0, ""
	opts.StoreDir, opts.NoLog, opts.NoSigs = filepath.Join(dir, "js"), true, true
	for _, c := range change {
		c(opts)
	}
	ns, err := natsserver.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(time.Minute) {
		t.Fatal("NATS is not ready")
	}
	as := func(user, password string) bus.Remote {
		return bus.Remote{URLs: []string{"nats://" + user + "@" + ns.Addr().String()}, TokenFile: file(user, password+"\n")}
	}
	return as("server", "decide"), as("worker", "obey")
}

func connect(t *testing.T, r bus.Remote) *bus.Conn {
	t.Helper()
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	nc, err := bus.Connect(t.Context(), r, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func TestNATSWithoutRoomIsRefused(t *testing.T) {
	t.Parallel()
	asServer, _ := startCompose(t, func(o *natsserver.Options) { o.JetStreamMaxStore = 8 << 30 })
	if _, err := bus.Open(t.Context(), connect(t, asServer), slog.New(slog.DiscardHandler)); !errors.Is(err, bus.ErrRoom) {
		t.Errorf("with 8 GB: %v, want ErrRoom", err)
	}
}

// A worker that somebody has taken over neither decides nor hears what is not for it.
func TestComposeWorkersMayNotDecide(t *testing.T) {
	t.Parallel()
	asServer, asWorker := startCompose(t)
	if _, err := bus.Open(t.Context(), connect(t, asServer), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	wrong := asWorker
	wrong.URLs = []string{strings.Replace(asWorker.URLs[0], "worker@", "server@", 1)}
	if _, err := bus.Connect(t.Context(), wrong, "test", slog.New(slog.DiscardHandler)); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a worker as the server: %v", err)
	}
	nc := connect(t, asWorker)
	nc.SetErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	for subject, allowed := range map[string]bool{
		event.ReportSubject("r1"): true, event.LogSubject("r1", 0): true, event.LogSubject("r1", -1): true,
		"$KV.leases." + event.LeaseKey("r1", 2): true, "$KV.workers.w1": true, event.AskPurge: true,
		"$JS.API.STREAM.INFO.KV_meta": true, "$JS.API.DIRECT.GET.KV_meta.$KV.meta.schema": true, "$JS.API.STREAM.MSG.GET.KV_meta": true, "$KV.meta.schema": false,
		event.RequestSubject("k"): false, event.CancelSubject("r1"): false, event.RunSubject("run.finished", "r1"): false,
		event.DecisionSubject("u", "t"): false, event.WorkSubject("other"): false, event.ControlSubject("other"): false,
		event.NotifySubject("t"): false, "$KV.runs.r1": false, "$KV.registries.registry": false, "$KV.leaders.scheduler": false, "$KV.tokens.k": false, "$KV.secrets.k": false,
		"$JS.API.STREAM.DELETE.EVENTS": false, "$JS.API.STREAM.MSG.GET.KV_secrets": false, "$JS.API.CONSUMER.CREATE.EVENTS.x": false,
		"$JS.API.STREAM.UPDATE.WORK": false, "$JS.API.DIRECT.GET.KV_runs": false,
	} {
		if got := permitted(t, nc, subject, func() error { return nc.Publish(subject, nil) }); got != allowed {
			t.Errorf("publish %s: %t, want %t", subject, got, allowed)
		}
	}
	for subject, allowed := range map[string]bool{
		event.ControlSubject("me"): true, event.AskCache("me"): true, event.AskPurge: false, nc.NewInbox(): true,
		">": false, "_INBOX.>": false, event.SubjectEvents: false, event.SubjectLogs: false, "$KV.>": false, "$JS.API.>": false,
	} {
		var sub *nats.Subscription
		if got := permitted(t, nc, subject, func() (err error) { sub, err = nc.SubscribeSync(subject); return err }); got != allowed {
			t.Errorf("subscribe %s: %t, want %t", subject, got, allowed)
		}
		_ = sub.Unsubscribe()
	}
}

// permitted reports whether the server lets do pass, which is about a subject.
func permitted(t *testing.T, nc *bus.Conn, subject string, do func() error) bool {
	t.Helper()
	if err := do(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := nc.FlushWithContext(ctx); err != nil { // a refusal comes before the answer
		t.Fatal(err)
	}
	err := nc.LastError()
	return !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), `"`+subject+`"`)
}

func TestCredentialsDoNotBelongInAddresses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		remote bus.Remote
		want   string
	}{
		{bus.Remote{URLs: []string{"nats://h:1", "tls://h:2"}}, ""},
		{bus.Remote{URLs: []string{"nats://worker@h:1", "tls://worker@h:2"}, TokenFile: "f"}, ""},
		{bus.Remote{URLs: []string{"nats://hunter2@h:1"}}, `"nats://***@h:1": credentials do not belong`},
		{bus.Remote{URLs: []string{"nats://me:hunter2@h:1"}, TokenFile: "f"}, `"nats://***@h:1": credentials do not belong`},
		{bus.Remote{URLs: []string{"nats://a@h:1", "nats://b@h:1"}, TokenFile: "f"}, `"nats://***@h:1": the servers of one cluster are reached as one user`},
		{bus.Remote{URLs: []string{"nats://a@h:1", "nats://h:1"}, TokenFile: "f"}, "as one user"},
		{bus.Remote{URLs: []string{"nats://hunter2%2e@h:1"}, TokenFile: "f"}, `"nats://***@h:1": credentials do not belong`},
		{bus.Remote{URLs: []string{"http://h:1"}}, "want nats://HOST:PORT"},
	} {
		err := c.remote.Validate()
		if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("Validate(%q) = %v, want %q", c.remote.URLs, err, c.want)
		}
	}
}
