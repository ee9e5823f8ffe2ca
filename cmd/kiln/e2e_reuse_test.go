package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"kiln/internal/run"
)

// A reuse is a directory that is built again and again.
type reuse struct {
	*server
	dir  string
	args []string
}

// build builds and returns the digest, the run and whether it was said that nothing has changed.
func (r reuse) build(more ...string) (digest, id string, reused bool) {
	r.t.Helper()
	args := append([]string{"build", "-t", "reuse/" + strings.ToLower(filepath.Base(filepath.Dir(r.dir)))}, r.args...)
	res := r.kiln(append(append(args, more...), r.dir)...)
	if res.code != 0 {
		r.t.Fatalf("exit code %d\n%s", res.code, res.err)
	}
	ref, digest, _ := strings.Cut(strings.TrimSpace(res.out), "@")
	return digest, ref[strings.LastIndexByte(ref, ':')+1:], strings.Contains(res.err, "nothing has changed since run ")
}

// expect builds and fails the test unless the build was reused, or was not.
func (r reuse) expect(what string, want bool, more ...string) (digest, id string) {
	r.t.Helper()
	digest, id, reused := r.build(more...)
	if reused != want {
		r.t.Errorf("%s: reused is %t, want %t", what, reused, want)
	}
	return digest, id
}

func (r reuse) write(file, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, file), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// testReuse builds what was built before, unchanged and changed.
func testReuse(t *testing.T, s *server) {
	s.must("build", "-t", "reuse/base:1", files(t, map[string]string{"Dockerfile": base}))
	dockerfile := "FROM localhost:" + s.port() + "/reuse/base:1\nARG WHO\nRUN head -c 16 /dev/urandom > /chance\nCOPY a /a\n"
	r := reuse{server: s, dir: files(t, map[string]string{"Dockerfile": dockerfile, "a": "1"})}
	first, id := r.expect("first build", false)
	second, again := r.expect("second build", true)
	if second != first || again == id {
		t.Errorf("second build is %s of run %s, want %s of another run than %s", second, again, first, id)
	}
	if log := s.must("logs", again); !strings.Contains(log, "build | => nothing has changed since run "+id+": ") || strings.Contains(log, "FROM") {
		t.Errorf("log of the second build:\n%s", log)
	}
	was, is := s.show(id), s.show(again)
	if len(is.Bases) != 1 || is.Bases[0] != was.Bases[0] || is.Steps[0].Output == nil || is.State != run.Succeeded || len(is.Images) != 1 {
		t.Errorf("record of the second build: %+v", is)
	}

	if d, _ := r.expect("--no-cache", false, "--no-cache"); d == first {
		t.Error("--no-cache executed nothing again")
	}
	r.expect("another build argument", false, "--build-arg", "WHO=me")
	r.expect("the same build argument", true, "--build-arg", "WHO=me")
	r.write("a", "2")
	if d, _ := r.expect("another file", false); d == first {
		t.Error("another file made no other image")
	}
	r.write("Dockerfile", dockerfile+"RUN true\n")
	r.expect("another Dockerfile", false)
	r.expect("the same Dockerfile", true)

	s.must("build", "-t", "reuse/base:1", files(t, map[string]string{"Dockerfile": base + "RUN echo > /new\n"}))
	r.expect("another base", false)
	digest, id := r.expect("the same base", true)
	if got := s.show(id).Bases; len(got) != 1 || got[0].Digest == was.Bases[0].Digest {
		t.Errorf("bases on another base are %+v", got)
	}
	r.forget(digest)
	if d, _ := r.expect("no staged image", false); d != digest {
		t.Errorf("what was staged again is %s, want %s", d, digest)
	}
	r.expect("a staged image", true)
}

// forget deletes a staged image.
func (r reuse) forget(digest string) {
	r.t.Helper()
	token, err := os.ReadFile(filepath.Join(r.data, "admin.token"))
	if err != nil {
		r.t.Fatal(err)
	}
	ref, err := name.NewDigest(fmt.Sprintf("%s/kiln/staging/reuse/%s@%s", r.host(), strings.ToLower(filepath.Base(filepath.Dir(r.dir))), digest), name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := remote.Delete(ref, remote.WithAuth(&authn.Basic{Username: "kiln", Password: strings.TrimSpace(string(token))})); err != nil {
		r.t.Fatal(err)
	}
}

// testReuseOfBases builds on a base that is given by digest.
func testReuseOfBases(t *testing.T, s *server) {
	s.must("build", "-t", "reuse/pinned:1", files(t, map[string]string{"Dockerfile": base}))
	digest, err := s.image(s.host() + "/reuse/pinned:1").Digest()
	if err != nil {
		t.Fatal(err)
	}
	pinned := reuse{server: s, dir: files(t, map[string]string{"Dockerfile": "FROM " + s.host() + "/reuse/pinned:1@" + digest.String() + "\nCOPY a /a\n", "a": "1"})}
	pinned.expect("pinned base", false)
	s.must("build", "-t", "reuse/pinned:1", files(t, map[string]string{"Dockerfile": base + "RUN echo > /new\n"}))
	pinned.expect("pinned base whose tag has moved", true)
}

// testReuseOfFetched builds on what is fetched by URL.
func testReuseOfFetched(t *testing.T, s gitServer) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "from the web") }))
	defer web.Close()
	fetched := reuse{server: s.server, dir: files(t, map[string]string{"Dockerfile": "FROM scratch\nADD " + web.URL + "/file /file\n"})}
	first, _ := fetched.expect("ADD of a URL", false)
	if second, _ := fetched.expect("ADD of the same URL", false); second != first {
		t.Errorf("ADD of the same URL made %s, want %s", second, first)
	}
}

// testReuseInTasks runs a task of several builds twice: images of a run are found under names with its ID.
func testReuseInTasks(t *testing.T, s *server) {
	dir := files(t, map[string]string{"Dockerfile": base, "more": "FROM local\nRUN echo > /more\n", "acr-task.yaml": `version: v1.1.0
steps:
  - id: one
    build: -t $Registry/reuse/task:$ID -t local .
  - id: two
    build: -f more -t two .
  - id: labelled
    build: -t labelled --label run=$ID .
  - push: [$Registry/reuse/task:$ID]
`})
	s.must("run", dir)
	res := s.kiln("run", dir)
	for step, want := range map[string]bool{"one": true, "two": true, "labelled": false} {
		if got := strings.Contains(res.err, step+" | => nothing has changed since run "); got != want {
			t.Errorf("step %s: reused is %t, want %t\n%s", step, got, want, res.err)
		}
	}
}
