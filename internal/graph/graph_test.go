package graph_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kiln/internal/graph"
)

func TestCanonicalNames(t *testing.T) {
	t.Parallel()
	aliases := graph.Aliases{"server:7070": "localhost:7070", "mirror.example": "other.example", "mirror.example/hub": "docker.io/"}
	digest := "sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]graph.Name{
		"node":                                 "docker.io/library/node:latest",
		"node:22":                              "docker.io/library/node:22",
		"docker.io/node:22":                    "docker.io/library/node:22",
		"docker.io/library/node:22":            "docker.io/library/node:22",
		"index.docker.io/library/node:22":      "docker.io/library/node:22",
		"registry-1.docker.io/library/node:22": "docker.io/library/node:22",
		"grafana/grafana":                      "docker.io/grafana/grafana:latest",
		"server:7070/team/base:1":              "localhost:7070/team/base:1",
		"localhost:7070/team/base:1":           "localhost:7070/team/base:1",
		"mirror.example/hub/library/node:22":   "docker.io/library/node:22",
		"mirror.example/hubble:1":              "other.example/hubble:1",
		"node@" + digest:                       graph.Name("docker.io/library/node@" + digest),
		"node:22@" + digest:                    graph.Name("docker.io/library/node:22@" + digest),
	} {
		got, err := graph.Canonical(ref, aliases)
		if err != nil || got != want {
			t.Errorf("Canonical(%q) = %q, %v, want %q", ref, got, err, want)
		}
	}
	for _, bad := range []string{"", "Node", "a b", "x:{{.Run.ID}}", strings.Repeat("a", 600)} {
		if got, err := graph.Canonical(bad, nil); err == nil {
			t.Errorf("Canonical(%q) = %q, want an error", bad, got)
		}
	}
	if got := graph.Name("localhost:7070/a/b:1@" + digest).Repository(); got != "localhost:7070/a/b" {
		t.Errorf("Repository = %q", got)
	}
}

// simple returns a graph of tasks that build an image of their own name from others' images.
func simple(bases map[string][]string) *graph.Graph {
	g := &graph.Graph{}
	for id, from := range bases {
		t := graph.Task{ID: id, Builds: []graph.Name{graph.Name(id)}, Follow: graph.FollowRuntime}
		for _, b := range from {
			t.Bases = append(t.Bases, graph.Edge{Base: graph.Name(b), Kind: graph.Runtime})
		}
		g.Set(t)
	}
	return g
}

func TestADiamondIsBuiltOnceAndInOrder(t *testing.T) {
	t.Parallel()
	g := simple(map[string][]string{"a": {"os"}, "b": {"a"}, "c": {"a", "b"}, "d": {"c", "b"}, "other": {"x"}})
	want := graph.Wave{Tasks: []graph.Member{
		{ID: "a", Level: 0, Moved: []graph.Name{"os"}},
		{ID: "b", Level: 1, Parents: []string{"a"}},
		{ID: "c", Level: 2, Parents: []string{"a", "b"}},
		{ID: "d", Level: 3, Parents: []string{"b", "c"}},
	}}
	if diff := cmp.Diff(want, g.Affected("os")); diff != "" {
		t.Errorf("wave (-want +got):\n%s", diff)
	}
}

func TestCirclesAreRefusedAndNamed(t *testing.T) {
	t.Parallel()
	g := simple(map[string][]string{"a": {"os", "c"}, "b": {"a"}, "c": {"b"}, "d": {"b"}, "self": {"self", "os"}})
	got := g.Affected("os")
	want := graph.Wave{
		Tasks: []graph.Member{{ID: "a", Moved: []graph.Name{"os"}}, {ID: "self", Moved: []graph.Name{"os"}}},
		Refused: []graph.Refusal{
			{ID: "b", Base: "a", Cycle: []string{"b", "a", "c"}},
			{ID: "self", Base: "self", Cycle: []string{"self"}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("wave (-want +got):\n%s", diff)
	}
	if w := g.Affected("b"); len(w.Tasks) != 1 || w.Tasks[0].ID != "d" || len(w.Refused) != 1 {
		t.Errorf("after a push of an image inside the circle: %+v, want d alone and c refused", w)
	}
	if why := got.Refused[0].Why(); why != "tasks build on each other in a circle: b <- a <- c <- b" {
		t.Errorf("Why = %q", why)
	}
	if why := got.Refused[1].Why(); !strings.Contains(why, "its own image") {
		t.Errorf("Why = %q", why)
	}
}

func TestOnlyFollowedBasesCount(t *testing.T) {
	t.Parallel()
	g := &graph.Graph{}
	pinned := graph.Name("p@sha256:" + strings.Repeat("a", 64))
	bases := []graph.Edge{{Base: "r", Kind: graph.Runtime}, {Base: "b", Kind: graph.Buildtime}, {Base: pinned, Kind: graph.Runtime}}
	g.Set(graph.Task{ID: "none", Bases: bases})
	g.Set(graph.Task{ID: "runtime", Bases: bases, Follow: graph.FollowRuntime})
	g.Set(graph.Task{ID: "all", Bases: bases, Follow: graph.FollowAll})
	for image, want := range map[graph.Name][]string{"r": {"all", "runtime"}, "b": {"all"}, pinned: nil, "x": nil} {
		var got []string
		for _, m := range g.Affected(image).Tasks {
			got = append(got, m.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("Affected(%s) = %v, want %v", image, got, want)
		}
	}
	if got := g.Images(); !slices.Equal(got, []graph.Name{"b", "r"}) {
		t.Errorf("Images = %v", got)
	}
	g.Remove("all")
	g.Remove("all")
	if got := g.Users("b"); !slices.Equal(got, []string{"none", "runtime"}) {
		t.Errorf("Users = %v", got)
	}
}

// random returns a graph of n tasks with a few bases each; with up it has no circles.
func random(r *rand.Rand, n int, acyclic bool) map[string][]string {
	bases := map[string][]string{}
	for i := range n {
		id, limit := fmt.Sprintf("t%02d", i), n
		if acyclic {
			limit = i
		}
		bases[id] = nil
		if r.IntN(3) == 0 {
			bases[id] = append(bases[id], "os")
		}
		for range r.IntN(3) {
			if limit > 0 {
				bases[id] = append(bases[id], fmt.Sprintf("t%02d", r.IntN(limit)))
			}
		}
	}
	return bases
}

// reaches reports whether the image of one task leads to another task, by its definition.
func reaches(bases map[string][]string, from, to string, seen map[string]bool) bool {
	for id, b := range bases {
		if slices.Contains(b, from) && (id == to || !seen[id]) {
			if seen[id] = true; id == to || reaches(bases, id, to, seen) {
				return true
			}
		}
	}
	return false
}

func TestWavesAgreeWithTheirDefinition(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 300 {
		bases := random(r, 1+r.IntN(12), round%2 == 0)
		g := simple(bases)
		// An edge counts unless its task leads back to the base's builder.
		inCircle := func(id, base string) bool {
			_, task := bases[base]
			return task && (id == base || reaches(bases, id, base, map[string]bool{}))
		}
		due := map[string]bool{}
		for again := true; again; {
			again = false
			for id, from := range bases {
				for _, b := range from {
					if !due[id] && (b == "os" || due[b]) && !inCircle(id, b) {
						due[id], again = true, true
					}
				}
			}
		}
		wave := g.Affected("os")
		checkWave(t, bases, wave, due)
		for id, from := range bases {
			for _, b := range from {
				if cycle := g.Cycle(id, graph.Name(b)); (len(cycle) > 0) != inCircle(id, b) {
					t.Fatalf("%v: Cycle(%s, %s) = %v, want one: %v", bases, id, b, cycle, inCircle(id, b))
				} else {
					checkCycle(t, bases, cycle, id)
				}
			}
		}
		for _, ref := range wave.Refused {
			if !inCircle(ref.ID, string(ref.Base)) || !due[string(ref.Base)] {
				t.Fatalf("%v: %+v is refused for nothing", bases, ref)
			}
			checkCycle(t, bases, ref.Cycle, ref.ID)
		}
	}
}

// checkWave checks that the tasks of a wave are those that are due, each once and after its parents.
func checkWave(t *testing.T, bases map[string][]string, wave graph.Wave, due map[string]bool) {
	t.Helper()
	level := map[string]int{}
	for _, m := range wave.Tasks {
		if _, twice := level[m.ID]; twice || !due[m.ID] {
			t.Fatalf("%v: %s is in the wave twice or without being due", bases, m.ID)
		}
		want := 0
		for _, p := range m.Parents {
			l, placed := level[p]
			if !placed || !slices.Contains(bases[m.ID], p) {
				t.Fatalf("%v: %s comes before its parent %s, or it is none", bases, m.ID, p)
			}
			want = max(want, l+1)
		}
		if m.Level != want {
			t.Fatalf("%v: %s has level %d, want %d", bases, m.ID, m.Level, want)
		}
		level[m.ID] = m.Level
	}
	if len(level) != len(due) {
		t.Fatalf("%v: wave of %v, want %v", bases, level, due)
	}
}

// checkCycle checks that each task of a circle builds on the next.
func checkCycle(t *testing.T, bases map[string][]string, cycle []string, id string) {
	t.Helper()
	for i, task := range cycle {
		if next := cycle[(i+1)%len(cycle)]; !slices.Contains(bases[task], next) || cycle[0] != id {
			t.Fatalf("%v: %v is no circle from %s", bases, cycle, id)
		}
	}
}

func TestALongChainIsOneWave(t *testing.T) {
	t.Parallel()
	g := chain(20_000)
	wave := g.Affected("i0")
	if n := len(wave.Tasks); n != 20_000 || wave.Tasks[n-1].Level != n-1 {
		t.Errorf("a chain of 20,000 gives %d tasks", n)
	}
}

func chain(n int) *graph.Graph {
	g := &graph.Graph{}
	for i := range n {
		g.Set(graph.Task{ID: fmt.Sprintf("t%d", i), Builds: []graph.Name{graph.Name(fmt.Sprintf("i%d", i+1))},
			Bases: []graph.Edge{{Base: graph.Name(fmt.Sprintf("i%d", i)), Kind: graph.Runtime}}, Follow: graph.FollowAll})
	}
	return g
}

// BenchmarkAffected finds what one base affects among 10,000 tasks: all of them, in five levels.
func BenchmarkAffected(b *testing.B) {
	g := &graph.Graph{}
	for i := range 10_000 {
		base := graph.Name("os")
		if i >= 10 {
			base = graph.Name(fmt.Sprintf("registry.example/team/image-%d:stable", i/10))
		}
		g.Set(graph.Task{ID: fmt.Sprintf("task-%05d", i), Builds: []graph.Name{graph.Name(fmt.Sprintf("registry.example/team/image-%d:stable", i))},
			Bases: []graph.Edge{{Base: base, Kind: graph.Runtime}}, Follow: graph.FollowRuntime})
	}
	for b.Loop() {
		if n := len(g.Affected("os").Tasks); n != 10_000 {
			b.Fatal(n)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"node", "server:7070/a/b:1", "a@sha256:" + strings.Repeat("b", 64), "mirror/hub/x", "UP/x"} {
		f.Add(s)
	}
	aliases := graph.Aliases{"server:7070": "localhost:7070", "mirror": "docker.io"}
	f.Fuzz(func(t *testing.T, ref string) {
		name, err := graph.Canonical(ref, aliases)
		if err != nil {
			return
		}
		if again, err := graph.Canonical(string(name), aliases); err != nil || again != name {
			t.Fatalf("Canonical(%q) = %q, and of that %q, %v", ref, name, again, err)
		}
	})
}
