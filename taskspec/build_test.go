package taskspec

import (
	"strings"
	"testing"
)

func TestParseBuild(t *testing.T) {
	b, err := ParseBuild(strings.Fields("-t a --build-arg X -f f/Dockerfile ctx"), []string{"X=1"})
	if err != nil {
		t.Fatal(err)
	}
	if b.Context != "ctx" || b.Dockerfile != "f/Dockerfile" || len(b.Tags) != 1 || b.Tags[0] != "a:latest" || b.BuildArgs[0].Value != "1" {
		t.Errorf("ParseBuild = %+v", b)
	}
	for args, want := range map[string]string{
		"--nope .":   `docker build has no option "--nope"`,
		". .":        `build: docker build takes one context, this has 2: "." "."`,
		"-t Upper .": `build: "Upper" is no image reference: repository name (library/Upper) must be lowercase`,
	} {
		if _, err := ParseBuild(strings.Fields(args), nil); err == nil || err.Error() != want {
			t.Errorf("ParseBuild(%s) = %v, want %s", args, err, want)
		}
	}
}
