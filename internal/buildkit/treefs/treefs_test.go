package treefs

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// describe prints a directory, so that two of one content print the same.
const describe = "find . -type f -exec stat -c '%n %a %s %Y' {} + | sort; find . -type l | sort | while read l; do echo $l $(readlink $l); done; " +
	"find . -mindepth 1 -type d -exec stat -c '%n %a' {} + | sort; find . -type f | sort | xargs cat | sha256sum; ls -a d1; cat nothing 2>/dev/null || echo nothing"

// shell executes a script in a directory. Only other processes go into a mount: this one serves it, and the
// runtime of Go opens files and starts processes in ways that would wait for itself.
func shell(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("/bin/busybox", "sh", "-ec", "cd '"+dir+"'; "+script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// show mounts what is in dir, with open between the mount and its files.
func show(t *testing.T, dir string, open func(string) (io.ReadCloser, error)) *Mount {
	t.Helper()
	files, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	tree := New()
	err = files.Walk(t.Context(), "", func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			tree.Add(info.Sys().(*types.Stat))
		}
		return err
	})
	if err := errors.Join(err, tree.Seal()); err != nil {
		t.Fatal(err)
	}
	if open == nil {
		open = files.Open
	}
	m, err := Show(t.TempDir(), "m", tree, open)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMountHasWhatTheTreeHas(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shell(t, dir, "mkdir -p d1/sub 'a b/c' a- e; echo 1 > a-/1; echo 2 > 'a b/2'; chmod 4755 a-/1; chmod 1777 e; ln -s ../x d1/l; ln -s /abs l; : > empty;"+
		"i=0; while [ $i -lt 700 ]; do echo $i > d1/file-with-a-longer-name-$i; i=$((i+1)); done; touch -d '1969-12-31 12:00:00' 'a b/2';"+
		"dd if=/dev/urandom of=large bs=1000 count=900 2>/dev/null; dd if=/dev/urandom of=d1/sub/128 bs=131072 count=1 2>/dev/null")
	m := show(t, dir, nil)
	if diff := cmp.Diff(shell(t, dir, describe), shell(t, m.dir, describe)); diff != "" {
		t.Error(diff)
	}
	shell(t, m.dir, "! echo x > new; ! rm empty") // as root
	want, got := shell(t, dir, "tail -c 70001 large | head -c 333 | sha256sum"), shell(t, m.dir, "tail -c 70001 large | head -c 333 | sha256sum")
	for _, f := range []string{"d1/sub/128", "empty"} { // in parts
		script := "dd iflag=direct bs=4096 if=" + f + " 2>/dev/null | sha256sum"
		if got, want := shell(t, m.dir, script), shell(t, dir, "sha256sum < "+f); got != want {
			t.Errorf("%s is %q, want %q", f, got, want)
		}
	}
	if want != got {
		t.Errorf("a part of a file is %q, want %q", got, want)
	}
	if err := m.End(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Dir(m.dir)); err != nil || len(left) > 0 {
		t.Errorf("left of a mount: %v, %v", left, err)
	}
}

func TestLargeFileIsReadOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := os.WriteFile(filepath.Join(dir, "large"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	m := show(t, dir, nil)
	defer func() {
		if err := m.End(); err != nil {
			t.Error(err)
		}
	}()
	shell(t, m.dir, "for i in 1 2 3 4; do cmp large "+dir+"/large & p=\"$p $!\"; done; for i in $p; do wait $i; done")
	if n := m.Read(); n != 1 {
		t.Errorf("the file was read %d times, want once", n)
	}
}

// TestUnreadableFileIsAnError has files that break off, and one that can be read when it is tried again.
func TestUnreadableFileIsAnError(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shell(t, dir, "echo 12345678 > small; dd if=/dev/zero of=large bs=1000 count=900 2>/dev/null; echo 1 > good")
	var mended atomic.Bool
	m := show(t, dir, func(p string) (io.ReadCloser, error) {
		if p == "good" || mended.Load() {
			return os.Open(filepath.Join(dir, p))
		}
		return io.NopCloser(strings.NewReader("1234")), nil
	})
	shell(t, m.dir, "! cat small; ! cat large")
	mended.Store(true)
	shell(t, m.dir, "cmp small "+dir+"/small; cmp large "+dir+"/large; cat good")
	if err := m.End(); err != nil {
		t.Fatal(err)
	}
}

// TestEndDoesNotWaitForUsers ends a mount of which a file is open, and one that somebody has unmounted.
func TestEndDoesNotWaitForUsers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shell(t, dir, "echo 1 > f")
	m := show(t, dir, nil)
	user := exec.Command("/bin/busybox", "sh", "-c", "cd '"+m.dir+"'; exec 3< f; echo ready; read go; cat <&3")
	stdin, err := user.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := user.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatal(line, err)
	}
	if err := m.End(); err != nil {
		t.Error(err)
	}
	_ = stdin.Close()
	if user.Wait() == nil {
		t.Error("a file of a mount that has ended can still be read")
	}
	m = show(t, dir, nil)
	if err := unmount(m.dir); err != nil {
		t.Error(err)
	}
	if err := m.End(); err != nil {
		t.Error(err)
	}
}

func TestTreesThatCannotBeShown(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string][]*types.Stat{
		"no directory": {{Path: "a/b", Mode: 0o644}},
		"hard link":    {{Path: "a", Mode: 0o644}, {Path: "b", Mode: 0o644, Linkname: "a"}},
		"device":       {{Path: "a", Mode: uint32(fs.ModeDevice | 0o644)}},
		"no name":      {{Path: "", Mode: 0o644}},
		"way out":      {{Path: "..", Mode: uint32(fs.ModeDir | 0o755)}},
	} {
		tree := New()
		for _, st := range entries {
			tree.Add(st)
		}
		if tree.Seal() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Show(filepath.Join(t.TempDir(), "f\x00"), "m", New(), nil); err == nil {
		t.Error("mounted on no directory")
	}
}
