package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"kiln/internal/audit"
	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
)

// stored returns all records of the stream.
func stored(t *testing.T, b *bus.Bus) (list []event.Audit) {
	t.Helper()
	err := b.Since(t.Context(), bus.StreamAudit, event.SubjectAudit, time.Now().Add(-time.Hour), func(_ uint64, data []byte) bool {
		var batch event.Audits
		if err := json.Unmarshal(data, &batch); err != nil {
			t.Error(err)
		}
		list = append(list, batch.Records...)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestWhatIsQueuedIsStoredAtTheEnd(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := audit.New(b, slog.New(slog.DiscardHandler))
	for i := range 1000 {
		l.Record(event.Audit{Who: "admin", Method: "PUT", What: fmt.Sprint(i) + " \xff" + strings.Repeat("x", 5000), Status: 200})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ended); err != nil {
		t.Fatal(err)
	}
	list := stored(t, b)
	if len(list) != 1000 || l.Lost() != 0 {
		t.Fatalf("%d records, %d lost", len(list), l.Lost())
	}
	for i, a := range list {
		if !strings.HasPrefix(a.What, fmt.Sprint(i)+" ?x") || len(a.What) > 600 {
			t.Fatalf("record %d: %.100q of %d bytes", i, a.What, len(a.What))
		}
	}
}

func TestDeniedAttemptsAreBounded(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := audit.New(b, slog.New(slog.DiscardHandler))
	for range 500 {
		l.Record(event.Audit{Method: "GET", What: "x", From: "192.0.2.1", Status: 403})
	}
	l.Record(event.Audit{Method: "GET", What: "x", From: "192.0.2.2", Status: 401})
	l.Record(event.Audit{Method: "PUT", What: "x", From: "192.0.2.1", Status: 200})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ended); err != nil {
		t.Fatal(err)
	}
	list := stored(t, b)
	from := map[string]int{}
	for _, a := range list {
		from[fmt.Sprintf("%s %d %d", a.From, a.Status, a.Left)]++
	}
	if from["192.0.2.1 403 0"] != 30 || from["192.0.2.2 401 0"] != 1 || from["192.0.2.1 200 0"] != 1 || from[" 403 470"] != 1 || len(list) != 33 {
		t.Errorf("%d records: %v", len(list), from)
	}
}

func TestWhatCannotBeStoredIsLogged(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	var text bytes.Buffer
	l := audit.New(b, slog.New(slog.NewTextHandler(&text, nil)))
	l.Record(event.Audit{Who: "token ci", Method: "DELETE", What: "tasks/web", Status: 200})
	b.Conn().Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ended); err != nil {
		t.Fatal(err)
	}
	if l.Lost() != 1 || !strings.Contains(text.String(), `who="token ci"`) || !strings.Contains(text.String(), "tasks/web") {
		t.Errorf("%d lost, log: %s", l.Lost(), &text)
	}
	var none *audit.Log
	none.Record(event.Audit{})
}
