package triggers_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/registrytest"
	"kiln/internal/store"
	"kiln/internal/task"
	"kiln/triggers"
	"kiln/triggers/clock"
	"kiln/triggers/decide"
	"kiln/triggers/watch"
)

// BenchmarkBaseOfManyTasks measures a base image that moves under 10,000 tasks: to the first decision and
// to the last.
func BenchmarkBaseOfManyTasks(b *testing.B) {
	const n = 10_000
	nats, reg := natstest.Start(b), registrytest.Start(b)
	st, err := store.Open(b.Context(), nats.JetStream(), time.Minute)
	if err != nil {
		b.Fatal(err)
	}
	put := func(content string) string {
		body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{"content":%q}}`, content)
		digest, err := reg.Store.PutManifest(b.Context(), "base", "1", "application/vnd.oci.image.index.v1+json", []byte(body))
		if err != nil {
			b.Fatal(err)
		}
		return digest
	}
	put("first")
	none := task.Duration(0)
	for i := range n {
		t := task.Task{Name: fmt.Sprint("task", i), UID: fmt.Sprint("uid", i), Step: task.Step{Inline: &task.Inline{
			Task: "version: v1.1.0\nsteps:\n- cmd: " + reg.Host + "/base:1 true\n"}},
			Triggers: task.Triggers{BaseImage: task.BaseImageTrigger{Type: task.All, Quiet: &none}}}
		t.Normalize()
		if _, err := st.Tasks.Put(b.Context(), store.TaskKey(t.Name), t); err != nil {
			b.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	d := &triggers.Decider{Bus: nats, Store: st, Registry: reg.Host, Every: -1, Log: log, Clock: &clock.Clock{Bus: nats, Log: log},
		Images: &watch.Watcher{Store: st, Bus: nats, Local: local{reg.Store}, Registry: reg.Host, Log: log}}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(b.Context())
	began := time.Now()
	go func() { done <- d.Run(ctx) }()
	defer func() { cancel(); <-done }()
	decisions := make(chan decide.Kind, n)
	go func() {
		_ = nats.Tail(ctx, bus.StreamDecisions, event.SubjectDecisions, 0, true, func(_ uint64, data []byte) bool {
			var d event.Decision
			if json.Unmarshal(data, &d) == nil {
				decisions <- d.Made.Kind
			}
			return true
		})
	}()
	count(b, decisions, decide.Unchanged, n, nil)
	b.Logf("%d tasks are followed after %s", n, time.Since(began))
	for b.Loop() {
		digest := put(time.Now().String())
		began := time.Now()
		var first time.Duration
		ev, err := event.New(digest, "/test", event.TypeImagePushed, began.UTC(), event.Image{Registry: reg.Host, Repository: "base", Tag: "1", Digest: digest})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := nats.Publish(b.Context(), event.ImageSubject(event.TypeImagePushed, "base"), digest, ev); err != nil {
			b.Fatal(err)
		}
		count(b, decisions, decide.Run, n, func() { first = time.Since(began) })
		b.ReportMetric(float64(first.Milliseconds()), "ms-to-first")
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-to-last")
	}
}

func count(b *testing.B, decisions <-chan decide.Kind, kind decide.Kind, n int, first func()) {
	b.Helper()
	late := time.After(2 * time.Minute)
	for i := 0; i < n; {
		select {
		case k := <-decisions:
			if k != kind {
				continue
			}
			if i++; i == 1 && first != nil {
				first()
			}
		case <-late:
			b.Fatalf("%d decisions within 2 minutes, want %d", i, n)
		}
	}
}
