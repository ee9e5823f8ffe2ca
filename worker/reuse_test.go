package worker

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/run"
	"kiln/internal/solve"
)

// known is a source whose content has a name.
type known struct {
	*files
	identity string
}

func (k known) Identity() string { return k.identity }

// change gives a field of any type a value that it does not have.
func change(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *string:
		*x += "x"
	case *bool:
		*x = !*x
	case *[]byte:
		*x = []byte{}
	case *[]string:
		*x = append(*x, "x")
	case *map[string]string:
		*x = map[string]string{"x": ""}
	case *time.Time:
		*x = x.Add(time.Second)
	case *int64:
		*x++
	case *solve.Network:
		*x = solve.NetworkNone
	case **solve.Tree:
		*x = &solve.Tree{}
	case *map[string]solve.Context:
		*x = map[string]solve.Context{"x": {}}
	case *map[string]solve.Secret:
		*x = map[string]solve.Secret{"x": {}}
	case *[]solve.Cache:
		*x = []solve.Cache{{}}
	default:
		t.Fatalf("field %s has the new type %s: hash it in keyOf or take it into selfContained, and change it here", name, v.Type())
	}
}

// TestEveryFieldOfABuildIsInItsKey fails for a field that is added to solve.Build and forgotten in keyOf and
// selfContained.
func TestEveryFieldOfABuildIsInItsKey(t *testing.T) {
	t.Parallel()
	free := []string{"Step"} // the name of the step changes nothing in the image
	want := keyOf(solve.Build{}, "", "", "")
	seen := map[buildKey]string{want: "no change"}
	for i := range reflect.TypeFor[solve.Build]().NumField() {
		var b solve.Build
		name := reflect.TypeFor[solve.Build]().Field(i).Name
		change(t, name, reflect.ValueOf(&b).Elem().Field(i))
		got := keyOf(b, "", "", "")
		if !selfContained(b) {
			continue // it is never reused
		}
		if slices.Contains(free, name) {
			if got != want {
				t.Errorf("%s changes the key", name)
			}
			continue
		}
		if other, ok := seen[got]; ok {
			t.Errorf("a change of %s has the key of %s", name, other)
		}
		seen[got] = name
	}
	for i, got := range []buildKey{keyOf(solve.Build{}, "x", "", ""), keyOf(solve.Build{}, "", "x", ""), keyOf(solve.Build{}, "", "", "x")} {
		if other, ok := seen[got]; ok {
			t.Errorf("argument %d of keyOf: the key is that of %s", i+1, other)
		}
		seen[got] = fmt.Sprint("argument ", i+1)
	}
}

// TestSessionsAddNothingToABuild fails for a field that is added to solve.SessionConfig: say here why it
// does not change what is built, or take it into keyOf or repeatable.
func TestSessionsAddNothingToABuild(t *testing.T) {
	t.Parallel()
	accounted := map[string]string{
		"Run": "names the containers' host", "Attempt": "for messages", "Fetch": "what was fetched by URL is not reused", "Source": "its identity is in the key",
		"SourceKey": "what is transferred", "Registry": "the worker's own", "RegistryAt": "how the registry is reached", "Aliases": "the worker's own", "Insecure": "how the registry is spoken to",
		"Credentials": "of a task, whose name is in the key; not repeatable with any else", "CacheScope": "in the key", "OwnFrontend": "of strangers' pull requests, whose scope is in the key",
		"Images": "of restricted runs, which are not repeatable",
	}
	for f := range reflect.TypeFor[solve.SessionConfig]().Fields() {
		if accounted[f.Name] == "" {
			t.Errorf("field %s of solve.SessionConfig is not accounted for", f.Name)
		}
	}
}

func TestKeysDoNotCollide(t *testing.T) {
	t.Parallel()
	seen := map[buildKey]int{}
	for i, b := range []solve.Build{
		{}, {Platforms: []string{"a"}}, {AddHosts: []string{"a"}}, {BuildArgs: map[string]string{"a": ""}}, {Labels: map[string]string{"a": ""}},
		{BuildArgs: map[string]string{"a": "b"}}, {BuildArgs: map[string]string{"ab": ""}}, {BuildArgs: map[string]string{"a": "", "b": ""}},
		{BuildArgs: map[string]string{"a": "\xff"}}, {BuildArgs: map[string]string{"a": "\xfe"}}, {Context: "ab"}, {Dockerfile: "a", Context: "b"},
		{Platforms: []string{"a", "b"}}, {Platforms: []string{"ab"}}, {Platforms: []string{"a"}, AddHosts: []string{"b"}},
	} {
		if other, ok := seen[keyOf(b, "", "", "")]; ok {
			t.Errorf("builds %d and %d have one key", i, other)
		}
		seen[keyOf(b, "", "", "")] = i
	}
}

func TestBuildsForgetWhatWasNotUsedForLongest(t *testing.T) {
	t.Parallel()
	key := func(n int) buildKey { return keyOf(solve.Build{Context: fmt.Sprint(n)}, "", "", "") }
	var m builds
	for n := range maxBuilds {
		m.remember(finishedBuild{key: key(n), run: fmt.Sprint(n)})
	}
	if f, ok := m.recall(key(0)); !ok || f.run != "0" {
		t.Fatalf("the first of %d builds is %+v, %t", maxBuilds, f, ok)
	}
	m.remember(finishedBuild{key: key(2), run: "again"})
	m.remember(finishedBuild{key: key(maxBuilds), run: "last"})
	for n, want := range map[int]string{0: "0", 1: "", 2: "again", 3: "3", maxBuilds: "last"} {
		if f, _ := m.recall(key(n)); f.run != want {
			t.Errorf("build %d was made by run %q, want %q", n, f.run, want)
		}
	}
	if m.recent.Len() != maxBuilds || len(m.byKey) != maxBuilds {
		t.Errorf("%d builds with %d keys are remembered, want %d", m.recent.Len(), len(m.byKey), maxBuilds)
	}
}

// TestUnchangedBuildsAreReused executes one build in two runs and counts the solves.
func TestUnchangedBuildsAreReused(t *testing.T) {
	t.Parallel()
	const foreign = "docker.io/library/node:22"
	type c struct {
		spec    func(*run.BuildSpec)
		source  Source
		secrets map[string]string
		built   func(g *rig, b *solve.Built)
		between func(t *testing.T, g *rig, b solve.Build, built solve.Built)
		solves  int
	}
	for name, c := range map[string]c{
		"unchanged":      {solves: 1},
		"no cache":       {spec: func(b *run.BuildSpec) { b.NoCache = true }, solves: 2},
		"unnamed source": {source: &files{key: "dir"}, solves: 2},
		"no identity":    {source: known{&files{key: "dir"}, ""}, solves: 2},
		"with secrets":   {secrets: map[string]string{"npm": "hunter22"}, solves: 2},
		"other sources":  {built: func(_ *rig, b *solve.Built) { b.Closed = false }, solves: 2},
		"foreign tag":    {built: func(_ *rig, b *solve.Built) { b.Tagged = []string{foreign} }, solves: 2},
		"unresolved tag": {built: func(g *rig, b *solve.Built) { b.Tagged = []string{g.reg.Host + "/x:1"} }, solves: 2},
		"too many bases": {built: func(_ *rig, b *solve.Built) { b.Bases = make([]run.Base, maxBases+1) }, solves: 2},
		"staged image gone": {between: func(t *testing.T, g *rig, b solve.Build, built solve.Built) {
			if err := g.reg.Store.DeleteManifest(t.Context(), strings.TrimPrefix(b.Staging, g.reg.Host+"/"), built.Digest); err != nil {
				t.Fatal(err)
			}
		}, solves: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &script{}
			g := newRig(t, s)
			g.w.Resolver = Direct{g.reg.Store}
			if c.source == nil {
				c.source = known{&files{key: "dir"}, "tree"}
			}
			g.w.Open = func(context.Context, OpenRequest) (Source, error) { return c.source, nil }
			var last solve.Built
			s.build = func(ctx context.Context, b solve.Build, _ solve.LogFunc) (solve.Built, error) {
				built, err := g.stage(ctx, b)
				built.Closed = true
				if c.built != nil {
					c.built(g, &built)
				}
				last = built
				return built, err
			}
			spec := run.BuildSpec{Images: []string{"team/app"}, NoPush: true}
			if c.spec != nil {
				c.spec(&spec)
			}
			digests := map[string]bool{}
			for _, id := range []string{"r100000000001", "r100000000002"} {
				r := buildRun(spec)
				r.ID, r.Spec.Context = id, "context://x"
				rep := final(g.execute(t, g.assign(t, r, c.secrets)))
				if rep == nil || rep.Final != run.Succeeded || rep.Steps[0].Output == nil || len(rep.Bases) == 0 || rep.Bases[0].Step != "build" {
					t.Fatalf("final report = %+v", rep)
				}
				digests[rep.Steps[0].Output.Digest] = true
				if c.between != nil && id == "r100000000001" {
					c.between(t, g, s.builds[0], last)
				}
			}
			if len(s.builds) != c.solves || len(digests) != 1 {
				t.Errorf("%d solves and %d digests, want %d and 1", len(s.builds), len(digests), c.solves)
			}
			if said := strings.Contains(g.log(t, "r100000000002"), "nothing has changed since run r100000000001"); said != (c.solves == 1) {
				t.Errorf("log of the second run:\n%s", g.log(t, "r100000000002"))
			}
		})
	}
}
