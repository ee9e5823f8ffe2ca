package buildkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/buildkit/treefs"
	"kiln/internal/event"
	"kiln/internal/solve"
)

// testShown has a source so large that it is not transferred before a step starts. The workspace is the same,
// and only what the steps read is read, until they have read much of it.
func testShown(t *testing.T, e *env) {
	dir := largeSource(t, e.base)
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	src := counted{tree, &atomic.Int64{}}
	open := func() solve.Session {
		s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "shown"})
		s.Prepare(t.Context())
		return s
	}
	end := func(s solve.Session) {
		t.Helper()
		s.Retain(t.Context())
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if left := e.shownTrees(t); len(left) > 0 {
			t.Errorf("left of the session: %q", left)
		}
	}
	s := open()
	code, j := runStep(t, s, e.shell("cd /workspace; cat d1/f1; echo more >> d1/f2; rm -r d3; mv d2/f3 d2/f4; ln d5/f1 hard; cat hard; wc -c < large"))
	if want := "d1/f1\nd5/f1\n300000\n"; code != 0 || j.text(event.StreamStdout) != want {
		t.Errorf("code %d, want %q: %s", code, want, j.all())
	}
	built, _ := build(t, s, solve.Build{Step: "b", FromWorkspace: true, Staging: e.staging()})
	want := []string{"f1 -rw-r--r-- d1/f1", "f2 -rw-r--r-- d1/f2\nmore"}
	if diff := cmp.Diff(want, listing(t, pull(t, built.Ref), "data")); diff != "" {
		t.Error(diff)
	}
	end(s)
	if n := src.opened.Load(); n > 20 {
		t.Errorf("%d files were read of the few that the steps have", n)
	}
	s = open()
	code, j = runStep(t, s, e.shell("cd /workspace; "+describe))
	if diff := cmp.Diff(strings.Split(shell(t, dir, describe), "\n"), strings.Split(j.text(event.StreamStdout), "\n")); code != 0 || diff != "" {
		t.Errorf("code %d: %s", code, diff)
	}
	end(s)
	before := src.opened.Load()
	shell(t, dir, "echo changed > d1/f1")
	s = open()
	if code, j := runStep(t, s, e.shell("cd /workspace; cat d1/f1 d*/* | tail -n 1; head -n 1 d1/f1")); code != 0 || !strings.HasSuffix(j.text(event.StreamStdout), "\nchanged\n") {
		t.Error(code, j.all())
	}
	end(s)
	if n := src.opened.Load() - before; n != 1 {
		t.Errorf("%d files were read of a source that was retained, want the one that has changed", n)
	}
}

// largeSource writes a source of more files than are transferred while a step waits.
func largeSource(t *testing.T, base string) string {
	t.Helper()
	dir := t.TempDir()
	for d := range 40 {
		sub := fmt.Sprintf("d%d", d)
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range 30 {
			name := fmt.Sprintf("%s/f%d", sub, f)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(name+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	dockerfile := "FROM " + base + "\nCOPY d1/f1 d1/f2 /data/\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	shell(t, dir, "ln -s d1/f1 link; chmod 755 d1/f5; head -c 300000 /dev/urandom > large")
	return dir
}

// shownTrees returns the layers of mounted trees, and the mounts.
func (e *env) shownTrees(t *testing.T) []string {
	t.Helper()
	c, err := client.New(t.Context(), e.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	usage, err := c.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, u := range usage {
		if strings.Contains(u.Description, "kiln-tree-") || strings.Contains(u.Description, "kiln-workspace-") {
			left = append(left, u.Description)
		}
	}
	workers, err := c.ListWorkers(t.Context())
	if err != nil || len(workers) != 1 || workers[0].Labels[treefs.Label] == "" {
		t.Fatal(workers, err)
	}
	mounts, err := os.ReadDir(workers[0].Labels[treefs.Label])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		left = append(left, m.Name())
	}
	return left
}
