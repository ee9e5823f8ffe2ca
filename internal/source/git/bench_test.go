package git

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"

	"kiln/internal/gittest"
)

const benchFiles = 10_000

// benchRepo makes a repository of 10,000 files and 30 MB.
func benchRepo(b *testing.B) (*gittest.Repo, *gittest.Server) {
	root := b.TempDir()
	repo := gittest.NewRepo(b, root, "r.git")
	for i := range benchFiles {
		repo.Write(fmt.Sprintf("d%02d/e%d/f%d", i%100, i%10, i), gittest.Noise(i, 3000), 0)
	}
	repo.Commit("first")
	return repo, gittest.Serve(b, root, "", "")
}

func benchMirrors(b *testing.B) *Mirrors {
	m, err := New(loopback(b))
	if err != nil {
		b.Fatal(err)
	}
	return m
}

// peak returns the largest resident size of the process so far, in MB.
func peak(b *testing.B) float64 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var kb float64
		if n, _ := fmt.Sscanf(sc.Text(), "VmHWM: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	return 0
}

func BenchmarkOpenCold(b *testing.B) {
	_, srv := benchRepo(b)
	for b.Loop() {
		m := benchMirrors(b)
		ctx, cancel := context.WithCancel(b.Context())
		if _, err := m.Open(ctx, Ref{URL: srv.URL + "/r.git"}, Credential{}); err != nil {
			b.Fatal(err)
		}
		cancel()
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(peak(b), "MB-peak")
}

func BenchmarkOpenOneChange(b *testing.B) {
	repo, srv := benchRepo(b)
	m := benchMirrors(b)
	ref := Ref{URL: srv.URL + "/r.git"}
	if _, err := m.Open(b.Context(), ref, Credential{}); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		repo.Write("d01/e1/f1", fmt.Sprintf("change %d %s", i, strings.Repeat("x", 3000)), 0)
		repo.Commit("change")
		b.StartTimer()
		s, err := m.Open(b.Context(), ref, Credential{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.ReadFile(b.Context(), "d01/e1/f1", 10_000); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(peak(b), "MB-peak")
}

func BenchmarkWalk(b *testing.B) {
	_, srv := benchRepo(b)
	m := benchMirrors(b)
	s, err := m.Open(b.Context(), Ref{URL: srv.URL + "/r.git"}, Credential{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s.dirs, s.cached = map[plumbing.Hash][]entry{}, 0 // as after another Open
		n := 0
		err = s.Walk(b.Context(), "", func(_ string, e fs.DirEntry, err error) error {
			n++
			if err == nil {
				_, err = e.Info()
			}
			return err
		})
		if err != nil || n < benchFiles {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(peak(b), "MB-peak")
}
