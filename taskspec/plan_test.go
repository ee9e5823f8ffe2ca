package taskspec

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// planOf returns the plan of a document that has no mistakes.
func planOf(t *testing.T, src string, bases map[string][]PlanBase) *Plan {
	t.Helper()
	opt := testOptions()
	task, _, err := Parse([]byte(src), opt)
	if err != nil {
		t.Fatal(err)
	}
	return NewPlan(task, PlanOptions{Run: opt.Run, Bases: bases})
}

func TestPlanOfCacheFlags(t *testing.T) {
	for _, tc := range []struct{ build, registry, name, want string }{
		{"-t r.example.com/a/b:1 .", "kiln.example.com", "", "r.example.com/a/b:cache_quickrun_x"},
		{"-t a -t r.example.com/b:1 -t s.example.com/c .", "kiln.example.com", "nightly", "r.example.com/b:cache_nightly_x"},
		{"-t a -t b .", "kiln.example.com", "", "kiln.example.com/a:cache_quickrun_x"},
		{"-t localhost:5000/a .", "kiln.example.com", "", "localhost:5000/a:cache_quickrun_x"},
		{"-t a .", "", "", ""},
		{".", "kiln.example.com", "", ""},
	} {
		task, _, err := Parse([]byte("steps:\n- id: x\n  cache: ENABLED\n  build: "+tc.build+"\n"), testOptions())
		if err != nil {
			t.Fatal(err)
		}
		plan := NewPlan(task, PlanOptions{Run: RunVars{Registry: tc.registry, TaskName: tc.name}})
		want := ""
		if tc.want != "" {
			want = "--load --cache-to=type=registry,ref=" + tc.want + ",mode=max --cache-from=type=registry,ref=" + tc.want
		}
		if got := strings.Join(plan.Steps[0].CacheFlags, " "); got != want {
			t.Errorf("cache flags of %q = %q, want %q", tc.build, got, want)
		}
	}
	if plan := planOf(t, "steps:\n- build: -t a .\n  cache: disabled\n- build: -t b .\n", nil); plan.Steps[0].CacheFlags != nil || plan.Steps[1].CacheFlags != nil {
		t.Error("a build without cache: enabled has cache flags")
	}
}

func TestPlanOfNetworks(t *testing.T) {
	for _, tc := range []struct{ src, want string }{
		{"steps:\n- cmd: a\n", "acb_default_network"},
		{"networks: [{name: n}]\nsteps:\n- cmd: a\n", ""},
		{"networks: [{name: n, isDefault: true}, {name: m, isDefault: true}]\nsteps:\n- cmd: a\n", "m"},
		{"steps:\n- cmd: a\n  network: host\n", "host"},
		{"networks: [{name: n, isDefault: true}]\nsteps:\n- cmd: a\n  network: bridge\n", "bridge"},
		{"steps:\n- push: [a]\n", ""},
	} {
		if got := planOf(t, tc.src, nil).Steps[0].Network; got != tc.want {
			t.Errorf("network of %q = %q, want %q", tc.src, got, tc.want)
		}
	}
}

func TestPlanKnowsWhichImagesTheRunBuilds(t *testing.T) {
	plan := planOf(t, `steps:
- {id: a, build: -t a ., when: ["-"]}
- {id: b, build: -t docker.io/library/b:1 ., when: ["-"]}
- {id: base, build: -t c ., when: [a]}
- {id: run, cmd: "docker.io/library/a:latest", when: [base]}
- {id: race, cmd: "b:1", when: [a]}
- {id: pull, cmd: alpine}
- {id: again, cmd: "alpine:latest"}
`, map[string][]PlanBase{"base": {
		{Ref: "docker.io/library/a:latest", Written: "a", Use: "FROM", Runtime: true},
		{Ref: "docker.io/library/golang:1", Written: "golang:1", Use: "FROM"},
		{Written: "$X", Use: "FROM", Unresolved: "no value for X"},
	}})
	want := PlanImages{
		Built: []string{"a:latest", "docker.io/library/b:1", "c:latest"}, Pushed: []string{},
		Pulled: []string{"docker.io/library/b:1", "docker.io/library/alpine:latest"}, Bases: []string{"docker.io/library/golang:1"},
	}
	if diff := cmp.Diff(want, plan.Images); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
	if got := plan.Steps[2].Bases[0].Step; got != "a" {
		t.Errorf("the base is built by %q, want a", got)
	}
}

func TestPlanOfStepWithEverything(t *testing.T) {
	plan := planOf(t, `volumes: [{name: v, secret: {b: YQ==, a: YQ==}}]
env: [T=1]
steps:
- id: x
  cmd: --rm img 'a b'
  when: ["-"]
  timeout: 20
  startDelay: 1
  retries: 2
  retryOnErrors: [e]
  repeat: 1
  ignoreErrors: true
  disableWorkingDirectoryOverride: true
  env: [S=1]
  user: u
  isolation: default
  cpus: 2
  expose: [80]
  ports: ["1:2"]
  privileged: true
  keep: true
  detach: true
  pull: true
  entryPoint: e
  volumeMounts: [{name: v, mountPath: /v}]
`, nil)
	want := PlanStep{
		ID: "x", Kind: KindCmd, Line: 4, Stage: 1, After: []string{}, Image: "img", Argv: []string{"a b"}, Entrypoint: []string{"e"},
		Flags: []string{"--rm"}, Builds: []string{}, Pushes: []string{}, Pulls: []string{"docker.io/library/img:latest"}, Bases: []PlanBase{},
		Env: []string{"HOME=/acb/home", "S=1", "T=1"}, Network: "acb_default_network", Mounts: []PlanMount{{"v", "/v"}}, Timeout: 20,
		StartDelay: 1, Retries: 2, RetryDelay: 5, RetryOnErrors: []string{"e"}, Repeat: 1, IgnoreErrors: true, User: "u",
		Privileged: true, Detach: true, Keep: true, Pull: true, Ports: []string{"1:2"}, Expose: []string{"80"}, CPUs: "2", Isolation: "default",
	}
	if diff := cmp.Diff(want, plan.Steps[0]); diff != "" {
		t.Errorf("step (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]PlanVolume{{"v", []string{"a", "b"}}}, plan.Volumes); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
}

func TestPlanHasNoNulls(t *testing.T) {
	for _, src := range []string{"steps: []\n", "steps:\n- cmd: a\n- build: .\n- push: [a]\n", "volumes: [{name: v, secret: {a: YQ==}}]\n"} {
		data, err := json.Marshal(planOf(t, src, nil))
		if err != nil || strings.Contains(string(data), "null") {
			t.Errorf("plan of %q = %s, %v", src, data, err)
		}
	}
}

func BenchmarkPlanTenSteps(b *testing.B) {
	opt := testOptions()
	b.ReportAllocs()
	for b.Loop() {
		task, _, err := Parse([]byte(tenSteps), opt)
		if err != nil {
			b.Fatal(err)
		}
		NewPlan(task, PlanOptions{Run: opt.Run})
	}
}

func BenchmarkPlanThousandSteps(b *testing.B) {
	src, opt := []byte(manySteps(1000)), testOptions()
	b.ReportAllocs()
	for b.Loop() {
		task, _, err := Parse(src, opt)
		if err != nil {
			b.Fatal(err)
		}
		NewPlan(task, PlanOptions{Run: opt.Run})
	}
}

// TestPlanOfManyBuildsIsQuick plans a chain in which every other step runs what the one above builds.
func TestPlanOfManyBuildsIsQuick(t *testing.T) {
	task := &Task{}
	for i := range maxSteps {
		s := &Step{ID: strings.Repeat("x", i+1), Kind: KindBuild, Build: &Build{Tags: []string{"a"}}}
		if i > 0 {
			s.After = []string{task.Steps[i-1].ID}
			s.Kind, s.Build, s.Cmd = KindCmd, nil, &Cmd{Image: "a"}
		}
		task.Steps = append(task.Steps, s)
	}
	start := time.Now()
	if plan := NewPlan(task, PlanOptions{}); len(plan.Images.Pulled) > 0 || plan.Steps[maxSteps-1].Stage != maxSteps {
		t.Errorf("images = %+v", plan.Images)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("planning takes %v", d)
	}
}
