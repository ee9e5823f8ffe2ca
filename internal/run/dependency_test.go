package run_test

import (
	"encoding/json"
	"testing"

	"kiln/internal/run"
)

// TestDependencies has an image on a base, one on that image, and one of no name on nothing.
func TestDependencies(t *testing.T) {
	const node, golang = "docker.io/library/node:22", "reg:5000/golang:1.26"
	r := run.Run{Cause: run.Cause{Commit: "c0ffee"}, Steps: []run.Step{
		{ID: "lib", State: run.StepSucceeded, Output: &run.Output{Digest: "sha256:a", Ref: "reg:5000/s@sha256:a", Tags: []string{"lib"},
			Bases: []run.Base{{Ref: golang, Digest: "sha256:g"}, {Ref: node, Digest: "sha256:n"}}, Runtime: node + "@sha256:n"}},
		{ID: "app", State: run.StepSucceeded, Output: &run.Output{Digest: "sha256:b", Ref: "reg:5000/s@sha256:b", Tags: []string{"reg:5000/app:v1", "reg:5000/team/app"},
			Bases: []run.Base{{Ref: golang, Digest: "sha256:g"}}, Runtime: "reg:5000/s@sha256:a"}},
		{ID: "bare", State: run.StepSucceeded, Output: &run.Output{Digest: "sha256:c", Ref: "reg:5000/s@sha256:c"}},
		{ID: "bad", State: run.StepFailed},
		{ID: "push", State: run.StepSucceeded},
	}}
	got, err := json.Marshal(r.Dependencies())
	if err != nil {
		t.Fatal(err)
	}
	const (
		nodeRef   = `{"registry":"docker.io","repository":"library/node","tag":"22","digest":"sha256:n","reference":"docker.io/library/node:22@sha256:n"}`
		golangRef = `[{"registry":"reg:5000","repository":"golang","tag":"1.26","digest":"sha256:g","reference":"reg:5000/golang:1.26@sha256:g"}]`
		bases     = `"runtime-dependency":` + nodeRef + `,"buildtime-dependency":` + golangRef + `,"git":{"git-head-revision":"c0ffee"}`
		want      = `[{"image":{"repository":"lib","digest":"sha256:a","reference":"lib@sha256:a"},` + bases +
			`},{"image":{"registry":"reg:5000","repository":"app","tag":"v1","digest":"sha256:b","reference":"reg:5000/app:v1@sha256:b"},` + bases +
			`},{"image":{"registry":"reg:5000","repository":"team/app","digest":"sha256:b","reference":"reg:5000/team/app@sha256:b"},` + bases +
			`},{"image":null,"runtime-dependency":null,"buildtime-dependency":null,"git":{"git-head-revision":"c0ffee"}}]`
	)
	if string(got) != want {
		t.Errorf("dependencies are\n%s\nwant\n%s", got, want)
	}
}
