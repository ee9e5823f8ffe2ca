package store_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/natstest"
	"kiln/internal/run"
	"kiln/internal/store"
)

// TestClusterLosesAServer keeps state on three servers and stops the one that leads the stream of events and that the
// client is connected to.
func TestClusterLosesAServer(t *testing.T) {
	t.Parallel()
	cluster := natstest.StartCluster(t)
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	nc := cluster.Connect(t, cluster.Names()[0])
	if _, err := bus.OpenShared(ctx, nc, bus.ReplicasOn(nc, 0), log); err != nil {
		t.Fatal(err)
	}
	leader := ""
	for _, name := range cluster.Names() {
		if cluster.Leads(name, bus.StreamEvents) {
			leader = name
		}
	}
	nc = cluster.Connect(t, leader)
	replicas := bus.ReplicasOn(nc, 0)
	b, err := bus.OpenShared(ctx, nc, replicas, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.LimitLogs(ctx, time.Hour, 1<<30); err != nil {
		t.Fatal(err)
	}
	s, err := store.OpenShared(ctx, b.JetStream(), time.Minute, replicas.Count, replicas.Raise)
	if err != nil {
		t.Fatal(err)
	}
	copies(ctx, t, b, 3)

	if _, err := b.Create(ctx, "kiln.event.test.1", 1, 0); err != nil {
		t.Fatal(err)
	}
	rev, err := s.Runs.Create(ctx, "ra", run.Run{ID: "ra"})
	if err != nil {
		t.Fatal(err)
	}
	if r, _, err := s.Runs.Get(ctx, "ra"); err != nil || r.ID != "ra" { // from whoever has it
		t.Errorf("Get right after Create = %+v, %v", r, err)
	}
	got := make(chan int, 8)
	consumed := make(chan error, 1)
	cctx, stop := context.WithCancel(ctx)
	go func() {
		consumed <- b.Consume(cctx, bus.Consumer{Stream: bus.StreamEvents, Name: "test", Filter: "kiln.event.test.*"}, func(m bus.Message) {
			var n int
			m.Settle(m.Decode(&n))
			got <- n
		})
	}()
	await(t, got, 1)

	cluster.Stop(leader)
	insist(ctx, t, func(ctx context.Context) error {
		_, err := b.Create(ctx, "kiln.event.test.2", 2, 0)
		return err
	})
	await(t, got, 2)
	insist(ctx, t, func(ctx context.Context) error {
		_, err := s.Runs.Update(ctx, "ra", run.Run{ID: "ra", State: run.Started}, rev)
		return err
	})
	insist(ctx, t, func(ctx context.Context) error {
		r, _, err := s.Runs.Get(ctx, "ra")
		if err == nil && r.State != run.Started {
			t.Errorf("Get = %s, want %s", r.State, run.Started)
		}
		return err
	})
	insist(ctx, t, func(ctx context.Context) error {
		_, err := s.Runs.Update(ctx, "ra", run.Run{ID: "ra", State: run.Failed}, rev)
		if err == nil {
			t.Error("a stale Update is stored")
		}
		return err
	})
	stop()
	if err := <-consumed; err != nil {
		t.Error(err)
	}
}

// insist does something until it is done, or in conflict with what was done: nobody may have been there to say so.
func insist(ctx context.Context, t *testing.T, do func(context.Context) error) {
	t.Helper()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := do(once)
		cancel()
		if err == nil || errors.Is(err, bus.ErrConflict) || errors.Is(err, store.ErrConflict) {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("still after three minutes: %v", err)
		}
	}
}

// copies reports streams of which there are not n copies, or that are read from others than their leader.
func copies(ctx context.Context, t *testing.T, b *bus.Bus, n int, but ...string) {
	t.Helper()
	streams, seen := b.JetStream().ListStreams(ctx), 0
	for info := range streams.Info() {
		seen++
		if c := info.Config; !slices.Contains(but, c.Name) && (c.Replicas != n || n > 1 && c.AllowDirect) {
			t.Errorf("stream %s has %d copies, want %d; direct reads %t", c.Name, c.Replicas, n, c.AllowDirect)
		}
	}
	if err := streams.Err(); err != nil || seen < 20 {
		t.Errorf("%d streams, %v", seen, err)
	}
}

func TestMoreCopiesAreMadeWhenTheyAreAskedFor(t *testing.T) {
	t.Parallel()
	nc := natstest.StartCluster(t).Connect(t, "n0")
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for i, step := range []struct {
		asked, want int
		but         []string
	}{
		{asked: 1, want: 1}, {asked: 0, want: 1}, {asked: 3, want: 3, but: []string{bus.StreamLogs, bus.StreamWork}}, {asked: 1, want: 3, but: []string{bus.StreamLogs, bus.StreamWork}},
	} {
		replicas := bus.ReplicasOn(nc, step.asked)
		b, err := bus.OpenShared(ctx, nc, replicas, log)
		if err != nil {
			t.Fatal(err)
		}
		s, err := store.OpenShared(ctx, b.JetStream(), time.Minute, replicas.Count, replicas.Raise)
		if err != nil {
			t.Fatal(err)
		}
		copies(ctx, t, b, step.want, step.but...)
		if i == 0 {
			_, err = s.Runs.Create(ctx, "ra", run.Run{ID: "ra"})
		} else {
			_, _, err = s.Runs.Get(ctx, "ra")
		}
		if err != nil {
			t.Errorf("%d copies asked for: %v", step.asked, err)
		}
	}
	if _, err := bus.OpenShared(ctx, nc, bus.ReplicasOn(nc, 5), log); !errors.Is(err, bus.ErrReplicas) {
		t.Errorf("5 copies on 3 servers: %v, want ErrReplicas", err)
	}
	restoreOn(ctx, t, nc)
}

// restoreOn moves streams from a single server to a cluster, and back: there are as many copies as there are to be,
// whatever there was before.
func restoreOn(ctx context.Context, t *testing.T, cluster *bus.Conn) {
	t.Helper()
	single := natstest.Start(t)
	names := []string{bus.StreamLogs, "KV_" + store.BucketRuns}
	if _, err := store.OpenShared(ctx, single.JetStream(), time.Minute, 1, false); err != nil {
		t.Fatal(err)
	}
	if _, err := single.Publish(ctx, "kiln.log.r1.0", "", "a line"); err != nil {
		t.Fatal(err)
	}
	if err := (bus.Restorer{Conn: single.Conn(), Replicas: 3}).Restore(ctx, bus.Snapshot{}, nil); !errors.Is(err, bus.ErrReplicas) {
		t.Errorf("3 copies on a server that is alone: %v, want ErrReplicas", err)
	}
	on, err := bus.Attach(cluster, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, move := range []struct {
		from *bus.Bus
		to   bus.Restorer
	}{{single, bus.Restorer{Conn: cluster, Replicas: 3}}, {on, bus.Restorer{Conn: single.Conn()}}} {
		for _, name := range names {
			var s bus.Snapshot
			var pieces [][]byte
			err := move.from.Snapshot(ctx, name, func(what bus.Snapshot) error { s = what; return nil },
				func(piece []byte) error { pieces = append(pieces, slices.Clone(piece)); return nil })
			if err == nil {
				err = move.to.Remove(ctx, []string{name})
			}
			if err == nil {
				err = move.to.Restore(ctx, s, func() (piece []byte, err error) {
					if len(pieces) > 0 {
						piece, pieces = pieces[0], pieces[1:]
					}
					return piece, nil
				})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		b, err := bus.Attach(move.to.Conn, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			stream, err := b.JetStream().Stream(ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			if n := stream.CachedInfo().Config.Replicas; n != max(move.to.Replicas, 1) {
				t.Errorf("restored stream %s has %d copies", name, n)
			}
		}
		var line string
		if _, err := b.Last(ctx, bus.StreamLogs, "kiln.log.r1.0", &line); err != nil || line != "a line" {
			t.Errorf("restored line is %q, %v", line, err)
		}
	}
}

func TestOneServerKeepsOneCopy(t *testing.T) {
	t.Parallel()
	nc := natstest.Start(t).Conn()
	if r := bus.ReplicasOn(nc, 0); r.Count != 1 {
		t.Errorf("%d copies on one server", r.Count)
	}
	if _, err := bus.OpenShared(t.Context(), nc, bus.ReplicasOn(nc, 3), slog.New(slog.DiscardHandler)); !errors.Is(err, bus.ErrReplicas) {
		t.Errorf("3 copies on one server: %v, want ErrReplicas", err)
	}
}

// await waits until want comes; what was delivered already may come again.
func await(t *testing.T, from <-chan int, want int) {
	t.Helper()
	for end := time.After(2 * time.Minute); ; {
		select {
		case n := <-from:
			if n == want {
				return
			}
		case <-end:
			t.Fatalf("%d has not come within two minutes", want)
		}
	}
}
