package buildkit_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/event"
	"kiln/internal/solve"
)

// BenchmarkCachedBuild compares with what BuildKit's own client takes for the same.
func BenchmarkCachedBuild(b *testing.B) {
	e := newEnv(b)
	src := source(b, map[string]string{"Dockerfile": "FROM " + e.base + "\nCOPY a /a\nRUN echo hi > /b\n", "a": "a"})
	s := e.open(b, solve.SessionConfig{Source: src, SourceKey: "bench"})
	c, err := client.New(b.Context(), e.address)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	ours := func() error {
		_, err := s.Build(b.Context(), solve.Build{Step: "b", Staging: e.staging()}, func(...event.LogEntry) {})
		return err
	}
	theirs := func() error {
		_, err := c.Solve(b.Context(), nil, client.SolveOpt{
			Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}, SharedKey: "theirs",
			LocalMounts: map[string]fsutil.FS{"context": src, "dockerfile": src},
			Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
				"name": e.staging(), "push": "true", "push-by-digest": "true", "name-canonical": "true", "oci-mediatypes": "true",
			}}},
		}, nil)
		return err
	}
	for _, build := range []func() error{ours, theirs} { // fill the cache
		if err := build(); err != nil {
			b.Fatal(err)
		}
	}
	for name, build := range map[string]func() error{"kiln": ours, "client": theirs} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := build(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCmd(b *testing.B) {
	e := newEnv(b)
	s := e.open(b, solve.SessionConfig{})
	for b.Loop() {
		if _, err := s.Run(b.Context(), e.shell("true"), func(...event.LogEntry) {}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFirstCmdAndClose(b *testing.B) {
	e := newEnv(b)
	src := source(b, map[string]string{"a": "a"})
	for b.Loop() {
		s := e.open(b, solve.SessionConfig{Source: src, SourceKey: "bench"})
		if _, err := s.Run(b.Context(), e.shell("true"), func(...event.LogEntry) {}); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFirstCmdOnLargeSource runs a first step on 50,000 files of 1 GB: on a source that the daemon
// has never seen, on the same again, and with one file changed.
func BenchmarkFirstCmdOnLargeSource(b *testing.B) {
	e := newEnv(b)
	dir := b.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 20<<10/16)
	for i := range 50_000 {
		sub := filepath.Join(dir, fmt.Sprint(i/500))
		if i%500 == 0 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), fmt.Appendf(data[:len(data):len(data)], "%d", i), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	src, err := fsutil.NewFS(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"new", "same", "changed"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if name == "changed" {
					if err := os.WriteFile(filepath.Join(dir, "0", "0"), []byte(fmt.Sprint(time.Now())), 0o644); err != nil {
						b.Fatal(err)
					}
				}
				s := e.open(b, solve.SessionConfig{Source: src, SourceKey: "large"})
				if _, err := s.Run(b.Context(), e.shell("true"), func(...event.LogEntry) {}); err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				if _, err := s.Run(b.Context(), e.shell("true"), func(...event.LogEntry) {}); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/second-step")
				if err := s.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
