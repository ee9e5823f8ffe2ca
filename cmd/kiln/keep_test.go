package main

import (
	"strings"
	"testing"
)

func TestWhatIsKeptIsSaidInDaysAndSizes(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"90d": "90d", "36h": "36h0m0s", "48h": "2d", "0": "0s", "-1h": "", "d": "", "99999d": "", "x": ""} {
		var a keepAge
		if err := a.Set(in); (err == nil) != (want != "") || err == nil && a.String() != want {
			t.Errorf("%q = %s, %v, want %q", in, a.String(), err, want)
		}
	}
	for in, want := range map[string]string{"16GiB": "16GiB", "500MiB": "500MiB", "2048MiB": "2GiB", "16": "", "-1GiB": "", "99999999999GiB": ""} {
		var z size
		if err := z.Set(in); (err == nil) != (want != "") || err == nil && z.String() != want {
			t.Errorf("%q = %s, %v, want %q", in, z.String(), err, want)
		}
	}
	cfg := serveConfig{workerConfig: workerConfig{listen: "127.0.0.1:0", parallel: 1}, keepRuns: 1, keepLogs: 0, maxLogs: 1}
	if err := cfg.validateKeep(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("validateKeep = %v, want two problems", err)
	}
}
