package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A summary describes a series of times, in milliseconds.
type summary struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Min float64 `json:"min"`
	Max float64 `json:"max"`
}

func summarize(series []time.Duration) summary {
	s := slices.Sorted(slices.Values(series))
	if len(s) == 0 {
		return summary{}
	}
	return summary{N: len(s), P50: millis(quantile(s, 0.5)), P90: millis(quantile(s, 0.9)), P99: millis(quantile(s, 0.99)),
		Min: millis(s[0]), Max: millis(s[len(s)-1])}
}

// quantile returns the value at or below which the share q of a sorted series lies; the median of an
// even number is the mean of the middle two.
func quantile(sorted []time.Duration, q float64) time.Duration {
	n := len(sorted)
	if q == 0.5 && n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	i := int(q * float64(n))
	return sorted[min(i, n-1)]
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// conditions are what else the machine did.
type conditions struct {
	Load  float64 `json:"load"`    // average of the last minute
	Fsync float64 `json:"fsyncMs"` // median of a write of 4 KiB and its fdatasync, milliseconds
}

const fsyncSamples = 101

// conditionsAt measures the disk of dir and reads the load.
func conditionsAt(dir string) (conditions, error) {
	var c conditions
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return c, err
	}
	first, _, _ := strings.Cut(string(b), " ")
	if c.Load, err = strconv.ParseFloat(first, 64); err != nil {
		return c, fmt.Errorf("/proc/loadavg: %w", err)
	}
	name := filepath.Join(dir, "fsync")
	f, err := os.Create(name)
	if err != nil {
		return c, err
	}
	defer os.Remove(name)
	defer f.Close()
	block := make([]byte, 4096)
	times := make([]time.Duration, fsyncSamples)
	for i := range times {
		begin := time.Now()
		if _, err := f.Write(block); err != nil {
			return c, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return c, fmt.Errorf("fdatasync %s: %w", name, err)
		}
		times[i] = time.Since(begin)
	}
	c.Fsync = summarize(times).P50
	return c, nil
}

// spread tells how the disk and the load varied during a measurement.
func spread(series []conditions) string {
	var fsync []float64
	var load float64
	for _, c := range series {
		fsync, load = append(fsync, c.Fsync), max(load, c.Load)
	}
	if slices.Sort(fsync); len(fsync) == 0 {
		return "no conditions noted"
	}
	return fmt.Sprintf("fsync between rounds p50 %.2f, worst %.2f ms, load at most %.1f", fsync[len(fsync)/2], fsync[len(fsync)-1], load)
}
