package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
)

type upgradeStep = func(context.Context, Upgrade, jetstream.JetStream) error

// upgradeOf is an upgrade by one process, of a kiln with these steps.
func upgradeOf(process string, steps ...upgradeStep) Upgrade {
	return Upgrade{By: "v2", Process: process, Replicas: 1, Lease: 600 * time.Millisecond, Log: slog.New(slog.DiscardHandler), steps: append([]upgradeStep{}, steps...),
		Seal: func(v any) ([]byte, error) { return fmt.Appendf(nil, "sealed %v", v), nil }}
}

func recorded(t *testing.T, b *bus.Bus) schema {
	t.Helper()
	kv, err := b.JetStream().KeyValue(t.Context(), bucketMeta)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := (&Bucket[schema]{kv: kv, name: bucketMeta}).Get(t.Context(), keySchema)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNewStateHasTheNewestVersion(t *testing.T) {
	t.Parallel()
	s, err := bus.StartServer(bus.ServerConfig{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	nc, err := s.Connect(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	none := func(context.Context, Upgrade, jetstream.JetStream) error {
		return errors.New("there is nothing to upgrade")
	}
	u := upgradeOf("a", none, none)
	for range 2 {
		if err := u.Run(t.Context(), nc); err != nil {
			t.Fatal(err)
		}
	}
	b, err := bus.Open(t.Context(), nc, u.Log)
	if err != nil {
		t.Fatal(err)
	}
	if got := recorded(t, b); got.Version != 3 || got.By != "v2" {
		t.Errorf("schema = %+v, want version 3", got)
	}
}

// Of processes that begin at once each step is made by one, and all of them return when it is done.
func TestEachUpgradeIsMadeOnce(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	var made [2]atomic.Int32
	count := func(i int) upgradeStep {
		return func(ctx context.Context, _ Upgrade, js jetstream.JetStream) error {
			if _, err := js.AccountInfo(ctx); err != nil {
				return err
			}
			made[i].Add(1)
			return nil
		}
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			u := upgradeOf(fmt.Sprint(i), count(0), count(1))
			u.Lease = time.Minute // nobody is slow enough to be taken for dead
			if err := u.Run(t.Context(), b.Conn()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if a, b := made[0].Load(), made[1].Load(); a != 1 || b != 1 {
		t.Errorf("the steps were made %d and %d times", a, b)
	}
	if got := recorded(t, b); got.Version != 3 || got.Upgrading != "" {
		t.Errorf("schema = %+v", got)
	}
}

// A process that was killed in the middle leaves its name in the record: another one takes its place.
func TestAnUpgradeGoesOnWhereOneWasKilled(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	if err := upgradeOf("killed").Run(t.Context(), b.Conn()); err != nil { // makes the record
		t.Fatal(err)
	}
	kv, err := b.JetStream().KeyValue(t.Context(), bucketMeta)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&Bucket[schema]{kv: kv, name: bucketMeta}).Put(t.Context(), keySchema, schema{Version: 1, Upgrading: "killed", Beats: 7}); err != nil {
		t.Fatal(err)
	}
	made := 0
	err = upgradeOf("next", func(context.Context, Upgrade, jetstream.JetStream) error { made++; return nil }).Run(t.Context(), b.Conn())
	if got := recorded(t, b); err != nil || made != 1 || got.Version != 2 || got.Upgrading != "" {
		t.Errorf("%d times made, schema %+v, %v", made, got, err)
	}
}

func TestAFailedUpgradeCanBeTriedAgain(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	broken := errors.New("broken")
	fail := func(context.Context, Upgrade, jetstream.JetStream) error { return broken }
	if err := upgradeOf("a", fail).Run(t.Context(), b.Conn()); !errors.Is(err, broken) || !strings.Contains(err.Error(), "to version 2") {
		t.Errorf("Run = %v", err)
	}
	u := upgradeOf("b", func(context.Context, Upgrade, jetstream.JetStream) error { return nil })
	u.Lease = time.Hour // it does not wait for the first one
	if err := u.Run(t.Context(), b.Conn()); err != nil {
		t.Error(err)
	}
}

func TestNewerStateIsRefused(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	newer := upgradeOf("a", func(context.Context, Upgrade, jetstream.JetStream) error { return nil })
	newer.By = "v3"
	if err := newer.Run(t.Context(), b.Conn()); err != nil {
		t.Fatal(err)
	}
	err := upgradeOf("b").Run(t.Context(), b.Conn())
	if want := "it has version 2, by kiln v3; kiln v2 knows versions to 1"; !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), want) {
		t.Errorf("Run = %v, want ErrNewer: %s", err, want)
	}
}

func TestOlderStateIsUpgradedByServersThatAreAlone(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	if _, err := Attach(t.Context(), b.JetStream()); !errors.Is(err, ErrNotFound) {
		t.Errorf("Attach to nothing: %v, want ErrNotFound", err)
	}
	if _, err := OpenShared(t.Context(), b.JetStream(), time.Minute, 1, false); err != nil {
		t.Fatal(err)
	}
	old, err := b.JetStream().CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "servers"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.PutString(t.Context(), "server", "old"); err != nil {
		t.Fatal(err)
	}
	u := upgradeOf("a", upgrades...)
	if err := u.Run(t.Context(), b.Conn()); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "servers/server") {
		t.Errorf("with another server: %v, want ErrInUse", err)
	}
	if _, err := Attach(t.Context(), b.JetStream()); !errors.Is(err, ErrOlder) {
		t.Errorf("Attach to older state: %v, want ErrOlder", err)
	}
	if err := old.Purge(t.Context(), "server"); err != nil {
		t.Fatal(err)
	}
	if err := u.Run(t.Context(), b.Conn()); err != nil {
		t.Error(err)
	}
	if _, err := Attach(t.Context(), b.JetStream()); err != nil {
		t.Errorf("Attach: %v", err)
	}
}

func TestAddressesOfTargetsAreSealed(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	s, err := Open(t.Context(), b.JetStream(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for id, target := range map[string]event.Target{
		"a": {ID: "a", URL: "https://chat.example.com/hooks/pass?word=1"},
		"b": {ID: "b", URL: "https://chat.example.com", Address: []byte("sealed before")},
	} {
		if _, err := s.Targets.Create(t.Context(), id, target); err != nil {
			t.Fatal(err)
		}
	}
	u := upgradeOf("a")
	for range 2 { // the second time there is nothing to do
		if err := sealTargets(t.Context(), u, b.JetStream()); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]string{"a": "sealed https://chat.example.com/hooks/pass?word=1", "b": "sealed before"} {
		got, _, err := s.Targets.Get(t.Context(), id)
		if err != nil || got.URL != "https://chat.example.com" || string(got.Address) != want {
			t.Errorf("target %s = %+v, %v", id, got, err)
		}
	}
}
