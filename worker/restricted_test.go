package worker

import (
	"slices"
	"testing"

	"kiln/internal/run"
	"kiln/internal/solve"
)

func TestRestrictedRunsReadWhatTheyArePinnedTo(t *testing.T) {
	t.Parallel()
	const staged = "reg.test:5000/kiln/staging/app@" + someDigest
	a := &attempt{run: run.Run{Spec: run.Spec{Restricted: true, Context: "oci://localhost:5000/team/source:1", Pins: map[string]string{
		"reg.test:5000/team/base:1": someDigest, "docker.io/library/node:22": someDigest}}}}
	a.images = &images{registry: "reg.test:5000", aliases: []string{"localhost:5000"}, built: map[string]builtImage{}}
	a.images.add(run.Output{Ref: staged, Digest: someDigest, Tags: []string{"reg.test:5000/team/app:1"}}, "build")
	for ref, want := range map[string]bool{
		"docker.io/library/alpine:3":                     true,
		"other.test/team/private:1":                      true,
		"reg.test:5000/team/base:1":                      true,
		"reg.test:5000/team/base:1@" + someDigest:        true,
		"localhost:5000/team/base:1":                     true,
		staged:                                           true,
		"reg.test:5000/kiln/staging/other@" + someDigest: false,
		"reg.test:5000/team/source:1":                    false,
		"reg.test:5000/team/private:1":                   false,
		"localhost:5000/team/private@" + someDigest:      false,
		"reg.test:5000/library/node:22":                  false,
		"reg.test:5000/team/base/../private:1":           false,
	} {
		if got := a.mayUse(ref); got != want {
			t.Errorf("mayUse(%s) = %t, want %t", ref, got, want)
		}
	}
	want := []string{"kiln/staging/*", "team/base", "team/source"}
	if got := Readable(a.run.Spec, "reg.test:5000", "localhost:5000"); !slices.Equal(got, want) {
		t.Errorf("Readable = %v, want %v", got, want)
	}
	a.w, a.identity = &Worker{Resolver: Direct{}}, "x"
	if a.repeatable(solve.Build{}) {
		t.Error("a restricted run may take over a build of another run")
	}
	if a.run.Spec.Restricted = false; !a.repeatable(solve.Build{}) {
		t.Error("a build that is not restricted is not repeatable")
	}
}
