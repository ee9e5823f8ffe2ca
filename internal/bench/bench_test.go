package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

func TestSummarize(t *testing.T) {
	var series []time.Duration
	for i := 100; i >= 1; i-- {
		series = append(series, time.Duration(i)*time.Millisecond)
	}
	got := summarize(series)
	want := summary{N: 100, P50: 50.5, P90: 91, P99: 100, Min: 1, Max: 100}
	if got != want {
		t.Errorf("summarize(1..100 ms) = %+v, want %+v", got, want)
	}
	if got := summarize(series[:3]).P50; got != 99 {
		t.Errorf("median of 98, 99, 100 ms = %v, want 99", got)
	}
	if got := summarize(nil); got != (summary{}) {
		t.Errorf("summarize(nil) = %+v, want zero", got)
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		value, must, aim float64
		want             string
	}{
		{0.7, 0.6, 0.4, "MISS"},
		{0.6, 0.6, 0.4, "pass, aim missed"},
		{0.4, 0.6, 0.4, "pass, aim met"},
		{7, 8, 0, "pass"},
		{7, 0, 0, "-"},
	} {
		if got := (result{Value: c.value, Must: c.must, Aim: c.aim}).verdict(); got != c.want {
			t.Errorf("verdict of %v (must %v, aim %v) = %q, want %q", c.value, c.must, c.aim, got, c.want)
		}
	}
}

func TestTableNamesEveryMiss(t *testing.T) {
	all := []result{
		{Program: "p1", What: "w1", Unit: "x", Value: 1.5, Must: 1, Kiln: &summary{P50: 3, P90: 4}, Note: "slow"},
		{Program: "p2", What: "w2", Unit: "MB", Value: 1, Must: 2},
	}
	var out bytes.Buffer
	printTable(&out, all)
	for _, want := range []string{"1.5 x", "MISS", "3.0 (p90 4.0) ms", "p1, w1: slow", "pass"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("table has no %q:\n%s", want, out.String())
		}
	}
	if got := missed(all); len(got) != 1 || got[0] != "p1 (w1)" {
		t.Errorf("missed = %q, want p1 (w1)", got)
	}
}

func TestParseStat(t *testing.T) {
	line := "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 5 0 1 1 1"
	got, err := parseStat(line)
	want := stat{pid: 42, parent: 7, name: "a) b (c", cpu: 1240 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("parseStat(%q) = %+v, %v, want %+v", line, got, err, want)
	}
	for _, bad := range []string{"", "42", "42 (a) S 7", "x (a) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 1 20"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q) succeeded", bad)
		}
	}
}

func TestReadTreeCountsChildren(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	got, err := readTree(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.processes) < 2 || got.rss <= 0 || got.pss <= 0 || got.pss > got.rss {
		t.Errorf("tree of the test and its child = %+v", got)
	}
}

func TestStampsJoinsPieces(t *testing.T) {
	var s stamps
	at := time.Now().Add(-time.Second)
	for _, piece := range []string{"hello\nsta", "mp ", strconv.FormatInt(at.UnixNano(), 10), "\nstamp "} {
		s.add([]byte(piece))
	}
	if s.err != nil || len(s.lags) != 1 || s.lags[0] < time.Second || s.lags[0] > time.Minute {
		t.Errorf("lags = %v, %v, want one of about a second", s.lags, s.err)
	}
	if got := s.other.String(); got != "hello\n" {
		t.Errorf("other lines = %q, want hello", got)
	}
	if _, err := s.result("x"); err == nil {
		t.Error("a log that lacks lines was accepted")
	}
}

func TestUnknownProgramIsRefused(t *testing.T) {
	if _, err := parse([]string{"no-such"}); err == nil || !strings.Contains(err.Error(), "no-such") {
		t.Errorf("parse(no-such) = %v", err)
	}
}

func TestCloseEndsProcessesAndRemovesTheDirectory(t *testing.T) {
	l := &lab{dir: t.TempDir()}
	p, err := l.start("sleeper", exec.Command("sleep", "600"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(p.cmd.Process.Pid, 0); err == nil {
		t.Error("the process is still there")
	}
	if _, err := os.Stat(l.dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestMassIsWhatItsDigestSays(t *testing.T) {
	m := newMass(2*massBlock + 100)
	whole, err := io.ReadAll(m.reader())
	if err != nil || int64(len(whole)) != m.size || digestOf(whole) != m.digest {
		t.Fatalf("read %d bytes of %d with digest %s, want %s: %v", len(whole), m.size, digestOf(whole), m.digest, err)
	}
	pieces, err := io.ReadAll(iotest.OneByteReader(m.reader()))
	if err != nil || !bytes.Equal(whole, pieces) {
		t.Errorf("read byte by byte it is another one: %v", err)
	}
	if other := newMass(m.size); other.digest == m.digest {
		t.Error("two masses are the same")
	}
}
