package limits_test

import (
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
