package source

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tonistiigi/fsutil"
)

// paths returns the tree's paths, directories with a slash at the end.
func paths(t *Tree) []string {
	out := []string{}
	for _, e := range t.Entries {
		p := e.Path
		if e.Mode.IsDir() {
			p += "/"
		}
		out = append(out, p)
	}
	return out
}

func TestScanHonoursIgnoreFiles(t *testing.T) {
	t.Parallel()
	files := map[string]string{"Dockerfile": "", "a.go": "", "a.log": "", "b/c.go": "", "b/c.log": "", "b/d/e.log": "", "node_modules/x/y.js": "", "task[1].yaml": ""}
	all := []string{".dockerignore", "Dockerfile", "a.go", "a.log", "b/", "b/c.go", "b/c.log", "b/d/", "b/d/e.log", "node_modules/", "node_modules/x/", "node_modules/x/y.js", "task[1].yaml"}
	for _, tt := range []struct {
		name, ignore string
		more         map[string]string
		opt          ScanOptions
		want         []string
	}{
		{name: "empty", ignore: "", want: all},
		{name: "comment", ignore: "# a.go\n\n", want: all},
		{name: "root only", ignore: "*.log", want: []string{".dockerignore", "Dockerfile", "a.go", "b/", "b/c.go", "b/c.log", "b/d/", "b/d/e.log", "node_modules/", "node_modules/x/", "node_modules/x/y.js", "task[1].yaml"}},
		{name: "any depth", ignore: "**/*.log\nnode_modules\n", want: []string{".dockerignore", "Dockerfile", "a.go", "b/", "b/c.go", "b/d/", "task[1].yaml"}},
		{name: "leading slash, dots", ignore: "/b/./d/..\n./node_modules/\ntask*", want: []string{".dockerignore", "Dockerfile", "a.go", "a.log"}},
		{name: "everything", ignore: "*", want: []string{".dockerignore", "Dockerfile"}},
		{name: "exception", ignore: "*\n!b/c.go\n", want: []string{".dockerignore", "Dockerfile", "b/", "b/c.go"}},
		{name: "exception by pattern", ignore: "**\n!**/*.go", want: []string{".dockerignore", "Dockerfile", "a.go", "b/", "b/c.go"}},
		{name: "last wins", ignore: "!a.log\n*.log\n!a.log\n*.log\nb\nnode_modules\ntask*", want: []string{".dockerignore", "Dockerfile", "a.go"}},
		{name: "its own files", ignore: "Dockerfile\n.dockerignore\nb\nnode_modules\na.*\ntask*", want: []string{".dockerignore", "Dockerfile"}},
		{name: "kept", ignore: "*", opt: ScanOptions{Keep: []string{"task[1].yaml", "./b/c.log"}}, want: []string{".dockerignore", "Dockerfile", "b/", "b/c.log", "task[1].yaml"}},
		{name: "off", ignore: "*", opt: ScanOptions{NoIgnore: true}, want: all},
		{name: "other Dockerfile", ignore: "*", opt: ScanOptions{Dockerfile: "b/c.go"}, want: []string{".dockerignore", "b/", "b/c.go"}},
		{
			name: "of the Dockerfile", ignore: "*", opt: ScanOptions{Dockerfile: "b/Dockerfile"},
			more: map[string]string{"b/Dockerfile": "", "b/Dockerfile.dockerignore": "*\n!a.go"},
			want: []string{".dockerignore", "a.go", "b/", "b/Dockerfile", "b/Dockerfile.dockerignore"},
		},
		{
			name: "of the default Dockerfile", ignore: "", more: map[string]string{"Dockerfile.dockerignore": "*"},
			want: []string{".dockerignore", "Dockerfile", "Dockerfile.dockerignore"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, dir, files)
			write(t, dir, tt.more)
			write(t, dir, map[string]string{".dockerignore": tt.ignore})
			got := scan(t, dir, tt.opt)
			if diff := cmp.Diff(tt.want, paths(got)); diff != "" {
				t.Errorf("want, got:\n%s", diff)
			}
		})
	}
}

func TestScanIsWhatBuildKitsClientSends(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	oddTree(t, dir)
	real, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, patterns := range [][]string{nil, {"a"}, {"a*", "!a/c"}, {"**", "!dir"}, {"**/b"}} {
		write(t, dir, map[string]string{".dockerignore": strings.Join(patterns, "\n")})
		excludes := patterns
		if patterns != nil {
			excludes = append(excludes[:len(excludes):len(excludes)], "!.dockerignore", "!Dockerfile")
		}
		filtered, err := fsutil.NewFilterFS(real, &fsutil.FilterOpt{ExcludePatterns: excludes})
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		if err := filtered.Walk(t.Context(), "/", func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				p += "/"
			}
			want = append(want, p)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, paths(scan(t, dir, ScanOptions{}))); diff != "" {
			t.Errorf("%q: want, got:\n%s", patterns, diff)
		}
	}
}

func TestScanErrorsNameTheThing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"file": "", "bad-pattern/.dockerignore": "a[", "bad-name/x\xffy": "", "ignore-is-dir/.dockerignore/": "",
		"huge-ignore/.dockerignore": strings.Repeat("x\n", maxIgnoreFile),
	})
	for name, want := range map[string]string{
		"absent": "no such directory", "file": "not a directory", "bad-pattern": "ignore file", "bad-name": "UTF-8",
		"ignore-is-dir": "not a file", "huge-ignore": "larger than",
	} {
		_, err := Scan(t.Context(), filepath.Join(dir, name), ScanOptions{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if _, err := Scan(t.Context(), filepath.Join(dir, "absent"), ScanOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v, want fs.ErrNotExist", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, dir, ScanOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestScanOfALinkedAndARelativeDirectory(t *testing.T) {
	dir := t.TempDir()
	oddTree(t, filepath.Join(dir, "real"))
	want := scan(t, filepath.Join(dir, "real"), ScanOptions{}).ID()
	if err := os.Symlink("real", filepath.Join(dir, "linked")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "real"))
	for _, d := range []string{filepath.Join(dir, "linked"), ".", "./", "../real", dir + "/real/"} {
		if got := scan(t, d, ScanOptions{}).ID(); got != want {
			t.Errorf("Scan(%q) differs", d)
		}
	}
	k1, err1 := Key(".")
	k2, err2 := Key(filepath.Join(dir, "linked"))
	k3, err3 := Key(dir)
	if k1 != k2 || k1 == k3 || errors.Join(err1, err2, err3) != nil {
		t.Errorf("keys %q, %q, %q, %v", k1, k2, k3, errors.Join(err1, err2, err3))
	}
}

// A file that is written all the time is refused, or read as it was between two writes.
func TestScanWhileAFileIsWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := filepath.Join(dir, "file")
	contents := []string{strings.Repeat("a", 1<<20), strings.Repeat("b", 1<<20+1)}
	write(t, dir, map[string]string{"file": contents[0], "tmp": ""})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := os.WriteFile(p, []byte(contents[i%2]), 0o644); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 20 {
		tree, err := Scan(t.Context(), dir, ScanOptions{})
		if err != nil {
			if !errors.Is(err, ErrChanged) {
				t.Errorf("Scan: %v", err)
			}
			continue
		}
		if e := tree.Entries[0]; e.Size > int64(len(contents[1])) {
			t.Errorf("read %d bytes", e.Size)
		}
	}
	close(stop)
	wg.Wait()
}
