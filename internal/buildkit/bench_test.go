package buildkit_test

import (
	"testing"

	"kiln/internal/event"
	"kiln/internal/solve"
)

func BenchmarkCachedBuild(b *testing.B) {
	e := newEnv(b)
	src := source(b, map[string]string{"Dockerfile": "FROM " + e.base + "\nCOPY a /a\nRUN echo hi > /b\n", "a": "a"})
	s := e.open(b, solve.SessionConfig{Source: src, SourceKey: "bench"})
	for b.Loop() {
		if _, err := s.Build(b.Context(), solve.Build{Step: "b", Staging: e.staging()}, func(...event.LogEntry) {}); err != nil {
			b.Fatal(err)
		}
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
