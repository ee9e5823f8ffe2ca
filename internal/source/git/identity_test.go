package git

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"kiln/internal/gittest"
)

func TestIdentityIsThatOfTheContent(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo, other := gittest.NewRepo(t, root, "r.git"), gittest.NewRepo(t, root, "other.git")
	repo.Write("a/file", "x", 0)
	repo.Write("b/file", "x", 0)
	repo.Write("c/file", "x", 0o755)
	repo.Write("d/file", "y", 0)
	repo.Write("e/name", "x", 0)
	first := repo.Commit("first")
	other.Write("file", "x", 0)
	other.Commit("other")
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	identity := func(name string, ref Ref) string {
		t.Helper()
		ref.URL = srv.URL + "/" + name
		id := mustOpen(t, m, ref, Credential{}).Identity()
		if len(id) != 64 {
			t.Errorf("identity %q", id)
		}
		return id
	}
	want := identity("r.git", Ref{Subdir: "a"})
	for what, got := range map[string]string{"another directory": identity("r.git", Ref{Subdir: "b"}),
		"another repository": identity("other.git", Ref{}), "another scope": identity("r.git", Ref{Subdir: "a", Scope: "fork"})} {
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	for _, dir := range []string{"", "c", "d", "e"} {
		if identity("r.git", Ref{Subdir: dir}) == want {
			t.Errorf("%q has other content and the same identity", dir)
		}
	}
	repo.Write("d/file", "z", 0)
	second := repo.Commit("second")
	repo.Write("d/file", "y", 0)
	repo.Commit("back")
	was, then, now := identity("r.git", Ref{Commit: first}), identity("r.git", Ref{Commit: second}), identity("r.git", Ref{})
	if was != now || was == then {
		t.Errorf("identities of three commits: %s, %s, %s", was, then, now)
	}
}

func TestIdentityCoversSubmodules(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	sub, top := gittest.NewRepo(t, root, "sub.git"), gittest.NewRepo(t, root, "top.git")
	sub.Write("f", "1", 0)
	one := sub.Commit("one")
	sub.Write("f", "2", 0)
	two := sub.Commit("two")
	same := sub.Commit("another commit of the same files")
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	identity := func(commit, more string) (whole, below string) {
		t.Helper()
		top.Write(".gitmodules", fmt.Sprintf("[submodule \"m\"]\n\tpath = dir/m\n\turl = ../sub.git\n%s", more), 0)
		top.Git("add", ".gitmodules")
		top.Git("update-index", "--add", "--cacheinfo", "160000,"+commit+",dir/m")
		top.Git("commit", "-q", "-m", "x")
		top.Git("push", "-q", "-f", "origin", "HEAD")
		url := srv.URL + "/top.git"
		return mustOpen(t, m, Ref{URL: url}, Credential{}).Identity(), mustOpen(t, m, Ref{URL: url, Subdir: "dir"}, Credential{}).Identity()
	}
	if err := os.MkdirAll(filepath.Join(top.Work, "dir/m"), 0o755); err != nil {
		t.Fatal(err)
	}
	whole1, below1 := identity(one, "")
	whole2, below2 := identity(two, "")
	_, below3 := identity(same, "")
	_, below4 := identity(one, "\tupdate = none\n") // the tree of dir is that of the first
	if whole1 == whole2 || below1 == below2 || below1 == below4 || below3 == below4 || whole1 == below1 {
		t.Errorf("identities of other content: %s %s, %s %s, %s, %s", whole1, below1, whole2, below2, below3, below4)
	}
	inner := mustOpen(t, m, Ref{URL: srv.URL + "/sub.git", Commit: one}, Credential{}).Identity()
	if _, below := identity(one, ""); below != below1 {
		t.Errorf("identity %s, want %s", below, below1)
	}
	if got := mustOpen(t, m, Ref{URL: srv.URL + "/top.git", Subdir: "dir/m"}, Credential{}).Identity(); got != inner {
		t.Errorf("submodule as the root: %s, want %s", got, inner)
	}
}
