package git

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/gittest"
)

func TestAllFormsOfRefs(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Write("f", "1", 0)
	first := repo.Commit("first")
	repo.Bare("update-ref", "refs/pull/7/head", first)
	repo.Bare("tag", "light", first)
	repo.Bare("tag", "-a", "-m", "t", "v1", first)
	repo.Write("f", "2", 0)
	second := repo.Commit("second")
	repo.Bare("update-ref", "refs/pull/7/merge", second)
	repo.Bare("update-ref", "refs/heads/feature/x", second)
	repo.Bare("update-ref", "refs/heads/light", second)
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	url := srv.URL + "/r.git"
	for ref, want := range map[string]Head{
		"":                 {"refs/heads/main", second},
		"HEAD":             {"refs/heads/main", second},
		"main":             {"refs/heads/main", second},
		"refs/heads/main":  {"refs/heads/main", second},
		"heads/main":       {"refs/heads/main", second},
		"feature/x":        {"refs/heads/feature/x", second},
		"light":            {"refs/tags/light", first}, // as git: tags first
		"v1":               {"refs/tags/v1", first},
		"refs/tags/v1":     {"refs/tags/v1", first},
		"pull/7/head":      {"refs/pull/7/head", first},
		"pull/7/merge":     {"refs/pull/7/merge", second},
		"refs/pull/7/head": {"refs/pull/7/head", first},
		first:              {"", first},
	} {
		got, err := m.Resolve(t.Context(), url, ref, Credential{})
		if err != nil || got != want {
			t.Errorf("Resolve(%q) = %+v, %v; want %+v", ref, got, err, want)
		}
		m := open(t, loopback(t)) // cold
		s, err := m.Open(t.Context(), Ref{URL: url, Ref: ref}, Credential{})
		if err != nil || s.Commit.ID != want.Commit || s.Ref != want.Ref {
			t.Errorf("Open(%q) = %v", ref, err)
			continue
		}
		if got := files(t, s)["f"]; got != map[string]string{first: "f1", second: "f2"}[want.Commit] {
			t.Errorf("Open(%q): f = %q", ref, got)
		}
	}
	for ref, hint := range map[string]string{"nope": "no branch or tag", "pull/8/merge": "pull request", "abc1234": "40 digits",
		"a b": "cannot be the name", "-x": "cannot be", strings.Repeat("0", 39) + "1": ""} {
		_, err := m.Open(t.Context(), Ref{URL: url, Ref: ref}, Credential{})
		if !errors.Is(err, ErrRefNotFound) || !strings.Contains(err.Error(), hint) || !strings.Contains(err.Error(), srv.Host) {
			t.Errorf("Open(%q) = %v, want %q", ref, err, hint)
		}
	}
	all, err := m.LsRemote(t.Context(), url, Credential{})
	want := map[string]string{"HEAD": second, "refs/heads/main": second, "refs/heads/feature/x": second, "refs/heads/light": second,
		"refs/tags/light": first, "refs/tags/v1": first, "refs/pull/7/head": first, "refs/pull/7/merge": second}
	if diff := cmp.Diff(want, all); err != nil || diff != "" {
		t.Errorf("LsRemote: %v (-want +got):\n%s", err, diff)
	}
}

func TestEmptyAndMissingRepositories(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	gittest.NewRepo(t, root, "empty.git")
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	if all, err := m.LsRemote(t.Context(), srv.URL+"/empty.git", Credential{}); err != nil || len(all) > 0 {
		t.Errorf("LsRemote of an empty repository = %v, %v", all, err)
	}
	if _, err := m.Open(t.Context(), Ref{URL: srv.URL + "/empty.git"}, Credential{}); !errors.Is(err, ErrRefNotFound) {
		t.Errorf("empty: %v", err)
	}
	if _, err := m.Open(t.Context(), Ref{URL: srv.URL + "/none.git"}, Credential{}); !errors.Is(err, ErrRepositoryNotFound) {
		t.Errorf("missing: %v", err)
	}
}

func TestOnlyTheDifferenceIsFetched(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	for i := range 300 {
		repo.Write(fmt.Sprintf("d%d/f%d", i%10, i), gittest.Noise(i, 4000), 0)
	}
	first := repo.Commit("first")
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	url := srv.URL + "/r.git"
	step := func(what string, max int64, want string) {
		t.Helper()
		before := srv.Sent()
		s := mustOpen(t, m, Ref{URL: url}, Credential{})
		if n := srv.Sent() - before; n > max {
			t.Errorf("%s: %d bytes were sent, want at most %d", what, n, max)
		}
		if s.Commit.ID != want {
			t.Errorf("%s: commit %s, want %s", what, s.Commit.ID, want)
		}
		if diff := cmp.Diff(repo.Archive(want), files(t, s)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	step("cold", 2<<20, first)
	step("nothing new", 2000, first)
	repo.Write("d1/f1", "changed", 0)
	second := repo.Commit("second")
	step("one file", 8000, second)
	repo.Write("d2/f2", "third", 0)
	third := repo.Commit("third")
	repo.Write("d2/f2", "fourth", 0)
	step("after a commit in between", 8000, repo.Commit("fourth"))
	repo.Git("reset", "-q", "--hard", first)
	repo.Write("d3/f3", "forced", 0)
	step("forced push", 8000, repo.Commit("forced"))
	repo.Git("checkout", "-q", "--orphan", "other")
	repo.Write("d4/f4", "orphan", 0)
	orphan := repo.Commit("unrelated")
	repo.Git("push", "-q", "-f", "origin", "HEAD:main")
	step("unrelated history", 8000, orphan)
	repo.Git("checkout", "-q", "-f", "main")
	repo.Git("reset", "-q", "--hard", first)
	repo.Git("push", "-q", "-f", "origin", "HEAD:main")
	step("back to the first", 2000, first)
	// No ref leads to these any more: one is here, the other was never.
	if s := mustOpen(t, m, Ref{URL: url, Commit: second}, Credential{}); s.Commit.ID != second {
		t.Errorf("commit = %s", s.Commit.ID)
	}
	if _, err := m.Open(t.Context(), Ref{URL: url, Commit: third}, Credential{}); !errors.Is(err, ErrRefNotFound) {
		t.Errorf("a commit that was overwritten: %v", err)
	}
}

func TestSubmodules(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	leaf, mid, top := gittest.NewRepo(t, root, "leaf.git"), gittest.NewRepo(t, root, "mid.git"), gittest.NewRepo(t, root, "top.git")
	leaf.Write("leaf", "1", 0)
	leafCommit := leaf.Commit("leaf")
	module := func(r *gittest.Repo, path, url, commit, more string) {
		old, _ := os.ReadFile(filepath.Join(r.Work, ".gitmodules"))
		r.Write(".gitmodules", string(old)+fmt.Sprintf("[submodule %q]\n\tpath = %s\n\turl = %s\n%s", path, path, url, more), 0)
		r.Git("update-index", "--add", "--cacheinfo", "160000,"+commit+","+path)
		r.Git("add", ".gitmodules")
		r.Git("commit", "-q", "-m", "module")
		r.Git("push", "-q", "-f", "origin", "HEAD")
	}
	mid.Write("mid", "2", 0)
	mid.Commit("mid")
	module(mid, "sub/leaf", "../leaf.git", leafCommit, "")
	top.Write("top", "3", 0)
	top.Commit("top")
	srv := gittest.Serve(t, root, "ci", "pw")
	cred := Credential{Username: "ci", Password: "pw"}
	module(top, "x/mid", srv.URL+"/mid.git", mid.Git("rev-parse", "HEAD"), "")
	module(top, "unused", "https://example.invalid/r.git", leafCommit, "\tupdate = none\n")
	m := open(t, loopback(t))
	s := mustOpen(t, m, Ref{URL: srv.URL + "/top.git"}, cred)
	got := files(t, s)
	delete(got, ".gitmodules")
	delete(got, "x/mid/.gitmodules")
	want := map[string]string{"top": "f3", "unused": "d", "x": "d", "x/mid": "d", "x/mid/mid": "f2", "x/mid/sub": "d",
		"x/mid/sub/leaf": "d", "x/mid/sub/leaf/leaf": "f1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], "unused") {
		t.Errorf("warnings = %q", w)
	}
	if got := files(t, mustOpen(t, m, Ref{URL: srv.URL + "/top.git", Subdir: "x/mid/sub"}, cred)); got["leaf/leaf"] != "f1" {
		t.Errorf("subdirectory in a submodule = %q", got)
	}
	module(top, "bad", "file:///etc", leafCommit, "")
	if _, err := m.Open(t.Context(), Ref{URL: srv.URL + "/top.git"}, cred); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `submodule "bad"`) {
		t.Errorf("local submodule: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	repo.Write("model.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n", 0)
	repo.Commit("pointer")
	repo.Write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n*.bat eol=crlf\n", 0)
	repo.Commit("attributes")
	srv := gittest.Serve(t, root, "", "")
	s := mustOpen(t, open(t, loopback(t)), Ref{URL: srv.URL + "/r.git"}, Credential{})
	files(t, s)
	w := s.Warnings()
	if len(w) != 3 || !strings.Contains(w[0], "LFS") || !strings.Contains(w[0], "*.bin") || !strings.Contains(w[1], "*.bat") || !strings.Contains(w[2], "1 files") {
		t.Errorf("warnings = %q", w)
	}
}

func TestChangedFiles(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	first := repo.Sample()
	repo.Write("a/file", "changed", 0)
	repo.Write("new/dir/file", "n", 0)
	repo.Git("rm", "-q", "a.txt")
	repo.Git("rm", "-q", "-r", "odd")
	repo.Write("odd", "now a file", 0)
	if err := os.Chmod(filepath.Join(repo.Work, "Dockerfile"), 0o755); err != nil {
		t.Fatal(err)
	}
	second := repo.Commit("second")
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	url := srv.URL + "/r.git"
	got, known, err := m.ChangedFiles(t.Context(), url, first, second, Credential{})
	want := strings.Split(strings.TrimSuffix(repo.Bare("-c", "core.quotePath=false", "diff", "--no-renames", "--name-only", "-z", first, second), "\x00"), "\x00")
	slices.Sort(want)
	if diff := cmp.Diff(want, got); err != nil || !known || diff != "" {
		t.Errorf("ChangedFiles = %v, %v (-want +got):\n%s", known, err, diff)
	}
	if got, known, err := m.ChangedFiles(t.Context(), url, second, second, Credential{}); err != nil || !known || len(got) > 0 {
		t.Errorf("ChangedFiles of the same commit = %q, %v, %v", got, known, err)
	}
	for _, from := range []string{"", strings.Repeat("0", 40), strings.Repeat("1", 40)} {
		if _, known, err := m.ChangedFiles(t.Context(), url, from, second, Credential{}); known || err != nil {
			t.Errorf("ChangedFiles from %q = %v, %v; want not known", from, known, err)
		}
	}
}

func TestConcurrentOpensFetchOnce(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	commit := repo.Sample()
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	want := repo.Archive(commit)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			s, err := m.Open(t.Context(), Ref{URL: srv.URL + "/r.git"}, Credential{})
			if err != nil {
				t.Error(err)
				return
			}
			var readers sync.WaitGroup
			for range 4 {
				readers.Go(func() {
					for p, content := range want {
						if content[0] != 'f' && content[0] != 'x' {
							continue
						}
						if b, err := readAll(s, p); err != nil || string(b) != content[1:] {
							t.Errorf("%s: %d bytes, %v", p, len(b), err)
						}
					}
				})
			}
			readers.Wait()
		})
	}
	wg.Wait()
	if n := srv.Requests(); n != 7 { // six lists of refs, one pack
		t.Errorf("%d requests, want 7", n)
	}
}

func TestCommitThatFollowsAnother(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	repo := gittest.NewRepo(t, root, "r.git")
	for i := range 100 {
		repo.Write(fmt.Sprintf("d%d/f%d", i%10, i), gittest.Noise(i, 4000), 0)
	}
	oldest := repo.Commit("oldest")
	repo.Write("d1/f1", "first", 0)
	first := repo.Commit("first")
	srv := gittest.Serve(t, root, "", "")
	m := open(t, loopback(t))
	url := srv.URL + "/r.git"
	mustOpen(t, m, Ref{URL: url}, Credential{})
	// step has a commit fetched as a push tells of it, and returns whether those before it have come, too.
	step := func(what, base, commit, between string, requests int64) bool {
		t.Helper()
		if _, err := m.LsRemote(t.Context(), url, Credential{}); err != nil {
			t.Fatal(err)
		}
		asked, sent := srv.Requests(), srv.Sent()
		if err := m.Prefetch(t.Context(), Ref{URL: url, Commit: commit, Base: base}, Credential{}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		s := mustOpen(t, m, Ref{URL: url, Commit: commit}, Credential{})
		if n, size := srv.Requests()-asked, srv.Sent()-sent; n != requests || size > 200<<10 {
			t.Errorf("%s: %d requests and %d bytes, want %d and few", what, n, size, requests)
		}
		if diff := cmp.Diff(repo.Archive(commit), files(t, s)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		came, err := filepath.Glob(filepath.Join(m.cfg.Dir, "*", "*", "objects", between[:2], between[2:]))
		if err != nil {
			t.Fatal(err)
		}
		return len(came) > 0
	}
	repo.Write("d2/f2", "second", 0)
	second := repo.Commit("second")
	repo.Write("d2/f2", "third", 0)
	third := repo.Commit("third")
	if !step("follows", first, third, second, 1) {
		t.Error("follows: what is between the commits has not come")
	}
	repo.Git("reset", "-q", "--hard", oldest)
	repo.Write("d3/f3", "forced", 0)
	forced := repo.Commit("forced")
	if step("needs a file of a commit that is not here", third, forced, oldest, 2) {
		t.Error("more than the commit has come")
	}
	repo.Write("d5/f5", "other", 0)
	between := repo.Commit("between")
	repo.Write("d5/f5", "other again", 0)
	end := repo.Commit("end")
	if step("follows one that is not here", between, end, between, 1) {
		t.Error("more than the commit has come")
	}
	var history strings.Builder
	from := "from " + end + "\n"
	for i := range maxFollowing / 2 { // each has a file, a directory and itself
		fmt.Fprintf(&history, "commit refs/heads/main\ncommitter a <a@b> 1000000000 +0000\ndata 1\nx\n%sM 100644 inline many\ndata 4\n%04d\n", from, i)
		from = ""
	}
	repo.Input([]byte(history.String()), "fast-import", "--quiet")
	if step("follows by too much", end, repo.Bare("rev-parse", "main"), repo.Bare("rev-parse", "main~1"), 2) {
		t.Error("more than the commit has come")
	}
}
