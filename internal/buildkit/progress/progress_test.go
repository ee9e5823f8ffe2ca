package progress_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"

	"kiln/internal/buildkit/progress"
	"kiln/internal/event"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func status() *client.SolveStatus {
	later := now.Add(time.Second)
	return &client.SolveStatus{
		Vertexes: []*client.Vertex{
			{Digest: "sha256:a", Name: "[1/2] FROM x", Started: &now, Completed: &later, Cached: true},
			{Digest: "sha256:b", Inputs: nil, Name: "[2/2] RUN false", Started: &now, Completed: &later, Error: "exit code: 1"},
		},
		Statuses: []*client.VertexStatus{{ID: "layer", Vertex: "sha256:a", Name: "sha256:l", Current: 5, Total: 10, Timestamp: now, Started: &now}},
		Logs: []*client.VertexLog{
			{Vertex: "sha256:b", Stream: 1, Data: []byte("out\n"), Timestamp: now},
			{Vertex: "sha256:b", Stream: 2, Data: []byte("err\n"), Timestamp: later},
		},
		Warnings: []*client.VertexWarning{{Vertex: "sha256:b", Level: 1, Short: []byte("careful")}},
	}
}

// store does to entries what storing a log does.
func store(t *testing.T, entries []event.LogEntry) []event.LogEntry {
	t.Helper()
	data, err := json.Marshal(entries)
	if err != nil {
		t.Fatal(err)
	}
	var out []event.LogEntry
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	want := status()
	got := progress.SolveStatus(store(t, progress.Entries(want, now)))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEntriesAreBoundedAndOwned(t *testing.T) {
	data := bytes.Repeat([]byte("x"), 2*progress.MaxData+1)
	entries := progress.Entries(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: "v", Stream: 1, Data: data}}}, now)
	clear(data)
	var got []byte
	for _, e := range entries {
		if len(e.Data) > progress.MaxData {
			t.Errorf("entry of %d bytes", len(e.Data))
		}
		got = append(got, e.Data...)
	}
	if want := strings.Repeat("x", 2*progress.MaxData+1); string(got) != want {
		t.Errorf("%d bytes, changed", len(got))
	}
}

func TestSolveStatusLeavesOutOtherEntries(t *testing.T) {
	got := progress.SolveStatus([]event.LogEntry{{Stream: event.StreamKiln, Data: []byte("kiln")}, {Stream: event.StreamStdout, Data: []byte("cmd")}})
	if diff := cmp.Diff(&client.SolveStatus{}, got); diff != "" {
		t.Error(diff)
	}
}

func TestDisplay(t *testing.T) {
	var screen bytes.Buffer
	d, err := progressui.NewDisplay(&screen, progressui.PlainMode)
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan *client.SolveStatus, 1)
	ch <- progress.SolveStatus(progress.Entries(status(), now))
	close(ch)
	if _, err := d.UpdateFrom(t.Context(), ch); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"[2/2] RUN false", "out", "exit code: 1", "careful"} {
		if !strings.Contains(screen.String(), want) {
			t.Errorf("no %q in:\n%s", want, screen.String())
		}
	}
}
