package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"kiln/internal/bus"
	"kiln/internal/event"
	"kiln/internal/natstest"
	"kiln/internal/run"
)

// testLogs returns the log of an attempt of which these steps are known.
func testLogs(t *testing.T, b *bus.Bus, secrets []string, steps ...string) *logs {
	l := newLogs(b, run.Run{ID: testRun, Attempt: 3}, secrets, 0)
	t.Cleanup(func() { l.close(context.WithoutCancel(t.Context())) })
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range steps {
		l.step(s)
	}
	return l
}

func TestLogKeepsTheOrderOfEachStep(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := testLogs(t, b, nil, "a", "b", "c")
	var steps sync.WaitGroup
	for _, id := range []string{"a", "b", "c"} {
		steps.Go(func() {
			for i := range 1500 {
				l.sink(id)(output(fmt.Sprintln(i)))
			}
		})
	}
	steps.Wait()
	end := l.close(t.Context())
	var last uint64
	next := map[string]int{}
	err := b.Tail(t.Context(), bus.StreamLogs, event.LogFilter(testRun), 0, false, func(seq uint64, data []byte) bool {
		last = seq
		var c event.LogChunk
		if err := json.Unmarshal(data, &c); err != nil || c.Attempt != 3 {
			t.Errorf("message %d: %+v, %v", seq, c, err)
		}
		for _, e := range c.Entries {
			if want := fmt.Sprintln(next[c.Step]); string(e.Data) != want {
				t.Fatalf("step %s: %q, want %q", c.Step, e.Data, want)
			}
			next[c.Step]++
		}
		return true
	})
	if err != nil || next["a"] != 1500 || next["b"] != 1500 || next["c"] != 1500 {
		t.Errorf("%v, entries %v, want 1500 of each", err, next)
	}
	if end != last || last == 0 {
		t.Errorf("close = %d, the last message is %d", end, last)
	}
}

func TestEndInTheMiddleOfALineIsSaid(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := testLogs(t, b, []string{"secret"}, "a", "b")
	l.sink("a")(output("one\ntwo sec")) // of which masking holds back the end
	l.sink("b")(output("one\n"))
	l.end("a")
	l.end("b")
	l.close(t.Context())
	got := map[string]string{}
	err := b.Tail(t.Context(), bus.StreamLogs, event.LogFilter(testRun), 0, false, func(_ uint64, data []byte) bool {
		var c event.LogChunk
		if err := json.Unmarshal(data, &c); err != nil {
			t.Error(err)
		}
		for _, e := range c.Entries {
			got[c.Step] += string(e.Data)
			if e.End {
				got[c.Step] += "<end>"
			}
		}
		return true
	})
	if want := "one\ntwo sec<end>"; err != nil || got["a"] != want || got["b"] != "one\n" {
		t.Errorf("%q, %v, want %q for a and no end said for b", got, err, want)
	}
}

func TestBigOutputIsCutIntoMessages(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := testLogs(t, b, nil, "a")
	var want bytes.Buffer
	for i := range 40 {
		part := bytes.Repeat([]byte{byte('a' + i%26)}, 64<<10)
		want.Write(part)
		l.add("a", []event.LogEntry{{Stream: event.StreamStdout, Data: part}})
	}
	big := bytes.Repeat([]byte("z"), 1<<20)
	want.Write(big)
	l.add("a", []event.LogEntry{{Stream: event.StreamStdout, Data: big}})
	l.close(t.Context())
	var got bytes.Buffer
	err := b.Tail(t.Context(), bus.StreamLogs, event.LogFilter(testRun), 0, false, func(seq uint64, data []byte) bool {
		if len(data) > bus.MaxPayload/2 {
			t.Errorf("message %d has %d bytes", seq, len(data))
		}
		var c event.LogChunk
		if err := json.Unmarshal(data, &c); err != nil {
			t.Error(err)
		}
		for _, e := range c.Entries {
			got.Write(e.Data)
		}
		return true
	})
	if err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%v: %d bytes arrived, want the %d that were written", err, got.Len(), want.Len())
	}
}

func TestSecretsAreMaskedInTheLog(t *testing.T) {
	t.Parallel()
	const value = "hunter22-hunter"
	b := natstest.Start(t)
	l := testLogs(t, b, []string{value}, "a")
	for _, part := range strings.SplitAfter("one "+value+" two "+value+" end hunter", "") {
		l.add("a", []event.LogEntry{output(part)})
	}
	l.add("a", []event.LogEntry{
		{Vertex: &event.Vertex{ID: "v1", Name: "RUN curl -u x:" + value, Error: "exit code 1: " + value}},
		{Stream: event.StreamStderr, Data: []byte("err " + value + "\n")},
		{Stream: event.StreamStdout, VertexID: "v1", Data: []byte("vertex " + value + "\n")},
	})
	l.say("a", "kiln says %s", value)
	l.close(t.Context())
	var text strings.Builder
	for _, c := range stored[event.LogChunk](t, b, bus.StreamLogs, event.LogFilter(testRun)) {
		for _, e := range c.Entries {
			text.Write(e.Data)
			if e.Vertex != nil {
				text.WriteString("[" + e.Vertex.Name + "][" + e.Vertex.Error + "]")
			}
		}
	}
	got := text.String()
	if strings.Contains(got, value) {
		t.Errorf("the secret is in %q", got)
	}
	for _, want := range []string{"one *** two *** end ", "[RUN curl -u x:***]", "[exit code 1: ***]", "err ***\n", "vertex ***\n", "kiln says ***\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %q", want, got)
		}
	}
	if !strings.HasSuffix(got, "hunter") {
		t.Errorf("what only begins like the secret is missing from %q", got)
	}
}

// TestLogOfRunIsBounded lets two steps say what is allowed to their run, and more.
func TestLogOfRunIsBounded(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := testLogs(t, b, nil, "a", "b", "c")
	l.mu.Lock()
	l.max = 2 << 20
	l.kept = l.max - 20
	l.mu.Unlock()
	for _, text := range []string{"12345", "67890", "12345", "67890abc", "never", "never"} {
		l.add("a", []event.LogEntry{output(text)})
	}
	l.add("b", []event.LogEntry{output("lost")})
	l.say("b", "done")
	l.close(t.Context())
	got := map[string]string{}
	for _, c := range stored[event.LogChunk](t, b, bus.StreamLogs, event.LogFilter(testRun)) {
		for _, e := range c.Entries {
			got[c.Step] += string(e.Data)
		}
	}
	mark := "\n[kiln: the log of this run ends here, at 2 MiB (kiln serve --max-log); the run goes on]\n"
	if want := "12345678901234567890" + mark; got["a"] != want {
		t.Errorf("log of a = %q, want %q", got["a"], want)
	}
	if want := mark + "done\n"; got["b"] != want {
		t.Errorf("log of b = %q, want %q", got["b"], want)
	}
}

// TestMissingLogIsSaid has something that cannot be stored between what can.
func TestMissingLogIsSaid(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := testLogs(t, b, nil, "a")
	l.add("a", []event.LogEntry{output("before\n")})
	l.add("a", []event.LogEntry{{Vertex: &event.Vertex{ID: "v1", Name: strings.Repeat("x", 64<<20)}}}) // more than the store takes
	l.add("a", []event.LogEntry{output("after\n")})
	end := l.close(t.Context())
	var text strings.Builder
	all := stored[event.LogChunk](t, b, bus.StreamLogs, event.LogFilter(testRun))
	for _, c := range all {
		for _, e := range c.Entries {
			text.Write(e.Data)
		}
	}
	if got := text.String(); !strings.HasPrefix(got, "before\nafter\n") || !strings.Contains(got, "bytes of the log are missing: they could not be stored: ") {
		t.Errorf("log %.200q", got)
	}
	if end != uint64(len(all)) {
		t.Errorf("the log ends at %d, of %d messages", end, len(all))
	}
}

func TestClosedLogTakesNothing(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := testLogs(t, b, nil, "a")
	if end := l.close(t.Context()); end != 0 {
		t.Errorf("close of an empty log = %d", end)
	}
	l.say("a", "too late")
	l.close(t.Context())
	if all := stored[event.LogChunk](t, b, bus.StreamLogs, event.LogFilter(testRun)); len(all) != 0 {
		t.Errorf("stored %+v", all)
	}
}

func TestProgressIsSentSoonAndTogether(t *testing.T) {
	t.Parallel()
	b := natstest.Start(t)
	l := testLogs(t, b, nil, "a")
	const entries = 300
	for i := range entries {
		l.sink("a")(event.LogEntry{Vertex: &event.Vertex{ID: fmt.Sprint(i), Name: "vertex"}})
	}
	messages, seen := 0, 0
	err := b.Tail(t.Context(), bus.StreamLogs, event.LogFilter(testRun), 0, true, func(_ uint64, data []byte) bool { // sent without being asked for
		var c event.LogChunk
		if err := json.Unmarshal(data, &c); err != nil {
			t.Error(err)
		}
		for _, e := range c.Entries {
			if e.Vertex == nil || e.Vertex.ID != fmt.Sprint(seen) {
				t.Fatalf("entry %d is %+v", seen, e)
			}
			seen++
		}
		messages++
		return seen < entries
	})
	if err != nil || seen != entries || messages > entries/3 {
		t.Errorf("%d entries in %d messages, %v", seen, messages, err)
	}
}
