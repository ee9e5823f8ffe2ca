package buildkit_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tonistiigi/fsutil"

	"kiln/internal/event"
	"kiln/internal/solve"
)

// A counted tree counts the files that are read of it.
type counted struct {
	fsutil.FS
	opened *atomic.Int64
}

func (c counted) Open(p string) (io.ReadCloser, error) {
	c.opened.Add(1)
	return c.FS.Open(p)
}

// describe prints a directory, so that two of one content, with modes and times of files, print the same.
const describe = "find . -type f -exec stat -c '%n %a %s %Y' {} + | sort; find . -type l | sort | while read l; do echo $l $(readlink $l); done; " +
	"find . -type d -exec stat -c '%n %a' {} + | sort; find . -type f | sort | xargs cat | sha256sum"

func shell(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("/bin/busybox", "sh", "-ec", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// testSeeds changes a large source again and again. Its workspaces always have what is in it, and only
// what is new is read.
func testSeeds(t *testing.T, e *env) {
	dir := t.TempDir()
	for i := range 300 {
		p := filepath.Join(dir, fmt.Sprintf("d%d", i/50), "sub", fmt.Sprintf("f%d", i))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(p), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	show := describe
	for i, c := range []struct {
		name, script string
		opened       int64
	}{
		{"new", "ln -s d1 link; ln -s f1 d0/sub/link", 300},
		{"the same", ":", 0},
		{"changed", "echo x > d0/sub/f0; chmod 755 d0/sub/f1; echo new > d1/-; mkdir d3-; echo 1 > d3-/1; chmod 700 d2", 4},
		{"the same change", ":", 0},
		{"changed back", "rm -r d3- d1/-; chmod 755 d2", 2},
		{"removed", "rm -r d4 d5/sub/f250", 2},
		{"other kinds", "rm -r d3 link d0/sub/f2; echo f > d3; mkdir link; echo l > link/l; ln -s f3 d0/sub/f2", 4},
		{"moved", "mv d0 d9", 51},
		{"pruned", ":", 200},
	} {
		shell(t, dir, c.script)
		if c.name == "pruned" {
			if _, err := e.client.Prune(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		src := counted{tree, &atomic.Int64{}}
		s := e.open(t, solve.SessionConfig{Source: src, SourceKey: "seeds"})
		if i%2 == 0 {
			s.Prepare(t.Context())
		}
		code, j := runStep(t, s, e.shell("cd /workspace; "+show+"; rm -r d1; echo mine > d2/sub/f100"))
		if code != 0 {
			t.Fatal(c.name, j.all())
		}
		if diff := cmp.Diff(strings.Split(shell(t, dir, show), "\n"), strings.Split(j.text(event.StreamStdout), "\n")); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
		if n := src.opened.Load(); n != c.opened {
			t.Errorf("%s: %d files were read, want %d", c.name, n, c.opened)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s := e.open(t, solve.SessionConfig{Source: tree, SourceKey: "seeds"})
	s.Prepare(t.Context())
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := e.workspaces(t); len(left) > 0 {
		t.Errorf("left of a session that was closed while it was prepared: %q", left)
	}
}
