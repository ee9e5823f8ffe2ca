package main

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// taskDocker does with docker commands what tasks do with steps, and no Docker is there.
const taskDocker = `version: v1.1.0
steps:
  - cmd: docker version
  - id: base
    cmd: docker build -t mybase -f base.Dockerfile .
  - cmd: docker tag mybase corp/base:2
  - id: app
    cmd: docker build -t $Registry/docker/app:$ID --build-arg WHO=me .
  - id: test
    cmd: $Registry/docker/app:$ID cat /who
  - id: login
    cmd: docker login -u me -p {{.Values.password}} {{.Values.other}}
  - cmd: docker pull {{.Values.other}}/theirs:1
    retries: 2
  - cmd: docker tag {{.Values.other}}/theirs:1 $Registry/docker/theirs:$ID
  - cmd: docker push $Registry/docker/app:$ID
  - cmd: docker push $Registry/docker/theirs:$ID
  - cmd: docker tag $Registry/docker/app:$ID {{.Values.other}}/ours:1
  - cmd: docker push {{.Values.other}}/ours:1
  - id: list
    cmd: docker images
  - id: script
    cmd: >-
      mybase sh -c 'printf "FROM mybase\nRUN echo by a script > /who\n" | docker build -t scripted -f - . &&
      docker tag scripted $Registry/docker/script:$ID && docker push $Registry/docker/script:$ID;
      mkdir out; echo sent | docker run --rm -i -v "$PWD/out":/out -w /out -e WHO=inner scripted sh -c "cat - /who; echo to the script >file; echo \$WHO >&2; exit 7"; echo code $?; cat out/file'
  - id: scripted
    cmd: scripted cat /who
  - id: look
    cmd: docker inspect $Registry/docker/app:$ID
`

func testDocker(t *testing.T, s *server) {
	other := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer other.Close()
	host := strings.Replace(other.URL, "http://127.0.0.1", "localhost", 1)
	theirs, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/theirs:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, theirs); err != nil {
		t.Fatal(err)
	}
	dir := files(t, map[string]string{"acr-task.yaml": taskDocker, "base.Dockerfile": base,
		"Dockerfile": "FROM corp/base:2\nARG WHO\nRUN echo from-base $WHO > /who\nCMD [\"sh\"]\n"})
	res := runKiln(t, []string{"KILN_DATA=" + s.data, "password=pass-word-1"}, "run", "--set", "other="+host, "--set-secret", "password", dir)
	if res.code != 0 {
		t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	for _, want := range []string{"test | from-base me", "login | Login Succeeded", "list | docker.io/corp/base:2",
		"script | #", "/docker/script:", ": digest: sha256:", "script | sent", "script | by a script", "script | inner", "script | code 7", "script | to the script", "scripted | by a script", "look |             \"Cmd\": ["} {
		if !strings.Contains(res.err, want) {
			t.Errorf("log lacks %q\n%s", want, res.err)
		}
	}
	want, err := theirs.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(res.out, "/docker/theirs:") || !strings.Contains(res.out, want.String()) || !strings.Contains(res.out, "/docker/app:") ||
		!strings.Contains(res.out, "/docker/script:") {
		t.Errorf("printed %q, want theirs as %s", res.out, want)
	}
	ours, err := name.ParseReference(host + "/ours:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Image(ours); err != nil {
		t.Error(err)
	}
}

func testDockerErrors(t *testing.T, s *server) {
	locked := httptest.NewServer(locked{})
	defer locked.Close()
	inside := strings.TrimPrefix(locked.URL, "http://")
	host := strings.Replace(inside, "127.0.0.1", "localhost", 1) // which the server is told to allow
	for cmd, want := range map[string]string{
		"docker run alpine":                            "docker run needs a Docker daemon, which steps do not have; write the image and its arguments as the step's cmd",
		"docker push nobody/built:1":                   "image nobody/built:1 was not built, pulled or tagged by an earlier step of this run",
		"docker tag nobody/built:1 a":                  "docker tag: there is no image nobody/built:1 in this run; build or pull it in an earlier step",
		"docker pull " + host + "/none:1":              "docker pull: ",
		"docker login -u me -p wrong-password " + host: "docker login: " + host + ": the registry answered 401 Unauthorized",
		"docker login -u me -p secret-word " + inside:  "(a host in a private network, or without TLS, is named to the server with kiln serve --allow-source HOST)",
		"docker pull " + inside + "/none:1":            "refused address: 127.0.0.1 is at 127.0.0.1",
		"docker inspect nobody/built:1":                "docker inspect: there is no image nobody/built:1",
	} {
		res := s.kiln("run", "--cmd", cmd, "/dev/null")
		if res.code == 0 || !strings.Contains(res.err, want) || strings.Contains(res.err, "wrong-password") {
			t.Errorf("%s: exit code %d, want %q\n%s", cmd, res.code, want, res.err)
		}
	}
}

// locked is a registry that knows nobody.
type locked struct{}

func (locked) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("WWW-Authenticate", `Basic realm="locked"`)
	w.WriteHeader(http.StatusUnauthorized)
}
