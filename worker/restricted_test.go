package worker

import (
	"errors"
	"slices"
	"testing"

	"kiln/internal/registry"
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

func TestRunsOfALimitedAuthorUseWhatItMay(t *testing.T) {
	t.Parallel()
	l := &run.Limits{By: "token web", Pull: []string{"web/*", "base"}, Push: []string{"web/*"}, Secrets: []string{"web-*"}}
	a := &attempt{run: run.Run{Spec: run.Spec{Limits: l}}}
	a.images = &images{registry: "reg.test:5000", aliases: []string{"localhost:5000"}, built: map[string]builtImage{}}
	for ref, want := range map[string]bool{
		"docker.io/library/alpine:3": true, "reg.test:5000/web/app:1": true, "localhost:5000/base:1": true,
		"reg.test:5000/db/app:1": false, "localhost:5000/db/app:1": false, "reg.test:5000/webs:1": false, "reg.test:5000/base/x:1": false,
		"reg.test:5000/kiln/staging/other@" + someDigest: false,
	} {
		if got := a.mayUse(ref); got != want {
			t.Errorf("mayUse(%s) = %t, want %t", ref, got, want)
		}
	}
	a.w, a.identity = &Worker{Resolver: Direct{}}, "x"
	if a.repeatable(solve.Build{}) {
		t.Error("the run may take over a build of somebody who may read more")
	}
	for repository, want := range map[string]bool{"web/app": true, "web": false, "db/app": false, "base": false} {
		if err := CheckTags(l, []registry.Tag{{Repository: "web/x", Tag: "1", Source: StagingRoot + "a"}, {Repository: repository, Tag: "1", Source: "base"}}); (err == nil) != want || err != nil && !errors.Is(err, run.ErrLimit) {
			t.Errorf("publication in %s: %v", repository, err)
		}
	}
	if err := CheckTags(l, []registry.Tag{{Repository: "web/x", Tag: "1", Source: "db/app"}}); !errors.Is(err, run.ErrLimit) {
		t.Errorf("publication of an image that may not be read: %v", err)
	}
	for location, want := range map[string]bool{"https://v.test/secrets/web-key": true, "https://v.test/secrets/web-key/1": true,
		"https://v.test/secrets/db-key": false, "https://v.test/secrets/db-key/web-key": false, "https://v.test/": false} {
		if err := limitVault(l, location); (err == nil) != want {
			t.Errorf("secret %s: %v", location, err)
		}
	}
}
