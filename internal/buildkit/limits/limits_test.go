package limits_test

import (
	"reflect"
	"slices"
	"testing"

	"kiln/internal/buildkit/limits"
)

func TestLimitsTravelInTheEnvironmentAndLeaveIt(t *testing.T) {
	env := []string{"A=1", "B=2"}
	sent := limits.Put(env, limits.Limits{CPUs: 0.5, Memory: 64 << 20})
	got, rest := limits.Take(sent)
	if got != (limits.Taken{Quota: 50_000, Memory: 64 << 20}) || !slices.Equal(rest, env) {
		t.Errorf("taken %+v, left %q", got, rest)
	}
}

func TestStepCannotSetItsOwnLimits(t *testing.T) {
	forged := limits.Put(nil, limits.Limits{Memory: 1 << 40})
	sent := limits.Put(append(forged, "A=1"), limits.Limits{Memory: 1 << 20})
	if got, rest := limits.Take(sent); got.Memory != 1<<20 || !slices.Equal(rest, []string{"A=1"}) {
		t.Errorf("taken %+v, left %q", got, rest)
	}
	if got := limits.Put(forged, limits.Limits{}); len(got) != 0 {
		t.Errorf("the forged variable is sent: %q", got)
	}
}

func TestOptionsTravelInTheEnvironmentAndLeaveIt(t *testing.T) {
	want := limits.Options{ReadOnly: true, Hostname: "h", Tmpfs: map[string][]string{"/t": {"size=1"}}, Capabilities: []string{}, Ulimits: []limits.Ulimit{{Name: "core", Soft: -1, Hard: -1}}}
	sent := limits.PutOptions([]string{"A=1"}, want)
	got, rest := limits.TakeOptions(sent)
	if !reflect.DeepEqual(got, want) || !slices.Equal(rest, []string{"A=1"}) || len(sent) != 2 {
		t.Errorf("taken %+v, left %q", got, rest)
	}
	if got, rest := limits.TakeOptions(limits.PutOptions(sent, limits.Options{})); got.Names() != nil || !slices.Equal(rest, []string{"A=1"}) {
		t.Errorf("of a forged variable: %+v, left %q", got, rest)
	}
	if got, rest := limits.TakeOptions([]string{"KILN_CONTAINER_OPTIONS={", "KILN_CONTAINER_OPTIONS={\"pids\":true}"}); got.Names() != nil || len(rest) != 0 {
		t.Errorf("of what cannot be read: %+v, left %q", got, rest)
	}
}
