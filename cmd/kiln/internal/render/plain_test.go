package render

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/event"
	"kiln/internal/run"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// play shows a recorded stream on d.
func play(t *testing.T, file string, d Display) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var e struct {
			Log *event.LogChunk
			Run *run.Run
		}
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if e.Run != nil {
			d.Run(*e.Run)
		} else {
			d.Chunk(*e.Log)
		}
	}
}

func TestPlainShowsRecordedRuns(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			var got bytes.Buffer
			d := NewPlain(&got)
			play(t, file, d)
			d.Close()
			golden := strings.TrimSuffix(file, ".jsonl") + ".txt"
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", golden, diff)
			}
		})
	}
}

// What is known of a run may be far ahead of its log.
func TestLinesAreWholeWhenTheLogIsBehind(t *testing.T) {
	t.Parallel()
	var got bytes.Buffer
	d := NewPlain(&got)
	start := time.Unix(1000, 0)
	out := func(text string) {
		d.Chunk(event.LogChunk{Attempt: 1, Step: "a", Entries: []event.LogEntry{{Time: start.Add(time.Second), Stream: event.StreamStderr, Data: []byte(text)}}})
	}
	r := run.Run{ID: "r1", State: run.Running, Steps: []run.Step{{ID: "a", Attempt: 1, State: run.StepRunning, Started: start}}}
	d.Run(r)
	out("one\ntw")
	r.Steps = []run.Step{{ID: "a", Attempt: 1, State: run.StepSucceeded, Started: start, Finished: start.Add(2 * time.Second)}}
	d.Run(r)
	d.Run(r)
	out("o\nthree")
	d.Chunk(event.LogChunk{Attempt: 1, Step: "a", Entries: []event.LogEntry{{Time: start.Add(3 * time.Second), End: true}}})
	d.Chunk(event.LogChunk{Attempt: 1, Step: "b", Entries: []event.LogEntry{{Time: start.Add(4 * time.Second), Stream: event.StreamStdout, Data: []byte("four\n")}}})
	for _, want := range []string{"a | one\n", "\na | two\na | three\nb | four\n"} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("no %q in\n%s", want, &got)
		}
	}
}

func TestLinesDoNotDependOnChunks(t *testing.T) {
	t.Parallel()
	text := "one\r\ntwo\rthree\nfour\x1b[1mfive\x1b[0m\x1b[K\xff\n\n\tsix\x1b]8;;http://x\x1b\\link\nseven"
	want := []string{"one", "three", "four\x1b[1mfive\x1b[0m\uFFFD", "", "\tsixlink", "seven"}
	for size := 1; size <= len(text); size++ {
		var got []string
		emit := func(s string) { got = append(got, s) }
		var l liner
		for b := []byte(text); len(b) > 0; {
			n := min(size, len(b))
			l.write(b[:n], emit)
			b = b[n:]
		}
		l.flush(emit)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("chunks of %d bytes (-want +got):\n%s", size, diff)
		}
	}
}

func TestLongLinesAreBroken(t *testing.T) {
	t.Parallel()
	var l liner
	lines, total := 0, 0
	emit := func(s string) { lines, total = lines+1, total+len(s) }
	for range 5 {
		l.write([]byte(strings.Repeat("ä", maxLine/4)), emit)
	}
	l.flush(emit)
	if want := 5 * maxLine / 2; lines != 3 || total != want {
		t.Errorf("%d lines of %d bytes, want 3 of %d", lines, total, want)
	}
}

func FuzzClean(f *testing.F) {
	f.Add("\x1b[31mred\x1b[0m\x1b[2J")
	f.Add("\x1b]0;title\x07")
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		for rest := got; ; {
			i := strings.IndexByte(rest, 0x1b)
			if i < 0 {
				break
			}
			end := strings.IndexByte(rest[i:], 'm')
			if end < 2 || rest[i+1] != '[' {
				t.Fatalf("Clean(%q) = %q: not a colour", s, got)
			}
			rest = rest[i+end:]
		}
		if strings.ContainsAny(got, "\n\r\x07\x00\x7f") {
			t.Errorf("Clean(%q) = %q", s, got)
		}
	})
}

func TestTook(t *testing.T) {
	t.Parallel()
	from := time.Unix(1000, 0)
	for d, want := range map[time.Duration]string{
		-time.Second: "0ms", 40 * time.Millisecond: "40ms", 840 * time.Millisecond: "0.8s",
		75300 * time.Millisecond: "75.3s", 725 * time.Second: "12m05s", 2*time.Hour + 3*time.Minute: "2h03m",
	} {
		if got := Took(from, from.Add(d)); got != want {
			t.Errorf("Took(%s) = %q, want %q", d, got, want)
		}
	}
	if got := Took(from, time.Time{}); got != "" {
		t.Errorf("Took of an open interval = %q", got)
	}
}
