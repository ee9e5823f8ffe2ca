package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
)

// note is what the tests publish.
type note struct {
	N int `json:"n"`
}

func TestCreateOfATakenSubjectIsAConflict(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	subject := event.DecisionSubject(event.QuickTask, "key")
	if _, err := b.Create(t.Context(), subject, note{1}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(t.Context(), subject, note{2}, time.Hour); !errors.Is(err, bus.ErrConflict) {
		t.Errorf("second Create: %v, want ErrConflict", err)
	}
	if _, err := b.Create(t.Context(), event.DecisionSubject(event.QuickTask, "other"), note{3}, time.Hour); err != nil {
		t.Errorf("Create on another subject: %v", err)
	}
	var got note
	if _, err := b.Last(t.Context(), bus.StreamDecisions, subject, &got); err != nil || got.N != 1 {
		t.Errorf("Last = %v, %v, want the first", got, err)
	}
	if _, err := b.Last(t.Context(), bus.StreamDecisions, "kiln.decision.none", &got); !errors.Is(err, bus.ErrNone) {
		t.Errorf("Last of nothing: %v, want ErrNone", err)
	}
}

func TestMessageWithAKnownIDIsNotStoredAgain(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	first, err := b.Publish(t.Context(), "kiln.report.ra", "ra.1.1", note{1})
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.Publish(t.Context(), "kiln.report.ra", "ra.1.1", note{2})
	if err != nil || again != first {
		t.Errorf("second Publish = %d, %v, want %d", again, err, first)
	}
	if got := stored(t, b, bus.StreamReports, "kiln.report.ra"); len(got) != 1 || got[0] != 1 {
		t.Errorf("stored %v, want [1]", got)
	}
}

func TestAsynchronousPublicationIsStoredOnceInOrder(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	var acks []bus.Ack
	for _, p := range []struct {
		id string
		n  int
	}{{"a", 1}, {"b", 2}, {"a", 1}, {"", 3}} {
		ack, err := b.PublishAsync("kiln.log.ra.0", p.id, note{p.n})
		if err != nil {
			t.Fatal(err)
		}
		acks = append(acks, ack)
	}
	for i, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			t.Fatalf("publication %d: %v", i, err)
		case <-time.After(time.Minute):
			t.Fatalf("publication %d is not acknowledged", i)
		}
	}
	if got := stored(t, b, bus.StreamLogs, event.LogFilter("ra")); len(got) != 3 || got[0] != 1 || got[2] != 3 {
		t.Errorf("stored %v, want [1 2 3]", got)
	}
}

func TestFullStreamRefusesMessages(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	s, err := b.JetStream().Stream(t.Context(), bus.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.MaxBytes = 300
	if _, err := b.JetStream().UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for n := range 10 {
		if _, err = b.Publish(t.Context(), "kiln.event.test", "", note{n}); err != nil {
			break
		}
	}
	if !errors.Is(err, bus.ErrFull) {
		t.Errorf("Publish to a full stream: %v, want ErrFull", err)
	}
	if _, err := b.Create(t.Context(), "kiln.event.other", note{1}, 0); !errors.Is(err, bus.ErrFull) {
		t.Errorf("Create in a full stream: %v, want ErrFull", err)
	}
	if got := stored(t, b, bus.StreamEvents, "kiln.event.test"); len(got) == 0 || got[0] != 0 {
		t.Errorf("stored %v: what was accepted is gone", got)
	}
}

func TestSignalReachesSubscribersUntilTheyLeave(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	got := make(chan string, 8)
	unsubscribe, err := b.Subscribe("kiln.decided.x", func(data []byte) { got <- string(data) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	signal := func(v string) {
		t.Helper()
		if err := errors.Join(b.Signal("kiln.decided.x", v), b.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	signal("one")
	if v := receive(t, got); v != `"one"` {
		t.Errorf("got %s", v)
	}
	unsubscribe()
	signal("two")
	select {
	case v := <-got:
		t.Errorf("got %s after the subscription has ended", v)
	default:
	}
}

// A server is an embedded server on a directory that outlives it.
type server struct {
	srv *bus.Server
	nc  *nats.Conn
	bus *bus.Bus
}

func start(t *testing.T, dir string, relaxed bool) server {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	srv, err := bus.StartServer(bus.ServerConfig{Dir: dir, Relaxed: relaxed, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Shutdown)
	nc, err := srv.Connect(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	b, err := bus.Open(t.Context(), nc, log)
	if err != nil {
		t.Fatal(err)
	}
	return server{srv, nc, b}
}

func (s server) stop() {
	s.nc.Close()
	s.srv.Shutdown()
}

func TestAcknowledgedMessagesSurviveARestart(t *testing.T) {
	t.Parallel()
	for name, relaxed := range map[string]bool{"synced": false, "relaxed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			first := start(t, dir, relaxed)
			subjects := map[string]string{
				bus.StreamEvents: "kiln.event.a", bus.StreamDecisions: "kiln.decision.a", bus.StreamWork: "kiln.work.a",
				bus.StreamReports: "kiln.report.a", bus.StreamLogs: "kiln.log.a.0",
			}
			for _, subject := range subjects {
				if _, err := first.bus.Publish(t.Context(), subject, "id-"+subject, note{7}); err != nil {
					t.Fatal(err)
				}
			}
			first.stop()

			second := start(t, dir, relaxed)
			for stream, subject := range subjects {
				var got note
				if _, err := second.bus.Last(t.Context(), stream, subject, &got); err != nil || got.N != 7 {
					t.Errorf("%s: %v, %v after the restart", subject, got, err)
				}
			}
			if _, err := second.bus.Create(t.Context(), "kiln.decision.a", note{8}, 0); !errors.Is(err, bus.ErrConflict) {
				t.Errorf("Create after the restart: %v, want ErrConflict", err)
			}
			seq, err := second.bus.Publish(t.Context(), "kiln.report.a", "id-kiln.report.a", note{8})
			if err != nil || seq != 1 {
				t.Errorf("known message ID after the restart: sequence %d, %v, want 1", seq, err)
			}
		})
	}
}

func TestStreamsAreDeclaredOnceAndStayAsTheyAre(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := start(t, dir, false)
	check := func(b *bus.Bus, when string) {
		t.Helper()
		for stream, async := range map[string]bool{bus.StreamEvents: false, bus.StreamDecisions: false,
			bus.StreamWork: true, bus.StreamReports: false, bus.StreamLogs: true} {
			if got := persistMode(t, b, stream); (got == "async") != async {
				t.Errorf("%s: stream %s has persist mode %q, want async: %v", when, stream, got, async)
			}
		}
	}
	check(first.bus, "new")
	if _, err := bus.Open(t.Context(), first.nc, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatalf("Open of an open store: %v", err)
	}
	check(first.bus, "opened twice")
	first.stop()
	check(start(t, dir, false).bus, "restarted")
}

func persistMode(t *testing.T, b *bus.Bus, stream string) string {
	t.Helper()
	m, err := b.Conn().RequestWithContext(t.Context(), "$JS.API.STREAM.INFO."+stream, nil)
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Config struct {
			Storage     jetstream.StorageType `json:"storage"`
			PersistMode string                `json:"persist_mode"`
		} `json:"config"`
	}
	if err := json.Unmarshal(m.Data, &info); err != nil {
		t.Fatal(err)
	}
	if info.Config.Storage != jetstream.FileStorage {
		t.Errorf("stream %s is stored in %v, want a file", stream, info.Config.Storage)
	}
	return info.Config.PersistMode
}

func TestLogsAreKeptAsLongAsIsSaidAndStayAsynchronous(t *testing.T) {
	t.Parallel()
	b := start(t, t.TempDir(), false).bus
	for _, age := range []time.Duration{0, time.Hour, 48 * time.Hour} {
		if err := b.LimitLogs(t.Context(), age, 1<<30); err != nil {
			t.Fatal(err)
		}
		s, err := b.JetStream().Stream(t.Context(), bus.StreamLogs)
		if err != nil {
			t.Fatal(err)
		}
		if c := s.CachedInfo().Config; c.MaxAge != age || c.MaxBytes != 1<<30 || !c.AllowDirect {
			t.Errorf("after a limit of %s: %s, %d bytes", age, c.MaxAge, c.MaxBytes)
		}
		if mode := persistMode(t, b, bus.StreamLogs); mode != "async" {
			t.Errorf("persist mode %q, want async", mode)
		}
	}
}
