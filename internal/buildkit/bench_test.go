package buildkit_test

import (
	"testing"

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
