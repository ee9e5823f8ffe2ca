package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/apiclient"
)

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"0": 0, "512": 512, "1.5kB": 1500, "20GB": 20e9, "20 GiB": 20 << 30, "2g": 2 << 30, "1TB": 1e12} {
		var s sizeFlag
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%q is %d, %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "GB", "-1", "1e30TB", "10 parsecs", "1..2GB", "NaN", "5BB"} {
		var s sizeFlag
		if err := s.Set(text); err == nil {
			t.Errorf("%q is %d, want it refused", text, s)
		}
	}
	for bytes, want := range map[int64]string{0: "0B", 999: "999B", 1500: "1.5kB", 99_900_000: "100MB", 1_234_567_890: "1.2GB", 5e15: "5000TB"} {
		if got := sizeText(bytes); got != want {
			t.Errorf("%d bytes are %q, want %q", bytes, got, want)
		}
	}
}

func TestShowCache(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	showCache(&out, apiclient.Cache{
		Kinds: []apiclient.CacheKind{
			{Kind: "regular", Records: 2, Size: 3e6, InUse: 1e6, Reclaimable: 2e6},
			{Kind: "exec.cachemount", Records: 1, Size: 5000, Reclaimable: 5000},
		},
		Records: []apiclient.CacheRecord{
			{ID: "a", Kind: "regular", Size: 2e6, LastUsed: now.Add(-time.Hour), Used: 3, Description: "RUN make\x1b[2J"},
			{ID: "b", Kind: "regular", Size: 1e6, InUse: true},
		},
		Limits: apiclient.CacheLimits{Keep: 1e9, MaxUsed: 5e10, MinFree: 2e9},
	}, true, now)
	want := []string{
		"KIND RECORDS SIZE IN USE RECLAIMABLE",
		"regular 2 3.0MB 1.0MB 2.0MB",
		"exec.cachemount 1 5.0kB 0B 5.0kB",
		"total 3 3.0MB 1.0MB 2.0MB",
		"",
		"Limits: at most 50.0GB; 2.0GB of the disk stay free, but 1.0GB may be kept",
		"",
		"ID KIND SIZE LAST USED USED STATE DESCRIPTION",
		"a regular 2.0MB 1h0m0s ago 3 - RUN make",
		"b regular 1.0MB never 0 in use",
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
