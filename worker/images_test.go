package worker

import (
	"strings"
	"testing"

	"kiln/internal/run"
)

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func testImages() *images {
	return newImages(&Worker{Registry: "reg.test:5000", Aliases: []string{"localhost:5000", "127.0.0.1:5000"}}, run.Run{})
}

func TestCanonicalReferences(t *testing.T) {
	t.Parallel()
	im := testImages()
	for _, tc := range []struct{ name, want string }{
		{"node", "docker.io/library/node:latest"},
		{"team/app:v1", "docker.io/team/app:v1"},
		{"docker.io/node", "docker.io/library/node:latest"},
		{"index.docker.io/library/node:22", "docker.io/library/node:22"},
		{"reg.test:5000/app", "reg.test:5000/app:latest"},
		{"localhost:5000/app:v1", "reg.test:5000/app:v1"},
		{"127.0.0.1:5000/team/app", "reg.test:5000/team/app:latest"},
		{"localhost:5000/app@" + someDigest, "reg.test:5000/app@" + someDigest},
		{"localhost:6000/app", "localhost:6000/app:latest"},
		{"ghcr.io/o/r@" + someDigest, "ghcr.io/o/r@" + someDigest},
	} {
		ref, err := im.canonical(tc.name)
		if err != nil || ref.String() != tc.want {
			t.Errorf("canonical(%s) = %v, %v, want %s", tc.name, ref, err, tc.want)
		}
	}
	if ref, err := im.canonical("Not A Reference"); err == nil {
		t.Errorf("canonical of a bad name = %v", ref)
	}
}

func TestNamesBuiltInTheRunWin(t *testing.T) {
	t.Parallel()
	im := testImages()
	out := run.Output{Digest: someDigest, Ref: "reg.test:5000/kiln/staging/app@" + someDigest, Tags: []string{"node", "localhost:5000/app:v1"}}
	im.add(out, "b")
	for _, name := range []string{"node", "node:latest", "docker.io/library/node", "reg.test:5000/app:v1", "127.0.0.1:5000/app:v1", "localhost:5000/app:v1"} {
		if b, ok := im.find(name); !ok || b.output.Ref != out.Ref || b.staging != "kiln/staging/app" {
			t.Errorf("find(%s) = %+v, %v", name, b, ok)
		}
	}
	for _, name := range []string{"node:22", "app:v1", "reg.test:5000/app", "localhost:6000/app:v1", "%"} {
		if b, ok := im.find(name); ok {
			t.Errorf("find(%s) = %+v, want none", name, b)
		}
	}
	ctx := im.contexts()
	if len(ctx) != 2 || ctx["docker.io/library/node:latest"] != out.Ref || ctx["reg.test:5000/app:v1"] != out.Ref {
		t.Errorf("contexts() = %v", ctx)
	}
	im.add(run.Output{Digest: someDigest, Ref: strings.Replace(out.Ref, "app@", "two@", 1), Tags: []string{"node"}}, "b")
	if b, _ := im.find("node"); b.staging != "kiln/staging/two" {
		t.Errorf("the later build of a name does not win: %+v", b)
	}
}

func TestImagesOfEarlierAttemptsAreKnown(t *testing.T) {
	t.Parallel()
	out := &run.Output{Digest: someDigest, Ref: "reg.test:5000/kiln/staging/app@" + someDigest, Tags: []string{"app"}}
	r := run.Run{Steps: []run.Step{{ID: "a", State: run.StepSucceeded, Output: out}, {ID: "b", State: run.StepFailed,
		Output: &run.Output{Ref: out.Ref, Tags: []string{"half"}}}, {ID: "c", State: run.StepSucceeded}}}
	im := newImages(&Worker{Registry: "reg.test:5000"}, r)
	if _, ok := im.find("app"); !ok {
		t.Error("the image of a finished step is unknown")
	}
	if _, ok := im.find("half"); ok {
		t.Error("the image of a failed step is known")
	}
}

func TestStagingRepository(t *testing.T) {
	t.Parallel()
	im := testImages()
	for _, tc := range []struct {
		tags []string
		want string
	}{
		{nil, "kiln/staging/run-local"},
		{[]string{"ghcr.io/o/r:v1"}, "kiln/staging/run-local"},
		{[]string{"ghcr.io/o/r:v1", "localhost:5000/team/app:v1", "reg.test:5000/b:v1"}, "kiln/staging/team/app"},
	} {
		if got := im.staging(tc.tags); got != "reg.test:5000/"+tc.want {
			t.Errorf("staging(%v) = %s, want %s", tc.tags, got, tc.want)
		}
	}
}
