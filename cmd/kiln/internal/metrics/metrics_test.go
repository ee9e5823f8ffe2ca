package metrics_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"kiln/cmd/kiln/internal/metrics"
	"kiln/internal/bus"
	"kiln/internal/run"
	"kiln/scheduler"
	"kiln/triggers/decide"
)

// scrape returns what m tells, without comments.
func scrape(t *testing.T, m *metrics.Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func wantLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			name, _, _ := strings.Cut(line, "{")
			var near []string
			for l := range strings.Lines(text) {
				if strings.HasPrefix(l, name) {
					near = append(near, l)
				}
			}
			t.Errorf("no line %q; there is\n%s", line, strings.Join(near, ""))
		}
	}
}

func TestWhatHappensIsCounted(t *testing.T) {
	t.Parallel()
	m := metrics.New("v1")
	m.Decided(decide.Run)
	begin := time.Now()
	code := 0
	m.Ended(run.Run{ID: "r1", State: run.Succeeded, Created: begin, Started: begin.Add(2 * time.Second), Finished: begin.Add(10 * time.Second),
		Steps: []run.Step{
			{ID: "secret-name", Kind: "build", State: run.StepSucceeded, ExitCode: &code, Started: begin.Add(2 * time.Second), Finished: begin.Add(7 * time.Second)},
			{ID: "never", Kind: "cmd", State: run.StepSkipped},
		}})
	m.Ended(run.Run{ID: "r2", State: run.Canceled, Lane: "a lane of another version", Created: begin, Finished: begin})
	text := scrape(t, m)
	wantLines(t, text, `kiln_decisions_total{kind="run"} 1`, `kiln_decisions_total{kind="blocked"} 0`,
		`kiln_runs_total{lane="manual",outcome="Succeeded"} 1`, `kiln_runs_total{lane="other",outcome="Canceled"} 1`,
		`kiln_run_duration_seconds_sum{outcome="Succeeded"} 8`, `kiln_run_wait_seconds_sum{lane="manual"} 2`,
		`kiln_step_duration_seconds_sum{outcome="Succeeded",type="build"} 5`)
	for _, never := range []string{"secret-name", `type="cmd"`, "r1"} {
		if strings.Contains(text, never) {
			t.Errorf("%q is told", never)
		}
	}
	if !strings.Contains(text, `kiln_build_info{go="go`) || !strings.Contains(text, `version="v1"} 1`) || !strings.Contains(text, "\ngo_goroutines ") ||
		!strings.Contains(text, "\nprocess_open_fds ") {
		t.Errorf("no build info, or nothing about the process:\n%s", text)
	}
}

func TestRequestsToTheRegistryAreCounted(t *testing.T) {
	t.Parallel()
	m := metrics.New("v1")
	server := httptest.NewServer(m.Registry(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.Method == "PUT" {
			w.WriteHeader(http.StatusCreated)
			return
		}
		_, _ = io.WriteString(w, "answer")
	})))
	defer server.Close()
	for _, r := range []struct{ method, path string }{
		{"PUT", "/v2/team/private/manifests/v1"}, {"GET", "/v2/team/private/blobs/sha256:0"}, {"BREW", "/v2/x/y"}, {"GET", "/api/v1/runs"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, server.URL+r.path, strings.NewReader("request"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	server.Close() // when its handlers have returned
	text := scrape(t, m)
	wantLines(t, text, `kiln_registry_requests_total{method="PUT",route="manifests",status="2xx"} 1`,
		`kiln_registry_requests_total{method="GET",route="blobs",status="2xx"} 1`, `kiln_registry_requests_total{method="other",route="other",status="2xx"} 1`,
		`kiln_registry_received_bytes_total{route="manifests"} 7`, `kiln_registry_sent_bytes_total{route="manifests"} 0`,
		`kiln_registry_sent_bytes_total{route="blobs"} 6`)
	if strings.Contains(text, "private") || strings.Count(text, "kiln_registry_requests_total{") != 3 {
		t.Error("there is more than was asked for")
	}
}

func TestWhatIsThereIsToldWithBounds(t *testing.T) {
	t.Parallel()
	m := metrics.New("v1")
	asked := 0
	st := scheduler.Stats{Unapproved: 3, Assigned: 2, Pools: []scheduler.PoolStats{{Pool: "default", Idle: 1, Full: 2, Slots: 6, Used: 4}},
		Lanes: []scheduler.LaneStats{{Pool: "default", Lane: "manual", Waiting: 5, Oldest: time.Now().Add(-time.Hour)}, {Pool: "default", Lane: "timer"}}}
	for i := range 1000 {
		st.Lanes = append(st.Lanes, scheduler.LaneStats{Pool: fmt.Sprint("pool", i), Lane: "manual", Waiting: 1})
	}
	m.Watch(metrics.Sources{
		Queue: func(context.Context) (scheduler.Stats, error) { asked++; return st, nil },
		Streams: func(context.Context) ([]bus.StreamStats, error) {
			return []bus.StreamStats{{Stream: "EVENTS", Messages: 7, Bytes: 70, Consumers: []bus.ConsumerStats{
				{Name: "scheduler", Pending: 2, Unsettled: 1}, {Name: "notify-a", Pending: 1}, {Name: "notify-b", Pending: 2}, {Name: "worker-x"}, {Name: "stranger"}}}}, nil
		},
	})
	scrape(t, m)
	text := scrape(t, m)
	if asked > 2 { // the second would be a slow machine's
		t.Errorf("the queue was asked %d times for two scrapes", asked)
	}
	wantLines(t, text, `kiln_queue_runs{lane="manual",pool="default"} 5`, `kiln_queue_runs{lane="timer",pool="default"} 0`,
		`kiln_queue_oldest_seconds{lane="timer",pool="default"} 0`, `kiln_queue_runs{lane="manual",pool="other"} 969`,
		`kiln_queue_unapproved_runs 3`, `kiln_runs_assigned 2`, `kiln_workers{pool="default",state="full"} 2`, `kiln_worker_slots{pool="default"} 6`,
		`kiln_worker_slots_used{pool="default"} 4`, `kiln_source_up{source="queue"} 1`, `kiln_stream_messages{stream="EVENTS"} 7`,
		`kiln_stream_bytes{stream="EVENTS"} 70`, `kiln_consumer_pending_messages{consumer="scheduler",stream="EVENTS"} 2`,
		`kiln_consumer_unsettled_messages{consumer="scheduler",stream="EVENTS"} 1`,
		`kiln_consumer_pending_messages{consumer="notify-targets",stream="EVENTS"} 3`, `kiln_consumer_pending_messages{consumer="workers",stream="EVENTS"} 0`,
		`kiln_consumer_pending_messages{consumer="other",stream="EVENTS"} 0`)
	if !strings.Contains(text, `kiln_queue_oldest_seconds{lane="manual",pool="default"} 36`) {
		t.Error("the oldest run is not an hour old")
	}
}

func TestASourceThatFailsTakesNothingElseAway(t *testing.T) {
	t.Parallel()
	m := metrics.New("v1")
	m.Watch(metrics.Sources{
		Queue:   func(context.Context) (scheduler.Stats, error) { return scheduler.Stats{Assigned: 4}, nil },
		Streams: func(context.Context) ([]bus.StreamStats, error) { return nil, errors.New("no answer") },
	})
	text := scrape(t, m)
	wantLines(t, text, `kiln_source_up{source="queue"} 1`, `kiln_source_up{source="streams"} 0`, `kiln_runs_assigned 4`)
	if strings.Contains(text, "kiln_stream_") {
		t.Error("there are values of a source that does not answer")
	}
}
