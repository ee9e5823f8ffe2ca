package buildkit_test

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/event"
	"kiln/internal/solve"
)

func TestLatency(t *testing.T) {
	if os.Getenv("LAT") == "" {
		return
	}
	e := newEnv(t)
	src := source(t, map[string]string{"Dockerfile": "FROM " + e.base + "\nCOPY a.txt /a\nRUN echo hi > /b\n", "a.txt": "a"})
	s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "lat"})
	raw, err := client.New(t.Context(), e.address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	plain := func(internal bool) func() {
		return func() {
			_, err := raw.Solve(t.Context(), nil, client.SolveOpt{
				Ref: identity.NewID(), Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}, Internal: internal,
				LocalMounts: map[string]fsutil.FS{"context": src, "dockerfile": src}, SharedKey: "raw",
				Exports: []client.ExportEntry{{Type: "image", Attrs: map[string]string{"name": e.registry + "/staging/x", "push": "true", "push-by-digest": "true", "name-canonical": "true", "oci-mediatypes": "true"}}},
			}, nil)
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	ours := func() {
		if _, err := s.Build(t.Context(), solve.Build{Step: "b", Staging: e.staging()}, func(...event.LogEntry) {}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := func() {
		if _, err := s.Run(t.Context(), e.shell("true"), func(...event.LogEntry) {}); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 {
		for _, c := range []struct {
			name string
			f    func()
		}{{"ours", ours}, {"plain", plain(false)}, {"plain internal", plain(true)}, {"cmd", cmd}} {
			for range 3 {
				c.f()
			}
			var d []time.Duration
			for range 25 {
				b := time.Now()
				c.f()
				d = append(d, time.Since(b))
			}
			slices.Sort(d)
			t.Logf("round %d %-15s median %v p10 %v p90 %v", round, c.name, d[12], d[2], d[22])
		}
	}
	var d []time.Duration
	for range 10 {
		b := time.Now()
		s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "lat"})
		if _, err := s.Run(t.Context(), e.shell("true"), func(...event.LogEntry) {}); err != nil {
			t.Fatal(err)
		}
		first := time.Since(b)
		b = time.Now()
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Log("first cmd", first, "close", time.Since(b))
		d = append(d, first)
	}
}
