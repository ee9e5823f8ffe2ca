package scheduler_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/run"
	"kiln/triggers/decide"
)

const storm = 10_000 // tasks that one base image affects

// BenchmarkStorm decides a run of each of 10,000 tasks at once and takes the time until the decisions
// and the records are stored; against that of 30,000 plain messages on the same server.
func BenchmarkStorm(b *testing.B) {
	for b.Loop() {
		s := newSite(b, time.Minute)
		raw := publishRaw(b, s.bus, 3*storm)
		stop := s.schedule(b)
		w := s.worker(b, "one", "i1")
		s.decide(b, run.Run{ID: "rwarm"})
		w.assigned(b, "rwarm", 1)
		s.report(b, event.Report{Run: "rwarm", Attempt: 1, N: 1, Final: run.Succeeded})
		s.await(b, "rwarm", in(run.Succeeded))

		before := heap()
		start := time.Now()
		first := make(chan time.Duration, 1)
		go func() { <-w.assignments; first <- time.Since(start) }()
		decideMany(b, s.bus, storm)
		decided := time.Since(start)
		poll := time.NewTicker(20 * time.Millisecond)
		for s.records(b) < storm+1 {
			<-poll.C
		}
		poll.Stop()
		took := time.Since(start)
		b.ReportMetric(raw.Seconds(), "raw-s")
		b.ReportMetric(decided.Seconds(), "decided-s")
		b.ReportMetric(took.Seconds(), "stored-s")
		b.ReportMetric(took.Seconds()/raw.Seconds(), "x-raw")
		b.ReportMetric(float64((<-first).Microseconds())/1000, "first-ms")
		b.ReportMetric(float64(heap()-before)/(1<<20), "heap-MB")
		stop()
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// records counts the stored records.
func (s *site) records(t testing.TB) int {
	t.Helper()
	st, err := s.bus.JetStream().Stream(t.Context(), "KV_runs")
	if err != nil {
		t.Fatal(err)
	}
	return int(st.CachedInfo().State.NumSubjects)
}

func publishRaw(t testing.TB, b *bus.Bus, n int) time.Duration {
	t.Helper()
	start := time.Now()
	acks := make([]bus.Ack, n)
	for i := range acks {
		ack, err := b.PublishAsync(event.ImageSubject(event.TypeImagePushed, fmt.Sprint("r", i)), fmt.Sprint("raw-", i), event.Image{Repository: "app", Tag: "v1"})
		if err != nil {
			t.Fatal(err)
		}
		acks[i] = ack
	}
	stored(t, acks)
	return time.Since(start)
}

func decideMany(t testing.TB, b *bus.Bus, n int) {
	t.Helper()
	acks := make([]bus.Ack, n)
	for i := range acks {
		r := run.Run{ID: fmt.Sprintf("r%06d", i), Task: fmt.Sprint("task-", i), TaskUID: fmt.Sprint("uid", i), Lane: string(decide.ClassBase),
			Cause: run.Cause{Kind: run.CauseBase, Repository: "https://git.example.com/team/app.git", Ref: "refs/heads/main",
				Commit: "4b825dc642cb6eb9a060e54bf8d69288fbee4904", Moved: []run.Move{{Ref: "docker.io/library/node:22", To: "sha256:4b825dc642cb6eb9a060e54bf8d69288fbee4904"}}},
			Spec: run.Spec{Context: "https://git.example.com/team/app.git#4b825dc642cb6eb9a060e54bf8d69288fbee4904",
				Build: &run.BuildSpec{Dockerfile: "Dockerfile", Images: []string{"app:{{.Run.ID}}", "app:latest"}}}}
		d := event.Decision{Task: r.Task, TaskUID: r.TaskUID, Made: decide.Decision{Kind: decide.Run, Run: r.ID, Lane: decide.ClassBase}, Run: &r}
		ack, err := b.ReplaceAsync(event.DecisionSubject(r.TaskUID, "track"), 0, d)
		if err != nil {
			t.Fatal(err)
		}
		acks[i] = ack
	}
	stored(t, acks)
}

func stored(t testing.TB, acks []bus.Ack) {
	t.Helper()
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			t.Fatal(err)
		case <-time.After(time.Minute):
			t.Fatal("not stored within a minute")
		}
	}
}
