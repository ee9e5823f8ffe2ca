package buildkit

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/tonistiigi/fsutil/types"
)

// randomTree is a tree of a few short names, so that two of them meet in all ways, by path.
func randomTree(r *rand.Rand) map[string]*types.Stat {
	t := map[string]*types.Stat{}
	var fill func(dir string, depth int)
	fill = func(dir string, depth int) {
		for _, name := range []string{"a", "a-", "a.b", "b", "é"} {
			p := path.Join(dir, name)
			switch r.IntN(4) {
			case 0:
				t[p] = &types.Stat{Path: p, Mode: 0o644, Size: int64(r.IntN(2))}
			case 1:
				t[p] = &types.Stat{Path: p, Mode: uint32(fs.ModeDir | 0o755), ModTime: int64(r.IntN(2))}
				if depth < 3 {
					fill(p, depth+1)
				}
			}
		}
	}
	fill("", 0)
	return t
}

// ordered returns the entries of a tree as a walk does.
func ordered(t map[string]*types.Stat) []*types.Stat {
	byName := func(p string) string { return strings.ReplaceAll(p, "/", "\x00") }
	return slices.SortedFunc(maps.Values(t), func(a, b *types.Stat) int { return strings.Compare(byName(a.Path), byName(b.Path)) })
}

// TestChangesMakeOneTreeOfAnother applies what a comparison tells as the daemon does.
func TestChangesMakeOneTreeOfAnother(t *testing.T) {
	for n := range uint64(500) {
		r := rand.New(rand.NewPCG(n, n))
		from, to := randomTree(r), randomTree(r)
		base, _, err := list(t.Context(), &changes{entries: ordered(from)}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		now, diff, err := list(t.Context(), &changes{entries: ordered(to)}, base, nil)
		if err != nil || diff.tooMany {
			t.Fatal(err, diff)
		}
		same := maps.EqualFunc(from, to, func(a, b *types.Stat) bool { return statusSum(a) == statusSum(b) })
		if none := len(diff.entries)+len(diff.removed) == 0; same != none || same != (now.sum == base.sum) {
			t.Fatalf("seed %d: trees are the same: %t, %d changes, sums %d and %d", n, same, len(diff.entries), base.sum, now.sum)
		}
		got := maps.Clone(from)
		removeAll := func(p string) {
			maps.DeleteFunc(got, func(q string, _ *types.Stat) bool { return q == p || strings.HasPrefix(q, p+"/") })
		}
		for _, p := range diff.removed {
			removeAll(p)
		}
		for _, st := range diff.entries {
			dir := fs.FileMode(st.Mode).IsDir()
			if old := got[st.Path]; old != nil && !(dir && fs.FileMode(old.Mode).IsDir()) {
				removeAll(st.Path)
			}
			if in := parent(st.Path); in != "" && (got[in] == nil || !fs.FileMode(got[in].Mode).IsDir()) {
				t.Fatalf("seed %d: %s comes before its directory", n, st.Path)
			}
			got[st.Path] = st
		}
		if !maps.EqualFunc(got, to, func(a, b *types.Stat) bool { return statusSum(a) == statusSum(b) }) {
			t.Fatalf("seed %d: got %v, want %v", n, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(to)))
		}
	}
}

func TestTooManyChangesAreATreeOfItsOwn(t *testing.T) {
	tree := func(n int, size int64, link string) *changes {
		c := &changes{}
		for i := range n {
			c.entries = append(c.entries, &types.Stat{Path: fmt.Sprintf("f%06d", i), Mode: 0o644, Size: size, Linkname: link})
		}
		return c
	}
	for name, c := range map[string]struct {
		from, to *changes
		want     bool
	}{
		"few":             {tree(1000, 1, ""), tree(1200, 1, ""), false},
		"files":           {tree(1000, 1, ""), tree(1300, 1, ""), true},
		"bytes":           {tree(1, 1, ""), tree(10, 1<<20, ""), true},
		"removals":        {tree(maxRemoved+1, 1, ""), tree(0, 1, ""), true},
		"hard links":      {tree(1, 1, ""), tree(2, 1, "f"), true},
		"hard links gone": {tree(2, 1, "f"), tree(1, 1, ""), true},
	} {
		base, _, err := list(t.Context(), c.from, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, diff, err := list(t.Context(), c.to, base, nil); err != nil || diff.tooMany != c.want {
			t.Errorf("%s: too many: %t, %v, want %t", name, diff.tooMany, err, c.want)
		}
	}
}

func TestChangesAreWalkedAsTheCallerSays(t *testing.T) {
	c := &changes{}
	for _, p := range []string{"a/", "a/1", "a/2", "b/", "b/c/", "b/c/1", "b/d", "e"} {
		st := &types.Stat{Path: strings.TrimSuffix(p, "/"), Mode: 0o644}
		if st.Path != p {
			st.Mode = uint32(fs.ModeDir | 0o755)
		}
		c.entries = append(c.entries, st)
	}
	for skip, want := range map[string]string{"": "a a/1 a/2 b b/c b/c/1 b/d e", "b/c": "a a/1 a/2 b b/c b/d e", "a/1": "a a/1 b b/c b/c/1 b/d e", "e": "a a/1 a/2 b b/c b/c/1 b/d e"} {
		var got []string
		err := c.Walk(t.Context(), "", func(p string, _ fs.DirEntry, _ error) error {
			got = append(got, p)
			if p == skip {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("walk that skips %q: %q, %v, want %s", skip, got, err, want)
		}
	}
	mine := errors.New("mine")
	if err := c.Walk(t.Context(), "", func(string, fs.DirEntry, error) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("walk = %v, want the callback's error", err)
	}
}

// TestSeedsAreBounded fills the memory of sources and looks who was forgotten.
func TestSeedsAreBounded(t *testing.T) {
	var s seeds
	base := func(entries int) *seedBase { return &seedBase{listing: &listing{entries: make([]listed, entries)}} }
	s.put("a", base(maxSeedEntries/2-1))
	s.put("b", base(maxSeedEntries/4))
	s.find("a")
	s.put("c", base(maxSeedEntries/4))
	if s.find("a") == nil || s.find("b") != nil || s.find("c") == nil {
		t.Error("what was used longest ago was not forgotten first")
	}
	if s.put("d", base(maxSeedEntries+1)); s.find("d") != nil || s.find("c") == nil {
		t.Error("a source that is too large was remembered")
	}
	held := s.find("c")
	for i := range maxVersions + 1 {
		s.derive("c", held.listing, seedVersion{sum: uint64(i + 1)})
	}
	now := s.find("c")
	_, first := now.version(&listing{sum: 1})
	_, last := now.version(&listing{sum: maxVersions + 1})
	if len(held.versions) != 0 || len(now.versions) != maxVersions || first || !last {
		t.Errorf("%d versions, the first %t, the last %t", len(now.versions), first, last)
	}
	if s.forget(""); s.entries != 0 || s.find("a") != nil {
		t.Error("something was not forgotten")
	}
}
