package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"kiln/internal/backup"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/internal/store"
	"kiln/internal/task"
)

var quiet = slog.New(slog.DiscardHandler)

// serve starts a message store.
func serve(t *testing.T, dir string) (*bus.Conn, func()) {
	t.Helper()
	ns, err := bus.StartServer(bus.ServerConfig{Dir: dir, Log: quiet, Relaxed: true})
	if err != nil {
		t.Fatal(err)
	}
	nc, err := ns.Connect(t.Name())
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			nc.Close()
			ns.Shutdown()
		}
	}
	t.Cleanup(stop)
	return nc, stop
}

// open opens the state behind nc as a server does.
func open(t *testing.T, nc *bus.Conn) (*bus.Bus, *store.Store) {
	t.Helper()
	b, err := bus.Open(t.Context(), nc, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.LimitLogs(t.Context(), 24*time.Hour, 1<<30); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), b.JetStream(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return b, s
}

// must returns what gives v to a test, unless there is an error.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// consume reads events as a component does, until it has had n that ok takes; others are not settled.
func consume(t *testing.T, b *bus.Bus, n int, ok func(subject string) bool) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := b.Consume(ctx, bus.Consumer{Stream: bus.StreamEvents, Name: "scheduler", Filter: event.SubjectEvents}, func(m bus.Message) {
		if len(got) < n && ok(m.Subject()) {
			got = append(got, m.Subject())
			m.Settle(nil)
		}
		if len(got) == n {
			cancel()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// A message is one message of a stream.
type message struct {
	subject, data, header string
	at                    time.Time
}

// content returns all messages of a stream by their sequence.
func content(t *testing.T, nc *bus.Conn, name string) map[uint64]message {
	t.Helper()
	s := must(must(jetstream.New(nc))(t).Stream(t.Context(), name))(t)
	state := s.CachedInfo().State
	all := map[uint64]message{}
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		all[seq] = message{m.Subject, string(m.Data), fmt.Sprint(m.Header), m.Time}
	}
	return all
}

// fillState stores something of every kind.
func fillState(t *testing.T, b *bus.Bus, s *store.Store) {
	t.Helper()
	ctx := t.Context()
	for i := range 20 {
		must(b.Publish(ctx, fmt.Sprintf("kiln.event.test.%d", i), fmt.Sprint("e", i), strings.Repeat("x", 50_000)))(t)
		must(b.Replace(ctx, event.DecisionSubject("t1", fmt.Sprint(i)), 0, i))(t)
		id := fmt.Sprint("r", i)
		rev := must(s.Runs.Create(ctx, id, run.Run{ID: id}))(t)
		must(s.Runs.Update(ctx, id, run.Run{ID: id, State: run.Started}, rev))(t)
		must(b.Publish(ctx, event.LogSubject(id, 0), "", "line"))(t)
	}
	must(s.Tasks.Put(ctx, "k", task.Task{Name: "nightly"}))(t)
	must(s.Secrets.Put(ctx, "k", event.Secret{Name: "password", Sealed: []byte{1, 2, 3}}))(t)
	for _, gone := range []string{"r3", "r7"} {
		if err := s.Runs.Delete(ctx, gone); err != nil {
			t.Fatal(err)
		}
	}
	must(b.Publish(ctx, event.SubjectIntake, "", "delivery"))(t)
	must(s.Leases.Put(ctx, "r1.1", event.Lease{Attempt: 1}))(t)
}

func TestStateIsRestoredAsItWas(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	nc, stop := serve(t, filepath.Join(dir, "old"))
	b, s := open(t, nc)
	fillState(t, b, s)
	at := time.Now().Add(10 * time.Second).UTC()
	if err := b.Schedule(t.Context(), bus.Schedule{Subject: event.ScheduleSubject("t1", "a"), Target: event.AlarmSubject("t1", "a"), At: at, Message: "ring"}); err != nil {
		t.Fatal(err)
	}
	consume(t, b, 5, func(subject string) bool { return true })
	keys := []string{"admin.token", "identity.key", "none"}
	for _, name := range keys[:2] {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("key "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var file bytes.Buffer
	if err := backup.Write(t.Context(), b, &file, backup.Options{Version: "v1", Dir: dir, Keys: keys}); err != nil {
		t.Fatal(err)
	}
	before := map[string]map[uint64]message{}
	for _, name := range backup.Streams() {
		before[name] = content(t, nc, name)
	}
	logs := must(b.JetStream().Stream(t.Context(), bus.StreamLogs))(t).CachedInfo().State.LastSeq
	stop()

	sum := must(backup.Verify(bytes.NewReader(file.Bytes())))(t)
	if sum.Version != "v1" || !sum.Keys || sum.Logs || !slices.Equal(sum.KeyFiles, keys[:2]) || len(sum.Streams) != len(backup.Streams()) {
		t.Errorf("summary: %+v", sum)
	}
	nc, stop = serve(t, filepath.Join(dir, "new"))
	r := bus.Restorer{Conn: nc}
	if err := backup.Restore(t.Context(), r, bytes.NewReader(file.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := backup.Restore(t.Context(), r, bytes.NewReader(file.Bytes())); err == nil || !strings.Contains(err.Error(), "there is one already") {
		t.Errorf("a second time: %v", err)
	}
	stop() // what was restored is on disk
	nc, _ = serve(t, filepath.Join(dir, "new"))
	for _, name := range backup.Streams() {
		got, want := content(t, nc, name), before[name]
		if name == bus.StreamLogs {
			want = map[uint64]message{}
		}
		if name == bus.StreamTimers && time.Now().After(at) {
			continue // the alarm has gone off
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("stream %s: %d messages, want %d", name, len(got), len(want))
		}
	}
	b, s = open(t, nc)
	if _, _, err := s.Leases.Get(t.Context(), "r1.1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("lease of a worker that is gone: %v", err)
	}
	if seq := must(b.Publish(t.Context(), event.LogSubject("r1", 0), "", "more"))(t); seq != logs+1 {
		t.Errorf("the log goes on at %d, want %d", seq, logs+1)
	}
	// A reader gets what it had not settled, and what comes.
	must(b.Publish(t.Context(), "kiln.event.test.new", "", 1))(t)
	got := consume(t, b, 16, func(string) bool { return true })
	if got[0] != "kiln.event.test.5" || got[15] != "kiln.event.test.new" {
		t.Errorf("delivered again: %q", got)
	}
	rung := false
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := b.Consume(ctx, bus.Consumer{Stream: bus.StreamTimers, Name: "triggers-alarms", Filter: event.AlarmFilter}, func(m bus.Message) {
		rung = string(m.Data()) == `"ring"` && !time.Now().Before(at)
		m.Settle(nil)
		cancel()
	})
	if err != nil || !rung {
		t.Errorf("the alarm did not go off at its time: %v", err)
	}
}

// A backup that is made while everything changes begins each reader where it had been, or before.
func TestStateIsBackedUpWhileItChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	nc, stop := serve(t, filepath.Join(dir, "old"))
	b, s := open(t, nc)
	ctx, cancel := context.WithCancel(t.Context())
	busy := make(chan error, 1)
	begun := make(chan struct{})
	go func() { // what refers to something is stored after it
		var err error
		for i := 0; err == nil; i++ {
			var seq uint64
			seq, err = b.Publish(ctx, fmt.Sprintf("kiln.event.test.%d", i), "", i)
			if err == nil {
				_, err = b.Replace(ctx, event.DecisionSubject("t1", fmt.Sprint(i)), 0, event.Decision{Seq: seq})
			}
			if err == nil {
				_, err = s.Runs.Create(ctx, fmt.Sprint("r", i), run.Run{ID: fmt.Sprint("r", i), Cause: run.Cause{Seq: seq}})
			}
			if i == 100 {
				close(begun)
			}
		}
		busy <- err
	}()
	<-begun
	var file bytes.Buffer
	err := backup.Write(t.Context(), b, &file, backup.Options{Logs: true})
	cancel()
	if ended := <-busy; err != nil || !errors.Is(ended, context.Canceled) {
		t.Fatal(err, ended)
	}
	stop()
	nc, _ = serve(t, filepath.Join(dir, "new"))
	if err := backup.Restore(t.Context(), bus.Restorer{Conn: nc}, bytes.NewReader(file.Bytes())); err != nil {
		t.Fatal(err)
	}
	b, s = open(t, nc)
	events := must(b.JetStream().Stream(t.Context(), bus.StreamEvents))(t).CachedInfo().State.LastSeq
	decisions := must(b.Subjects(t.Context(), bus.StreamDecisions, event.DecisionFilter("t1")))(t)
	runs := 0
	err = s.Runs.List(t.Context(), func(e store.Entry[run.Run]) bool {
		runs++
		if decisions[event.DecisionSubject("t1", strings.TrimPrefix(e.Key, "r"))] != 1 || e.Value.Cause.Seq > events {
			t.Errorf("run %s refers to what is not there", e.Key)
		}
		return true
	})
	if err != nil || runs < 100 || len(decisions) < runs || events < uint64(len(decisions)) {
		t.Errorf("%d runs, %d decisions, %d events: %v", runs, len(decisions), events, err)
	}
}

func TestDamagedBackupsAreRefused(t *testing.T) {
	t.Parallel()
	nc, _ := serve(t, t.TempDir())
	b, _ := open(t, nc)
	must(b.Publish(t.Context(), "kiln.event.test.1", "", "x"))(t)
	var file bytes.Buffer
	if err := backup.Write(t.Context(), b, &file, backup.Options{}); err != nil {
		t.Fatal(err)
	}
	whole := file.Bytes()
	bad := func(what string, data []byte, want error) {
		t.Helper()
		if _, err := backup.Verify(bytes.NewReader(data)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	for _, n := range []int{0, 5, 14, 100, len(whole) / 2, len(whole) - 1} {
		bad(fmt.Sprint("cut at ", n), whole[:n], backup.ErrDamaged)
	}
	for i := 0; i < len(whole); i += 97 {
		other := bytes.Clone(whole)
		other[i] ^= 0x20
		if _, err := backup.Verify(bytes.NewReader(other)); err == nil {
			t.Errorf("a change of byte %d is not noticed", i)
		}
	}
	bad("with more", append(bytes.Clone(whole), 0), backup.ErrDamaged)
	bad("another format", []byte("PK\x03\x04 something else, which is long enough"), backup.ErrDamaged)
	bad("a newer one", append([]byte("kiln backup 2\n"), whole[14:]...), backup.ErrNewer)

	var half bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := backup.Write(ctx, b, &half, backup.Options{}); err == nil {
		t.Error("a backup was made though nobody waits for it")
	}
	bad("one that was given up", half.Bytes(), backup.ErrDamaged)
}
