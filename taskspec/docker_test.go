package taskspec

import (
	"slices"
	"strings"
	"testing"
)

func TestDockerCommandsOfScripts(t *testing.T) {
	t.Parallel()
	call, warnings, err := ParseDocker(strings.Fields("buildx build -q --push -t a/b -f - --build-arg A --build-arg B . --force-rm"), []string{"A=1", "C=2"})
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].Message, "--force-rm has no effect") {
		t.Fatalf("%v, %v", warnings, err)
	}
	want := []KeyValue{{Key: "A", Value: "1"}, {Key: "B", Bare: true}}
	if b := call.Build; !b.Quiet || b.Dockerfile != "-" || b.Context != "." || !slices.Equal(b.BuildArgs, want) || !slices.Equal(call.Push, []string{"a/b:latest"}) {
		t.Errorf("build %+v, push %v", b, call.Push)
	}
	for command, want := range map[string]string{"--version": "version", "image ls": "images", "login -u a --password-stdin ghcr.io": "login"} {
		call, _, err := ParseDocker(strings.Fields(command), nil)
		if err != nil || call.Docker == nil || call.Docker.Command != want {
			t.Errorf("%s: %+v, %v", command, call, err)
		}
	}
	for command, want := range map[string]string{
		"":                "docker needs a command",
		"run -it nginx":   "docker run --tty is not possible here; there is no terminal here",
		"run -v x nginx":  "docker run option --volume x: want an absolute path in the container",
		"run -v a:/b:x n": `the option "x" is not possible here`,
		"run -w rel x":    "docker run -w rel: want an absolute path",
		"run --rm":        "docker run takes an image, this has none",
		"buildx create":   "docker buildx create needs a Docker daemon",
		"compose up":      "write each service as a step",
		"frobnicate":      "docker frobnicate is not known here; kiln has build, images",
		"--context x ps":  "docker --context is not known here",
		"build --push .":  "docker build --push needs a name to push",
		"build --nope .":  `docker build has no option "--nope"`,
		"push --all-tags": "docker push --all-tags is not possible here",
		"login -u me":     "docker login needs -u and -p here",
		"tag UPPER b":     `"UPPER" is no image reference`,
	} {
		if _, _, err := ParseDocker(strings.Fields(command), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", command, err, want)
		}
	}
}

func TestWhoGetsADockerProgram(t *testing.T) {
	t.Parallel()
	task, _, err := Parse([]byte(`version: v1.1.0
steps:
- {id: script, cmd: "bash -c 'docker build -t a . && docker push a'"}
- {id: image, cmd: "corp/docker:27 sh build.sh"}
- {id: env, cmd: "alpine ./build.sh", env: [DOCKER_BUILDKIT=1]}
- {id: hub, cmd: "docker.io/library/alpine cat Dockerfile dockerize"}
- {id: command, cmd: "docker build ."}
- {id: build, build: "-t docker ."}
`), Options{DockerCommands: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range task.Steps {
		if s.CallsDocker() {
			got = append(got, s.ID)
		}
	}
	if want := []string{"script", "image", "env"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
