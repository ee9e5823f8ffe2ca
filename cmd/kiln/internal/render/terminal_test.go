package render

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/console"
)

// draw plays a recorded stream on a terminal and returns all that was written to it.
func draw(t *testing.T, file string) string {
	t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := master.Resize(console.WinSize{Height: 40, Width: 120}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	drawn := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // ends with an error when the other side is closed
		drawn <- string(b)
	}()
	d, err := NewTerminal(t.Context(), slave)
	if err != nil {
		t.Fatal(err)
	}
	play(t, file, d)
	d.Note("left")
	d.Close()
	slave.Close()
	return <-drawn
}

func TestTerminalDrawsSteps(t *testing.T) {
	t.Parallel()
	got := draw(t, "testdata/live.jsonl")
	for _, want := range []string{
		"[build internal] load build definition",
		"CACHED [build 1/3] FROM",
		"ERROR [build 2/3] RUN make",
		"CANCELED [test] cmd",
		"[run] r0abcde12345 queued: waiting: 0 of 1 workers are free",
		"compiling main.c",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not drawn: %s", want)
		}
	}
	for _, bad := range []string{"evil", "\x1b[2J"} {
		if strings.Contains(got, bad) {
			t.Errorf("drawn: %q", bad)
		}
	}
	if t.Failed() {
		t.Logf("%q", got)
	}
}
