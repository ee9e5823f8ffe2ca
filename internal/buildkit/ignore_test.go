package buildkit

import (
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tonistiigi/fsutil"
)

func TestIgnoreFileIsSentWithTheDockerfile(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"a": "", "sub/Dockerfile": "FROM x", "sub/Dockerfile.d/x": "", "sub/Dockerfilf": "", "sub/own": "FROM x",
		"sub/own.dockerignore": "mine", "sub-a": "", "z": "", ".dockerignore": "", "ctx/.dockerignore": "theirs", "link/x": ""} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../a", filepath.Join(dir, "link/.dockerignore")); err != nil {
		t.Fatal(err)
	}
	root, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	walk := func(tree fsutil.FS, target string, skip ...string) (names []string) {
		t.Helper()
		err := tree.Walk(t.Context(), target, func(p string, e fs.DirEntry, err error) error {
			if slices.Contains(skip, p) {
				return fs.SkipDir
			}
			names = append(names, p)
			return err
		})
		if err != nil {
			t.Errorf("Walk(%q): %v", target, err)
		}
		return names
	}
	for _, tt := range []struct{ context, dockerfile, want string }{
		{"ctx", "sub/Dockerfile", "theirs"}, {"", "Dockerfile", "\n"}, {"sub", "sub/Dockerfile", "\n"}, {"ctx", "z", "theirs"}, {"ctx", "sub/own", "mine"},
	} {
		tree := withIgnore(t.Context(), root, tt.context, tt.dockerfile)
		name := tt.dockerfile + ".dockerignore"
		f, err := tree.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(f); err != nil || string(b) != tt.want {
			t.Errorf("%s: %q, %v; want %q", name, b, err, tt.want)
		}
		all := map[string]bool{name: true}
		for _, p := range walk(root, "") {
			all[p] = true
		}
		got := walk(tree, "")
		if diff := cmp.Diff(slices.SortedFunc(maps.Keys(all), fsutil.ComparePath), got); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff([]string{name}, walk(tree, name)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"z"}, walk(tree, "z")); diff != "" {
			t.Error(diff)
		}
		if tt.dockerfile == "sub/Dockerfile" && (slices.Contains(walk(tree, "", "sub"), name) || !slices.Contains(walk(tree, "sub"), name)) {
			t.Errorf("%s is not where its directory is", name)
		}
	}
	if name := "z.dockerignore"; slices.Contains(walk(withIgnore(t.Context(), root, "link", "z"), ""), name) {
		t.Error("a symbolic link was followed")
	}
}
