package buildkit_test

import (
	"errors"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"kiln/internal/solve"
)

// testAllowedImages has a session that must not use one of the registry's images, by whatever way it is named.
func testAllowedImages(t *testing.T, e *env) {
	secret := e.registry + "/private/app:1"
	digest := pushImage(t, secret, withConfig(t, busybox(t), v1.Config{Env: []string{"PATH=/bin", "PRIVATE=1"}}))
	if _, j := build(t, e.open(t, solve.SessionConfig{Source: source(t, map[string]string{"Dockerfile": "FROM " + secret + "\nRUN true\n"})}),
		solve.Build{Step: "b", Staging: e.staging()}); j == nil { // the daemon has the image now
		t.Fatal("not built")
	}
	src := source(t, map[string]string{
		"good":  "FROM " + e.base + "\nRUN mkdir /data && echo one > /data/one\n",
		"own":   "FROM app\nRUN cat /data/one\n",
		"from":  "FROM " + secret + "\n",
		"at":    "FROM " + e.registry + "/private/app@" + digest + "\nRUN true\n",
		"copy":  "FROM " + e.base + "\nCOPY --from=" + secret + " /etc/passwd /p\n",
		"mount": "FROM " + e.base + "\nRUN --mount=from=" + secret + ",target=/m cat /m/etc/passwd\n",
	})
	s := e.open(t, solve.SessionConfig{Source: src, Images: func(ref string) bool {
		return !strings.HasPrefix(ref, e.registry+"/") || strings.HasPrefix(ref, e.base)
	}})
	one, _ := build(t, s, solve.Build{Step: "b", Dockerfile: "good", Staging: e.staging()})
	build(t, s, solve.Build{Step: "b", Dockerfile: "own", Images: map[string]string{"docker.io/library/app:latest": one.Ref}, Staging: e.staging()})
	const refused = ": this run may not use it"
	var step *solve.StepError
	for _, name := range []string{"from", "at", "copy", "mount"} {
		j := newJournal()
		_, err := s.Build(t.Context(), solve.Build{Step: "b", Dockerfile: name, Staging: e.staging()}, j.log)
		if !errors.As(err, &step) || !strings.Contains(step.Message, "image "+e.registry+"/private/app") || !strings.Contains(step.Message, refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	j := newJournal()
	if _, err := s.Run(t.Context(), solve.Container{Step: "c", Image: secret, Args: []string{"true"}}, j.log); !errors.As(err, &step) ||
		!strings.HasPrefix(step.Message, "image "+secret+refused) {
		t.Errorf("cmd: %v", err)
	}
	if code, j := runStep(t, s, e.shell("exit 0")); code != 0 {
		t.Errorf("cmd of an allowed image: %d %s", code, j.all())
	}
}
